//! How many lines of a control port one core takes in, before anybody looks at what they say.
//!
//!     cargo run --release --example control-lines -- FILE [LINES]
//!
//! FILE is a recorded conversation (`tests/samples/`); its CIRC_BW events are sent over and over, LINES in all
//! (10,000,000), through a pair of sockets to a driver that throws them away. The sender has a thread of its own.

use std::io::{BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use perfd::tor::control::start;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().context("which FILE?")?;
    let count = arguments.next().map_or(Ok(10_000_000), |count| count.parse()).context("LINES is no number")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("can't read {file}"))?;
    let lines = text.lines().filter_map(|line| Some(line.split_once(' ')?.1));
    let lines: Vec<_> =
        lines.filter(|line| line.starts_with("650 CIRC_BW ")).map(|line| format!("{line}\r\n")).collect();
    ensure!(!lines.is_empty(), "{file} has no CIRC_BW events");

    let (tor, perfd) = UnixStream::pair()?;
    perfd.set_nonblocking(true)?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut tor = BufWriter::with_capacity(64 * 1024, tor);
        lines.iter().cycle().take(count).try_for_each(|line| tor.write_all(line.as_bytes()))?;
        tor.flush()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (began, used) = (Instant::now(), processor_time()?);
    let (mut heard, mut bytes) = (0, 0);
    let end = runtime.block_on(async {
        let (_commands, driver) = start(tokio::net::UnixStream::from_std(perfd)?);
        anyhow::Ok(driver.run(|_, text| (heard, bytes) = (heard + 1, bytes + text.len())).await)
    })?;
    let (wall, used) = (began.elapsed(), processor_time()?.saturating_sub(used));
    sender.join().expect("the sender doesn't panic")?;
    ensure!(heard == count, "only {heard} of {count} lines came: {end}");
    let rate = |time: Duration| count as f64 / time.as_secs_f64() / 1e6;
    println!("{heard} lines, {bytes} bytes of text");
    println!("{:.2} million lines a second, {:.2} million a second of processor time", rate(wall), rate(used));
    Ok(())
}

/// Of this thread.
fn processor_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros =
        [usage.user_time(), usage.system_time()].iter().map(|t| t.tv_sec() * 1_000_000 + t.tv_usec()).sum::<i64>();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}
