//! How many lines of a control port one core takes in: framed alone, and noted in a book of circuits as well.
//!
//!     cargo run --release --example control-lines -- FILE [LINES]
//!
//! FILE is a recorded conversation (`tests/recorded/`). All its events are sent once, then its CIRC_BW events over
//! and over, LINES in all (10,000,000), through a pair of sockets to a driver. The sender has a thread of its own.
//! The memory that the process takes is told before and after, as a flood must not change it.

use std::io::{BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use perfd::circuit::book::Book;
use perfd::clock::UnixMicros;
use perfd::tor::control::start;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().context("which FILE?")?;
    let count = arguments.next().map_or(Ok(10_000_000), |count| count.parse()).context("LINES is no number")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("can't read {file}"))?;
    let events = text.lines().filter_map(|line| Some(line.split_once(' ')?.1)).filter(|line| line.starts_with("650 "));
    let events: Vec<String> = events.map(|line| format!("{line}\r\n")).collect();
    let floods: Vec<_> = events.iter().filter(|line| line.starts_with("650 CIRC_BW ")).cloned().collect();
    ensure!(!floods.is_empty() && count > events.len(), "{file} has no CIRC_BW events, or LINES is too small");

    let before = resident_kib()?;
    flood("framed", &events, &floods, count, |_, _| {})?;
    let mut book = Book::new(1, Instant::now(), UnixMicros::now());
    flood("noted", &events, &floods, count, |at, line| {
        book.note(at, &String::from_utf8_lossy(line));
    })?;
    let (circuits, streams, lines) = book.size();
    println!("the book holds {circuits} circuits, {streams} streams, {lines} lines; {} were noted", book.lines());
    println!("resident memory: {before} KiB before, {} KiB after", resident_kib()?);
    Ok(())
}

/// Sends `count` lines to a driver with this sink, and prints how long it took.
fn flood(
    what: &str,
    events: &[String],
    floods: &[String],
    count: usize,
    mut sink: impl FnMut(Instant, &[u8]),
) -> anyhow::Result<()> {
    let (tor, perfd) = UnixStream::pair()?;
    perfd.set_nonblocking(true)?;
    let (events, floods) = (events.to_vec(), floods.to_vec());
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut tor = BufWriter::with_capacity(64 * 1024, tor);
        let mut lines = events.iter().chain(floods.iter().cycle()).take(count);
        lines.try_for_each(|line| tor.write_all(line.as_bytes()))?;
        tor.flush()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (began, used) = (Instant::now(), processor_time()?);
    let mut heard = 0;
    let end = runtime.block_on(async {
        let (_commands, driver) = start(tokio::net::UnixStream::from_std(perfd)?);
        let counted = |at: Instant, line: &[u8]| {
            heard += 1;
            sink(at, line);
        };
        anyhow::Ok(driver.run(counted).await)
    })?;
    let (wall, used) = (began.elapsed(), processor_time()?.saturating_sub(used));
    sender.join().expect("the sender doesn't panic")?;
    ensure!(heard == count, "only {heard} of {count} lines came: {end}");
    let rate = |time: Duration| count as f64 / time.as_secs_f64() / 1e6;
    println!("{what}: {:.2} million lines a second, {:.2} a second of processor time", rate(wall), rate(used));
    Ok(())
}

/// What the process takes of the memory, as the system counts it.
fn resident_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Of this thread.
fn processor_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros =
        [usage.user_time(), usage.system_time()].iter().map(|t| t.tv_sec() * 1_000_000 + t.tv_usec()).sum::<i64>();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}
