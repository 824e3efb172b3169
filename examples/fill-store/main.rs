//! Fills a store with plausible results, the same ones for the same seed: for benchmarks and for trying things out.
//!
//!     cargo run --release --example fill-store -- FILE [--rows 10000000] [--seed 1] [--circuits 86400]
//!
//! 24 experiments of one perfd, on Torperf's schedule: 50 KiB, 1 MiB and 5 MiB, by exit and to an onion service,
//! through four tors; 2880 slots a day. Times are log-normal with a daily rhythm, some of a hundred runs fail or time
//! out, perfd is away now and then, and tors are down. The last results (--circuits) have the circuits that carried
//! them, with their evidence, and curves. Rows go through the store's own code, in bulk.

mod circuits;
mod runs;
mod schedule;

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use perfd::clock::UnixMicros;
use perfd::slot::SlotRow;
use perfd::store::{Bulk, NewResult};

#[derive(Parser)]
struct Arguments {
    /// The SQLite file, which is made if it is missing, and must not have results of the same time already.
    file: PathBuf,
    /// How many results.
    #[arg(long, default_value_t = 10_000_000)]
    rows: u64,
    /// Another seed gives other rows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many of the last results have circuits, evidence and curves.
    #[arg(long, default_value_t = 86_400)]
    circuits: u64,
    /// When the last slots were planned, about, as RFC 3339.
    #[arg(long, default_value = "2026-11-01T00:00:00Z")]
    until: String,
    /// Bytes of the file that are kept in memory.
    #[arg(long, default_value_t = 2 << 30)]
    cache: u64,
}

/// A slot that has ended, with its results.
type Entry = (SlotRow, Vec<NewResult>);

/// How many entries go from one thread to the other at once.
const CHUNK: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let until = UnixMicros::parse(&arguments.until).with_context(|| format!("no time: {:?}", arguments.until))?;
    let mut store = Bulk::open(&arguments.file, arguments.cache)?;
    let (sender, receiver) = sync_channel::<Vec<Entry>>(4);
    let (rows, seed, circuits) = (arguments.rows, arguments.seed, arguments.circuits);
    let maker = std::thread::spawn(move || {
        let mut chunk = Vec::with_capacity(CHUNK);
        for entry in schedule::entries(rows, seed, circuits, until) {
            chunk.push(entry);
            if chunk.len() == CHUNK && sender.send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK))).is_err() {
                return;
            }
        }
        // The other end is gone only if the store failed, and says so.
        let _ = sender.send(chunk);
    });

    let (began, mut done, mut told) = (Instant::now(), 0, 0);
    for (slot, results) in receiver.into_iter().flatten() {
        store.put(&slot, &results)?;
        done += results.len() as u64;
        if done >= told + 500_000 {
            told = done;
            eprintln!("{done} results, {:.0} a second", done as f64 / began.elapsed().as_secs_f64());
        }
    }
    maker.join().expect("the maker doesn't panic");
    store.finish()?;
    let took = began.elapsed().as_secs_f64();
    let size = std::fs::metadata(&arguments.file)?.len();
    println!("{done} results in {took:.1} s, {:.0} a second; {:.2} GB", done as f64 / took, size as f64 / 1e9);
    Ok(())
}
