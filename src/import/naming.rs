//! The names under which CollecTor fetches files, and what they promise of what is in them.

use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::ImportedRun;
use super::rule::{Rule, Site, Violation, quoted};

/// How the name of a day of OnionPerf's ends.
const ANALYSIS: &str = ".onionperf.analysis.json.xz";

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// What the name `SOURCE-FILESIZE-YYYY-MM-DD.tpf` promises of each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// SOURCE.
    pub source: String,
    /// FILESIZE, bytes.
    pub size: u64,
    /// The first microsecond of the day on which each run began, UTC.
    midnight: i64,
    date: Date,
}

impl Promise {
    /// What this name promises; `None` if CollecTor doesn't take it.
    pub fn of(name: &str) -> Option<Promise> {
        let stem = name.strip_suffix(".tpf")?;
        let (rest, date) = stem.split_at_checked(stem.len().checked_sub("-2026-11-22".len())?)?;
        let (date, midnight) = day(date.strip_prefix('-')?)?;
        let (source, size) = rest.rsplit_once('-')?;
        let is_source = !source.is_empty() && source.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b));
        let is_size = !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit());
        let size = size.parse().ok().filter(|_| is_source && is_size)?;
        Some(Promise { source: source.to_owned(), size, midnight, date })
    }

    /// Which promises a run breaks.
    pub fn check(&self, run: &ImportedRun, site: &Site) -> Vec<Violation> {
        let mut broken = Vec::new();
        let mut tell = |rule, sentence| broken.push(Violation { site: site.clone(), rule, sentence });
        if run.source != self.source {
            let why = format!("SOURCE is {}, and the file is named for {}", quoted(&run.source), quoted(&self.source));
            tell(Rule::NameSource, why);
        }
        if run.size != self.size {
            tell(Rule::NameSize, format!("FILESIZE is {}, and the file is named for {}", run.size, self.size));
        }
        if run.start.0.div_euclid(DAY) != self.midnight.div_euclid(DAY) {
            tell(Rule::NameDate, format!("START is {}, and the file is named for {}", run.start, self.date));
        }
        broken
    }
}

/// Whether this is the name of a day of OnionPerf's: `YYYY-MM-DD.onionperf.analysis.json.xz`.
pub fn is_analysis(name: &str) -> bool {
    name.strip_suffix(ANALYSIS).is_some_and(|date| day(date).is_some())
}

fn day(text: &str) -> Option<(Date, i64)> {
    let form = text.len() == 10
        && text.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
    let date: Date = if form { text.parse().ok()? } else { return None };
    Some((date, date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMicros;
    use crate::import::torperf;

    #[test]
    fn names_promise_source_size_and_day() {
        let promise = Promise::of("op-nl.2-51200-2026-11-22.tpf").unwrap();
        assert_eq!((&*promise.source, promise.size), ("op-nl.2", 51_200));
        for other in [
            "op-51200-2026-11-22.json",
            "op-51200-2026-11-32.tpf",
            "op-51200-2026-1-22.tpf",
            "51200-2026-11-22.tpf",
            "-51200-2026-11-22.tpf",
            "op-50kb-2026-11-22.tpf",
            "op_x-51200-2026-11-22.tpf",
            "op-51200.tpf",
            ".tpf",
            "é-2026-11-22.tpf",
        ] {
            assert_eq!(Promise::of(other), None, "{other}");
        }
    }

    #[test]
    fn broken_promises_are_told() {
        let line = "SOURCE=op FILESIZE=51200 START=1795305600.0 SOCKET=0.0 CONNECT=0.0 NEGOTIATE=0.0 REQUEST=0.0 \
            RESPONSE=0.0 DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0";
        let mut run = torperf::run(line).unwrap();
        let broken = |name: &str, run: &ImportedRun| -> Vec<Rule> {
            Promise::of(name).unwrap().check(run, &Site::Line(2)).into_iter().map(|violation| violation.rule).collect()
        };
        assert_eq!(broken("op-51200-2026-11-22.tpf", &run), []);
        assert_eq!(broken("po-51200-2026-11-22.tpf", &run), [Rule::NameSource]);
        assert_eq!(broken("op-51201-2026-11-22.tpf", &run), [Rule::NameSize]);
        run.start = UnixMicros(1_795_305_599_999_999);
        assert_eq!(broken("op-51200-2026-11-22.tpf", &run), [Rule::NameDate]);
        run.start = UnixMicros(1_795_305_600_000_000 + DAY);
        assert_eq!(broken("op-5-2026-11-22.tpf", &run), [Rule::NameSize, Rule::NameDate]);
    }

    #[test]
    fn a_day_of_onionperf_has_this_very_ending() {
        assert!(is_analysis("2026-11-22.onionperf.analysis.json.xz"));
        for other in [
            "2026-11-22.onionperf.analysis.json",
            "2026-11-22.op-nl.onionperf.analysis.json.xz",
            "2026-11-22-onionperf.analysis.json.xz",
            "onionperf.analysis.json.xz",
            "2026-13-22.onionperf.analysis.json.xz",
        ] {
            assert!(!is_analysis(other), "{other}");
        }
    }
}
