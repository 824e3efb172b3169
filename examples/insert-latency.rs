//! How long it takes until a result that was measured is stored: from the call until it is committed.
//!
//!     cargo run --release --example insert-latency -- FILE SECONDS [A_SECOND]
//!
//! Enters slots of an experiment of its own into the store and ends each with a result, ten a second (A_SECOND), as
//! the scheduler does. Prints how many there were, and percentiles of the time that ending took, in milliseconds.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use perfd::clock::UnixMicros;
use perfd::measurement::{Kind, Measurement, Outcome, Place, RunId, ServerKind, Steps};
use perfd::slot::{Grid, SlotId, SlotState};
use perfd::store::{NewResult, Store};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().context("which FILE?")?;
    let seconds: f64 = arguments.next().context("for how many SECONDS?")?.parse().context("SECONDS is no number")?;
    let rate: f64 = arguments.next().map_or(Ok(10.0), |rate| rate.parse()).context("A_SECOND is no number")?;
    let store = Store::open(Path::new(&file))?;
    let grid = Grid::new(Duration::from_micros(1), Duration::ZERO);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed().as_secs_f64() < seconds {
        ticks.tick().await;
        let now = UnixMicros::now();
        let slot = SlotId { experiment: "insert-latency".to_owned(), planned: now };
        store.begin_slot(slot.clone(), grid, now).await?;
        let (result, ended) = (result(&slot), UnixMicros::now());
        let called = Instant::now();
        store.finish_slot(slot, SlotState::Done, None, ended, vec![result]).await?;
        took.push(called.elapsed().as_secs_f64() * 1e3);
    }
    store.close(Duration::from_secs(10)).await?;
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get(((took.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
    let [half, nine, most, all] = [0.5, 0.9, 0.99, 1.0].map(|share| at(share).unwrap_or(f64::NAN));
    println!("{} p50 {half:.2} p90 {nine:.2} p99 {most:.2} max {all:.2}", took.len());
    Ok(())
}

/// A complete download of 50 KiB.
fn result(slot: &SlotId) -> NewResult {
    let id = RunId::random();
    let mut steps = Steps {
        socket: Some(10),
        connect: Some(200),
        negotiate: Some(400),
        request: Some(500),
        response: Some(400_000),
        data_request: Some(400_100),
        data_response: Some(700_000),
        data_complete: Some(1_500_000),
        ..Steps::default()
    };
    for (tenth, at) in (0..).zip(&mut steps.deciles) {
        *at = Some(700_000 + tenth * 80_000);
    }
    steps.partials[..3].copy_from_slice(&[Some(900_000), Some(1_100_000), Some(1_500_000)]);
    NewResult {
        source: "op-bench".to_owned(),
        experiment: slot.experiment.clone(),
        tor: "main".to_owned(),
        planned: slot.planned,
        configuration: "name = \"insert-latency\"\n".to_owned(),
        version: "0.1.0".to_owned(),
        server: ServerKind::Exit,
        place: Place::ALONE,
        measurement: Measurement {
            kind: Kind::Download,
            user: Some(format!("perfd-{id}")),
            optimistic: false,
            start: slot.planned,
            ended: 1_500_100,
            size: 51_200,
            steps,
            outcome: Outcome::Complete,
            written: 141,
            read: 51_387,
            local: Some(SocketAddr::from(([127, 0, 0, 1], 40_000))),
            proxy: Some(SocketAddr::from(([127, 0, 0, 1], 9_050))),
            remote_host: Some("perfd.example.org".to_owned()),
            remote_port: Some(8_080),
            isolated: Some(true),
            verified: true,
            curve: (0..32).map(|point| (700_000 + point * 25_000, point * 1_600)).collect(),
            server: None,
            id,
        },
        circuit: None,
    }
}
