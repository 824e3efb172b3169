//! Samples for the tests of statistics.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::{array, bool, collection, option};

use crate::clock::UnixMicros;
use crate::measurement::{Cause, Kind, PARTIALS, Phase, ServerKind, Steps};
use crate::stats::{End, Sample, SampleCircuit};

/// A complete download of 5 MiB that began at 2026-11-22T10:00:00.0007Z: its steps are those of the exemplary row,
/// each tenth of the payload takes 100 ms, and its circuit was built in 120, 350 and 690 ms.
pub fn example_sample() -> Sample {
    let row = super::example_row();
    let mut steps = Steps { data_complete: Some(1_700_100), ..row.measurement.steps };
    for (tenth, at) in (0..).zip(&mut steps.deciles) {
        *at = Some(700_100 + tenth * 100_000);
    }
    for (size, at) in PARTIALS.iter().zip(&mut steps.partials) {
        *at = Some(700_100 + size * 1_000_000 / 5_242_880);
    }
    Sample {
        start: UnixMicros(row.measurement.start.0 + 700),
        source: Arc::from("op-test"),
        experiment: Arc::from("large"),
        tor: Arc::from("main"),
        kind: Kind::Download,
        server: ServerKind::Exit,
        size: 5_242_880,
        imported: false,
        end: End::Complete,
        did_time_out: false,
        steps,
        written: 84,
        read: 5_243_000,
        circuit: Some(SampleCircuit {
            conflux: Some(false),
            path: ["1", "2", "3"].map(|digit| digit.repeat(40)).to_vec(),
            build_times: vec![120_000, 350_000, 690_000],
        }),
    }
}

/// Any plausible sample: of some days around 2026-11-22, few sources and sizes, its steps mostly in order, each
/// missing now and then.
pub fn sample() -> BoxedStrategy<Sample> {
    let what = (kind(), select(ServerKind::ALL.to_vec()), select(vec![51_200u64, 1_048_576, 5_242_880, 70_000]));
    let who = (select(vec!["op-a", "op-b"]), select(vec!["small", "large"]), select(vec!["main", "other"]));
    let when = 1_795_219_200_000_000i64..1_795_219_200_000_000 + 4 * 86_400_000_000;
    let numbers = (0u64..2_000, 0u64..6_000_000, any::<bool>());
    (when, who, what, numbers, end(), steps(), option::of(circuit()))
        .prop_map(|(start, who, what, numbers, end, steps, circuit)| Sample {
            start: UnixMicros(start),
            source: Arc::from(who.0),
            experiment: Arc::from(who.1),
            tor: Arc::from(who.2),
            kind: what.0,
            server: what.1.0,
            size: what.2,
            imported: numbers.2,
            end,
            did_time_out: matches!(end, End::Timeout(_)),
            steps,
            written: numbers.0,
            read: numbers.1,
            circuit,
        })
        .boxed()
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![5 => Just(Kind::Download), 1 => Just(Kind::Upload)]
}

fn end() -> impl Strategy<Value = End> {
    let phase = || select(Phase::ALL.to_vec()).prop_map(|(phase, _)| phase);
    let cause = select(Cause::ALL.to_vec()).prop_map(|(cause, _)| cause);
    prop_oneof![
        4 => Just(End::Complete),
        1 => phase().prop_map(End::Timeout),
        1 => (phase(), cause).prop_map(|(phase, cause)| End::Failed(phase, cause)),
    ]
}

fn steps() -> impl Strategy<Value = Steps> {
    let gap = prop_oneof![1 => 0u64..3, 2 => 0u64..2_000, 6 => 0u64..3_000_000];
    let there = || bool::weighted(0.9);
    (collection::vec(gap, 28), array::uniform28(there())).prop_map(|(gaps, there)| {
        let mut at = 0;
        let mut passed = gaps.iter().zip(there).map(|(gap, there)| {
            at += gap;
            there.then_some(at)
        });
        let mut next = || passed.next().flatten();
        let firsts: [_; 7] = std::array::from_fn(|_| next());
        let [socket, connect, negotiate, request, response, data_request, data_response] = firsts;
        let (deciles, partials) = (std::array::from_fn(|_| next()), std::array::from_fn(|_| next()));
        let data_complete = next();
        Steps {
            socket,
            connect,
            negotiate,
            request,
            response,
            data_request,
            data_response,
            data_complete,
            deciles,
            partials,
        }
    })
}

fn circuit() -> impl Strategy<Value = SampleCircuit> {
    let path = collection::vec("[0-3]", 0..4);
    (any::<Option<bool>>(), path, collection::vec(0u64..900_000, 0..5)).prop_map(|(conflux, path, gaps)| {
        SampleCircuit {
            conflux,
            path: path.iter().map(|digit| digit.repeat(40)).collect(),
            build_times: gaps
                .iter()
                .scan(0, |at, gap| {
                    *at += gap;
                    Some(*at)
                })
                .collect(),
        }
    })
}
