//! Any bytes as a file of Torperf's or OnionPerf's, under a name of each form, packed or not.
//!
//!     RUSTC_BOOTSTRAP=1 cargo fuzz run import_files

#![no_main]

use libfuzzer_sys::fuzz_target;
use perfd_fuzz::import::naming::Promise;
use perfd_fuzz::import::torperf_data::Extra;
use perfd_fuzz::import::{Bytes, ImportedRun, Input, LONGEST_RUN, Rule, open, torperf};

fuzz_target!(|input: &[u8]| {
    // The first byte says which form the file is said to have.
    let Some((form, bytes)) = input.split_first() else { return };
    let name = ["x", "x-51200-2026-11-22.tpf", "50kb-x.data", "x.json.xz", "50kb.extradata"][usize::from(form % 5)];
    let half = bytes.len() / 2;
    let (data, beside) = if *form < 128 { (bytes, None) } else { (&bytes[..half], Some(&bytes[half..])) };
    let extra = beside.map(|beside| Box::new(beside) as Bytes<'_>);
    if let Ok(mut runs) = open(Input { name, bytes: Box::new(data), extra, source: None, size: None }) {
        while let Some(run) = runs.next() {
            match run {
                Ok(run) => {
                    check(&run);
                    Promise::of(name).iter().for_each(|promise| drop(promise.check(&run, &runs.site())));
                }
                Err(violation) => assert!(!violation.to_string().contains(|c: char| c.is_control())),
            }
            runs.take_warnings();
        }
    }
    Extra::new(data).count();
    // The first rule alone, line by line, is what the reader of whole files says.
    let line = String::from_utf8_lossy(data);
    let line = line.lines().next().unwrap_or_default();
    let whole = format!("@type torperf 1.1\n{line}\n");
    let told = torperf::Reader::new(whole.as_bytes()).next();
    if !line.starts_with('@') && line.len() < 60_000 {
        let rule = |told: Option<Result<ImportedRun, Rule>>| told;
        assert_eq!(
            rule(told.map(|run| run.map_err(|violation| violation.rule))),
            rule(Some(torperf::run(line.strip_suffix('\r').unwrap_or(line)).map_err(|(rule, _)| rule))),
        );
    }
});

/// What every run promises, whatever it was read from.
fn check(run: &ImportedRun) {
    let longest = LONGEST_RUN.as_micros() as u64;
    let steps = run.steps.in_order().map(|(_, at)| at);
    let steps = steps.into_iter().chain(run.steps.deciles).chain(run.steps.partials);
    assert_eq!(steps.flatten().max().unwrap_or(0), run.ended);
    assert!(run.ended <= longest && run.start.0 > 0 && run.size <= i32::MAX as u64);
    for (index, (key, value)) in run.extra.iter().enumerate() {
        assert!(!key.is_empty() && !value.is_empty(), "{key}={value}");
        assert!(!value.contains(['=', ' ']) && !key.contains(['=', ' ']), "{key}={value}");
        assert!(run.extra[..index].iter().all(|(other, _)| other != key), "{key} twice");
    }
}
