use proptest::prelude::*;

use super::*;
use crate::measurement::{Phase, Steps};
use crate::stats::{End, SampleCircuit};
use crate::test_support::samples::{example_sample, sample};

/// A download of 50 KiB that began with a millisecond on 2026-11-22, and took so many µs.
fn download(micros: u64) -> Sample {
    let mut sample = Sample { size: 51_200, read: 51_400, ..example_sample() };
    sample.start = UnixMicros(1_795_341_600_000_000);
    sample.steps.data_complete = Some(micros);
    sample
}

fn all_of<A>(mut accumulator: A, add: impl Fn(&mut A, &Sample), samples: &[Sample]) -> A {
    samples.iter().for_each(|sample| add(&mut accumulator, sample));
    accumulator
}

fn downloads(samples: &[Sample], floor: Floor) -> Vec<DownloadRow> {
    all_of(Downloads::default(), Downloads::add, samples).finish(floor)
}

fn failures(samples: &[Sample]) -> Vec<FailureRow> {
    all_of(Failures::default(), Failures::add, samples).finish()
}

fn build_times(samples: &[Sample], today: Option<UnixMicros>) -> Vec<BuildTimeRow> {
    all_of(BuildTimes::new(today), BuildTimes::add, samples).finish(Floor::NONE)
}

fn latencies(samples: &[Sample], today: Option<UnixMicros>) -> Vec<BoxRow> {
    all_of(Latencies::new(today), Latencies::add, samples).finish(Floor::NONE)
}

fn throughputs(samples: &[Sample], today: Option<UnixMicros>) -> Vec<BoxRow> {
    all_of(Throughputs::new(today), Throughputs::add, samples).finish(Floor::NONE)
}

#[test]
fn download_times_by_hand() {
    // 1000.9, 1100.9, 1300.9 and 2000.9 ms are cut to 1000, 1100, 1300 and 2000; places 0.75, 1.5 and 2.25 give
    // 1075, 1200 and 1475.
    let samples = [2_000_900, 1_000_900, 1_300_900, 1_100_900].map(download);
    let row = DownloadRow {
        date: "2026-11-22".to_owned(),
        filesize: 51_200,
        source: "op-test".to_owned(),
        server: Server::Public,
        q1: Some(1075),
        md: Some(1200),
        q3: Some(1475),
        samples: 4,
    };
    assert_eq!(downloads(&samples, Floor::NONE), std::slice::from_ref(&row));
    let too_few = DownloadRow { q1: None, md: None, q3: None, ..row.clone() };
    assert_eq!(downloads(&samples, Floor::USUAL), [too_few]);
    // Cut, not rounded: 1000 and 1001 make 1000.25, 1000.5 and 1000.75.
    let found = downloads(&[download(1_000_000), download(1_001_000)], Floor::NONE);
    assert_eq!((found[0].q1, found[0].md, found[0].q3), (Some(1000), Some(1000), Some(1000)));
    // A run that timed out but has its DATACOMPLETE counts, one without does not, an upload neither.
    let mut without = download(0);
    without.steps.data_complete = None;
    let late = Sample { did_time_out: true, end: End::Timeout(Phase::DataComplete), ..download(9_000_000) };
    let found = downloads(&[without, late, Sample { kind: Kind::Upload, ..download(1) }], Floor::NONE);
    assert_eq!((found.len(), found[0].md, found[0].samples), (1, Some(9000), 1));
}

#[test]
fn parts_of_larger_files_count_as_smaller_ones() {
    // As `every_formula_by_hand` of quantities has it.
    let onion = Sample { server: ServerKind::SingleOnion, ..example_sample() };
    let found = downloads(&[onion, example_sample()], Floor::NONE);
    let brief: Vec<_> = found.iter().map(|row| (row.filesize, row.server, row.md)).collect();
    let expected = [(51_200, 710), (1_048_576, 900), (5_242_880, 1700)]
        .map(|(size, millis)| [Server::Onion, Server::Public].map(|server| (size, server, Some(millis))));
    assert_eq!(brief, expected.concat());
}

#[test]
fn timeouts_and_failures_by_hand() {
    let unfinished = || Sample { steps: Steps::default(), end: End::Timeout(Phase::Socket), ..download(0) };
    let samples = [
        download(1000),
        // Fewer bytes than the file has, and exactly as many.
        Sample { read: 51_199, ..download(1000) },
        Sample { read: 51_200, ..download(1000) },
        // DIDTIMEOUT says so, whatever else.
        Sample { did_time_out: true, read: 0, ..download(1000) },
        // DATACOMPLETE in START's own millisecond.
        download(999),
        // DIDTIMEOUT is 0 and DATACOMPLETE missing: neither, and shown apart.
        unfinished(),
        Sample { did_time_out: true, ..unfinished() },
        Sample { kind: Kind::Upload, ..download(1000) },
    ];
    let row = FailureRow {
        date: "2026-11-22".to_owned(),
        source: "op-test".to_owned(),
        server: Server::Public,
        timeouts: 3,
        failures: 1,
        requests: 7,
        unfinished: 1,
    };
    assert_eq!(failures(&samples), [row]);
}

#[test]
fn build_times_by_hand() {
    let built = |source: &str, times: &[u64]| Sample {
        source: Arc::from(source),
        circuit: Some(SampleCircuit { build_times: times.to_vec(), ..SampleCircuit::default() }),
        ..example_sample()
    };
    // 99.9 and 300.2 ms are cut to 99 and 300, which are 201 apart; a fourth hop is not counted.
    let samples = [built("a", &[99_900, 300_200, 400_000, 900_000]), built("b", &[200_000, 250_000])];
    let row = |source: &str, position, q1, md, q3, samples| BuildTimeRow {
        date: "2026-11-22".to_owned(),
        source: source.to_owned(),
        position,
        q1: Some(q1),
        md: Some(md),
        q3: Some(q3),
        samples,
    };
    let expected = [
        // 99 and 200: 124.25, 149.5, 174.75. 50 and 201: 87.75, 125.5, 163.25.
        row("", 1, 124, 149, 174, 2),
        row("", 2, 87, 125, 163, 2),
        row("", 3, 100, 100, 100, 1),
        row("a", 1, 99, 99, 99, 1),
        row("a", 2, 201, 201, 201, 1),
        row("a", 3, 100, 100, 100, 1),
        row("b", 1, 200, 200, 200, 1),
        row("b", 2, 50, 50, 50, 1),
    ];
    assert_eq!(build_times(&samples, None), expected);
}

#[test]
fn latencies_by_hand() {
    let waited = |millis: u64| {
        let mut sample = download(9_000_000);
        (sample.steps.data_request, sample.steps.data_response) = (Some(5_000), Some(5_000 + millis * 1000));
        sample
    };
    let samples = [250, 159, 400, 230, 240, 207].map(waited);
    let found = latencies(&samples, None);
    // 159, 207, 230, 240, 250, 400, places 1.25, 2.5, 3.75: quartiles 207 + 0.25 · 23 = 212.75, 235, 240 + 0.75 · 10 = 247.5; the reach is
    // 52.125, from 160.625 to 299.625.
    let row = BoxRow {
        date: "2026-11-22".to_owned(),
        source: "op-test".to_owned(),
        server: Server::Public,
        low: Some(207),
        q1: Some(212),
        md: Some(235),
        q3: Some(247),
        high: Some(250),
        samples: 6,
    };
    assert_eq!(found, [row]);
}

#[test]
fn throughput_by_hand() {
    let took = |size: u64, tenths: [usize; 2], millis: u64| {
        let mut sample = Sample { size, ..download(9_000_000) };
        sample.steps.deciles[tenths[0]] = Some(1_000_000);
        sample.steps.deciles[tenths[1]] = Some(1_000_000 + millis * 1000);
        sample
    };
    // 4,194,304 / 1000 = 4194.304 and / 500 = 8388.608, each cut; between them 4194 + 0.25 · 4194 = 5242.5, 6291,
    // 7339.5.
    let samples = [took(1_048_576, [5, 10], 1000), took(5_242_880, [1, 2], 500), took(51_200, [5, 10], 1)];
    let found = throughputs(&samples, None);
    let BoxRow { low, q1, md, q3, high, samples, .. } = found[0].clone();
    assert_eq!((found.len(), samples), (1, 2));
    assert_eq!([low, q1, md, q3, high], [4194, 5242, 6291, 7339, 8388].map(Some));
}

#[test]
fn today_and_yesterday_are_dropped_where_that_is_asked() {
    let on = |date: &str| Sample { start: UnixMicros::parse(date).unwrap(), ..example_sample() };
    let samples = ["2026-11-20T23:59:59Z", "2026-11-21T00:00:00Z", "2026-11-22T08:00:00Z"].map(on);
    let today = UnixMicros::parse("2026-11-22T09:00:00Z");
    for (today, days) in [(None, 3), (today, 1)] {
        assert_eq!(latencies(&samples, today).len(), days);
        assert_eq!(throughputs(&samples, today).len(), days);
        assert_eq!(build_times(&samples, today).len(), days * 6);
    }
    assert_eq!((downloads(&samples, Floor::NONE).len(), failures(&samples).len()), (9, 3));
}

/// A step as a reader of key=value gets it: both moments in whole ms since the epoch, the difference.
fn slow_millis(sample: &Sample, at: Option<u64>) -> Option<i64> {
    at.map(|at| (sample.start.0 + at as i64) / 1000 - sample.start.0 / 1000)
}

fn slow_date(sample: &Sample) -> String {
    sample.start.to_string()[..10].to_owned()
}

fn slow_server(sample: &Sample) -> Server {
    if sample.server == ServerKind::Exit { Server::Public } else { Server::Onion }
}

/// The percentile by counting off: the values in order, then between the two around the place.
fn slow_percentile(values: &[i64], quarters: i64) -> i64 {
    let mut values = values.to_vec();
    values.sort();
    let place = quarters * (values.len() as i64 - 1);
    let (index, rest) = ((place / 4) as usize, place % 4);
    let next = values.get(index + 1).copied().unwrap_or(0);
    // In quarters of the unit, so that nothing is lost before it is cut.
    (values[index] * (4 - rest) + next * rest) / 4
}

/// All values that belong to the keys, in the keys' order.
fn slow_groups<K: Ord + Clone>(values: Vec<(K, i64)>) -> Vec<(K, Vec<i64>)> {
    let mut keys: Vec<K> = values.iter().map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys.dedup();
    let of = |key: &K| values.iter().filter(|(k, _)| k == key).map(|(_, value)| *value).collect();
    keys.iter().map(|key| (key.clone(), of(key))).collect()
}

fn slow_boxes(values: Vec<((String, String, Server), i64)>) -> Vec<BoxRow> {
    let row = |((date, source, server), values): ((String, String, Server), Vec<i64>)| {
        let exact = |q: f64| {
            let floats = sorted(values.iter().map(|value| *value as f64).collect());
            crate::stats::percentile::percentile(&floats, q).unwrap()
        };
        let reach = (exact(0.75) - exact(0.25)) * 1.5;
        BoxRow {
            low: values.iter().copied().filter(|value| *value as f64 >= exact(0.25) - reach).min(),
            q1: Some(slow_percentile(&values, 1)),
            md: Some(slow_percentile(&values, 2)),
            q3: Some(slow_percentile(&values, 3)),
            high: values.iter().copied().filter(|value| *value as f64 <= exact(0.75) + reach).max(),
            samples: values.len() as u64,
            date,
            source,
            server,
        }
    };
    slow_groups(values).into_iter().map(row).collect()
}

proptest! {
    #[test]
    fn the_five_are_what_an_obvious_implementation_says(all in prop::collection::vec(sample(), 0..80)) {
        let plain: Vec<&Sample> = all.iter().filter(|sample| sample.kind == Kind::Download).collect();
        let whose = |sample: &Sample| (slow_date(sample), sample.source.to_string(), slow_server(sample));

        let mut times = Vec::new();
        for sample in &plain {
            let (date, source, server) = whose(sample);
            let mut add = |size: u64, at| {
                if let Some(millis) = slow_millis(sample, at) {
                    times.push(((date.clone(), size, source.clone(), server), millis));
                }
            };
            add(sample.size, sample.steps.data_complete);
            if sample.size > 51_200 {
                add(51_200, sample.steps.partials[2]);
            }
            if sample.size > 1_048_576 {
                add(1_048_576, sample.steps.partials[6]);
            }
        }
        let row = |((date, filesize, source, server), values): ((String, u64, String, Server), Vec<i64>)| {
            let [q1, md, q3] = [1, 2, 3].map(|quarters| Some(slow_percentile(&values, quarters)));
            DownloadRow { date, filesize, source, server, q1, md, q3, samples: values.len() as u64 }
        };
        let expected: Vec<_> = slow_groups(times).into_iter().map(row).collect();
        prop_assert_eq!(downloads(&all, Floor::NONE), expected);

        let mut counts: BTreeMap<(String, String, Server), [u64; 4]> = BTreeMap::new();
        for sample in &plain {
            let complete = slow_millis(sample, sample.steps.data_complete);
            let timeout = sample.did_time_out || complete.is_some_and(|complete| complete < 1);
            let failure = !sample.did_time_out
                && complete.is_some_and(|complete| complete >= 1)
                && sample.read < sample.size;
            let [timeouts, failures, requests, unfinished] = counts.entry(whose(sample)).or_default();
            *timeouts += u64::from(timeout);
            *failures += u64::from(failure);
            *requests += 1;
            *unfinished += u64::from(!sample.did_time_out && complete.is_none());
        }
        let row = |((date, source, server), [timeouts, failures, requests, unfinished]): (_, [u64; 4])| {
            FailureRow { date, source, server, timeouts, failures, requests, unfinished }
        };
        prop_assert_eq!(failures(&all), counts.into_iter().map(row).collect::<Vec<_>>());

        let mut deltas = Vec::new();
        for sample in &plain {
            let (date, source, _) = whose(sample);
            let mut before = 0;
            let times = sample.circuit.iter().flat_map(|circuit| &circuit.build_times);
            for (position, at) in (1u8..=3).zip(times) {
                let at = (at / 1000) as i64;
                deltas.push(((date.clone(), String::new(), position), at - before));
                deltas.push(((date.clone(), source.clone(), position), at - before));
                before = at;
            }
        }
        let row = |((date, source, position), values): ((String, String, u8), Vec<i64>)| {
            let [q1, md, q3] = [1, 2, 3].map(|quarters| Some(slow_percentile(&values, quarters)));
            BuildTimeRow { date, source, position, q1, md, q3, samples: values.len() as u64 }
        };
        let expected: Vec<_> = slow_groups(deltas).into_iter().map(row).collect();
        prop_assert_eq!(build_times(&all, None), expected);

        let mut waits = Vec::new();
        let mut rates = Vec::new();
        for sample in &plain {
            let step = |at| slow_millis(sample, at);
            let request = step(sample.steps.data_request).filter(|at| *at > 0);
            let response = step(sample.steps.data_response).filter(|at| *at > 0);
            if let (Some(request), Some(response)) = (request, response) {
                waits.push((whose(sample), response - request));
            }
            let tenth = |tenth: usize| step(sample.steps.deciles[tenth]);
            let taken = match sample.size {
                1_048_576 => tenth(10).zip(tenth(5)),
                5_242_880 => tenth(2).zip(tenth(1)),
                _ => None,
            };
            if let Some((end, start)) = taken.filter(|(end, start)| end > start) {
                rates.push((whose(sample), 4_194_304 / (end - start)));
            }
        }
        prop_assert_eq!(latencies(&all, None), slow_boxes(waits));
        prop_assert_eq!(throughputs(&all, None), slow_boxes(rates));
    }
}
