//! Torperf's first files: `.data`, one run a line of integers, and `.extradata`, lines of `KEY=value` that say which
//! circuit carried a run.
//!
//! A line of `.data` has 21 numbers, separated by spaces: seconds and microseconds of START and of the eight steps
//! (`0 0` where a step was not reached), the bytes written, the bytes read, and 0 or 1 for a timeout. Later files have
//! ten pairs more, for 0, 10, … 90 % of the payload. Neither source nor size stand in it: the file's name says them.
//!
//! A line of `.extradata` belongs to the run whose DATACOMPLETE is within a second of its USED_AT. Both files are in the
//! order of time, so they are read side by side.

use std::collections::VecDeque;
use std::io::BufRead;
use std::str::SplitAsciiWhitespace;

use super::ImportedRun;
use super::lines::Lines;
use super::outcome::{Signs, outcome};
use super::rule::{Rule, Site, Violation, quoted};
use super::text::{int32, timestamp};
use super::torperf::{Fault, Pairs, REQUIRED, after, check_form, check_start, check_value, once};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, ServerKind, Steps};

/// USED_AT and DATACOMPLETE of one run are no further apart, microseconds.
const NEAR: i64 = 1_000_000;

/// Runs are written down as they end, and a run may last a while: by so much a line may lie before an earlier one,
/// microseconds.
const OVERLAP: i64 = 3_600_000_000;

/// So many lines of `.extradata` are kept while their runs have not come.
const AHEAD: usize = 1_024;

/// What a line of `.data` does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The name of the instance that measured.
    pub source: String,
    /// Bytes of payload, at most an int32.
    pub size: u64,
}

/// The source and the size that a file's name says: of `1mb-siv.data`, `siv` and 1,048,576.
///
/// The size is a number with `kb`, `mb` or `b` (times 1,024 and 1,048,576); the source is the rest.
pub fn named(file: &str) -> (Option<String>, Option<u64>) {
    let stem = file.strip_suffix(".data").or_else(|| file.strip_suffix(".extradata")).unwrap_or(file);
    let (mut source, mut size) = (Vec::new(), None);
    for word in stem.split(['-', '_', '.']).filter(|word| !word.is_empty()) {
        match size_of(word) {
            Some(bytes) if size.is_none() => size = Some(bytes),
            _ => source.push(word),
        }
    }
    (Some(source.join("-")).filter(|source| !source.is_empty()), size)
}

fn size_of(word: &str) -> Option<u64> {
    let word = word.to_ascii_lowercase();
    let (digits, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "kb" | "kib" => 1 << 10,
        "mb" | "mib" => 1 << 20,
        "b" => 1,
        _ => return None,
    };
    int32(digits).filter(|_| !digits.is_empty())?.checked_mul(unit).filter(|size| i32::try_from(*size).is_ok())
}

/// The runs of a `.data` file, one after the other, with what its `.extradata` says of them.
///
/// After a violation it goes on with the next line, but for one of reading (`unreadable`).
#[derive(Debug)]
pub struct Reader<R> {
    lines: Lines<R>,
    about: About,
    extra: Option<Extra<R>>,
    latest: i64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// A reader of a `.data` file and, where there is one, the `.extradata` beside it.
    pub fn new(about: About, data: R, extra: Option<R>) -> Self {
        let extra = extra.map(Extra::new);
        Reader { lines: Lines::new(data, Site::Line), about, extra, latest: i64::MIN, ended: false }
    }

    /// Where the run stands that came last.
    pub fn site(&self) -> Site {
        self.lines.site()
    }

    fn read(&mut self) -> Result<Option<ImportedRun>, Violation> {
        if !self.lines.advance()? {
            // What is left must be well formed too.
            return match &mut self.extra {
                Some(extra) => extra.rest().map(|()| None),
                None => Ok(None),
            };
        }
        let mut run = run(&self.about, self.lines.text()).map_err(|(rule, why)| self.lines.violation(rule, why))?;
        if run.start.0 < self.latest.saturating_sub(OVERLAP) {
            return Err(self.lines.violation(Rule::Order, "the run began more than an hour before an earlier line"));
        }
        self.latest = self.latest.max(run.start.0);
        if let (Some(extra), Some(complete)) = (&mut self.extra, run.steps.data_complete) {
            let complete = run.start.0.saturating_add_unsigned(complete);
            if let Some(said) = extra.near(complete)? {
                run.extra = said;
            }
        }
        Ok(Some(run))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<ImportedRun, Violation>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.read().transpose();
        self.ended = matches!(&item, None | Some(Err(Violation { rule: Rule::Unreadable, .. })));
        item
    }
}

/// Reads one line of `.data`, without its end.
///
/// # Errors
/// The first rule that it breaks, and what is wrong.
pub fn run(about: &About, line: &str) -> Result<ImportedRun, (Rule, String)> {
    check_form(line)?;
    let columns = line.split_ascii_whitespace().count();
    if columns != 21 && columns != 41 {
        let why = format!("the line has {columns} numbers, not 21, nor 41 with those of the payload's tenths");
        return Err((Rule::Columns, why));
    }
    let mut words = line.split_ascii_whitespace();
    let Some(start) = moment(&mut words)? else {
        return Err((Rule::NoStart, "the run has no START, and every run began at some time".to_owned()));
    };
    check_start(start)?;
    let mut step = |name: usize| {
        let at = moment(&mut words)?;
        after(start, at, || REQUIRED.get(name).copied().unwrap_or_default().to_owned())
    };
    let mut steps = Steps {
        socket: step(3)?,
        connect: step(4)?,
        negotiate: step(5)?,
        request: step(6)?,
        response: step(7)?,
        data_request: step(8)?,
        data_response: step(9)?,
        data_complete: step(10)?,
        ..Steps::default()
    };
    let (written, read) = (number(&mut words)?, number(&mut words)?);
    let did_time_out = match words.next() {
        Some("0") => false,
        Some("1") => true,
        other => return Err((Rule::Flag, format!("the timeout is {}, not 0 or 1", quoted(other.unwrap_or_default())))),
    };
    if columns == 41 {
        for (tenth, step) in steps.deciles.iter_mut().take(10).enumerate() {
            *step = after(start, moment(&mut words)?, || format!("the time of {} %", tenth * 10))?;
        }
    }
    let signs =
        Signs { error_code: None, did_time_out, kind: Kind::Download, steps: &steps, size: about.size, written, read };
    Ok(ImportedRun {
        source: about.source.clone(),
        experiment: None,
        id: None,
        tor: None,
        start: UnixMicros(start),
        ended: ImportedRun::last_step(&steps),
        size: about.size,
        written,
        read,
        local_port: None,
        kind: Kind::Download,
        server: ServerKind::Exit,
        outcome: outcome(&signs),
        did_time_out,
        steps,
        extra: Vec::new(),
    })
}

/// A pair of seconds and microseconds, as microseconds since the epoch; `None` for `0 0`.
fn moment(words: &mut SplitAsciiWhitespace<'_>) -> Result<Option<i64>, Fault> {
    let (seconds, micros) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let whole = timestamp(&format!("{seconds}.0"));
    let part = int32(micros).filter(|part| *part < 1_000_000 && !micros.is_empty());
    match whole.zip(part).and_then(|(whole, part)| whole.checked_add_unsigned(part)) {
        Some(at) => Ok(Some(at).filter(|at| *at != 0)),
        None => {
            let pair = quoted(&format!("{seconds} {micros}"));
            Err((Rule::Timestamp, format!("{pair} is not seconds since 1970 and microseconds")))
        }
    }
}

fn number(words: &mut SplitAsciiWhitespace<'_>) -> Result<u64, Fault> {
    let word = words.next().unwrap_or_default();
    let number = int32(word).filter(|_| !word.is_empty());
    number.ok_or_else(|| (Rule::Number, format!("{} is not a number up to 2147483647", quoted(word))))
}

/// Keys and values of one line of `.extradata`.
type Said = Vec<(String, String)>;

/// An `.extradata` file: those of its lines that were read, and whose run has not come.
#[derive(Debug)]
pub struct Extra<R> {
    lines: Lines<R>,
    waiting: VecDeque<(i64, Said)>,
    latest: i64,
    ended: bool,
}

impl<R: BufRead> Extra<R> {
    /// A reader of this file.
    pub fn new(input: R) -> Self {
        Extra { lines: Lines::new(input, Site::ExtraLine), waiting: VecDeque::new(), latest: i64::MIN, ended: false }
    }

    /// What is said of the run that was complete at this time, taken out; nearest first.
    fn near(&mut self, complete: i64) -> Result<Option<Said>, Violation> {
        while !self.ended && self.latest <= complete.saturating_add(NEAR) {
            self.advance()?;
        }
        let long_ago = complete.saturating_sub(OVERLAP);
        while self.waiting.front().is_some_and(|(used_at, _)| *used_at < long_ago) {
            self.waiting.pop_front();
        }
        let distances = self.waiting.iter().map(|(used_at, _)| used_at.abs_diff(complete)).enumerate();
        let nearest = distances.min_by_key(|(_, distance)| *distance);
        let index = nearest.filter(|(_, distance)| *distance <= NEAR.unsigned_abs()).map(|(index, _)| index);
        Ok(index.and_then(|index| self.waiting.remove(index)).map(|(_, said)| said))
    }

    /// Reads what is left, for its violations.
    fn rest(&mut self) -> Result<(), Violation> {
        while !self.ended {
            self.advance()?;
        }
        Ok(())
    }

    /// Reads a line on.
    fn advance(&mut self) -> Result<(), Violation> {
        let more = self.lines.advance();
        self.ended = matches!(more, Ok(false) | Err(Violation { rule: Rule::Unreadable, .. }));
        if !more? {
            return Ok(());
        }
        let said = said(self.lines.text()).map_err(|(rule, why)| self.lines.violation(rule, why))?;
        let Some((used_at, said)) = said else { return Ok(()) };
        if used_at < self.latest.saturating_sub(OVERLAP) {
            let why = "USED_AT lies more than an hour before that of an earlier line";
            return Err(self.lines.violation(Rule::Order, why));
        }
        self.latest = self.latest.max(used_at);
        if self.waiting.len() == AHEAD {
            self.waiting.pop_front();
        }
        self.waiting.push_back((used_at, said));
        Ok(())
    }
}

/// The violations of an `.extradata` file that is read alone.
impl<R: BufRead> Iterator for Extra<R> {
    type Item = Violation;

    fn next(&mut self) -> Option<Violation> {
        while !self.ended {
            self.waiting.clear();
            if let Err(violation) = self.advance() {
                return Some(violation);
            }
        }
        None
    }
}

/// A line of `.extradata`; `None` if it says nothing of a run: copies of BUILDTIMEOUT_SET events, and circuits that were
/// never used.
fn said(line: &str) -> Result<Option<(i64, Said)>, Fault> {
    check_form(line)?;
    if line.split(' ').take(2).any(|word| word == "BUILDTIMEOUT_SET") {
        return Ok(None);
    }
    let (mut said, mut used_at) = (Said::new(), None);
    for pair in Pairs::of(line) {
        let (key, value) = pair?;
        check_value(key, value)?;
        let is_steps = key == "DIDTIMEOUT" || key.starts_with("DATAPERC") || key.starts_with("PARTIAL");
        once(is_steps || REQUIRED.contains(&key) || said.iter().any(|(other, _)| other == key), key)?;
        if key == "USED_AT" {
            used_at = timestamp(value).filter(|used_at| *used_at > 0);
        }
        said.push((key.to_owned(), value.to_owned()));
    }
    Ok(used_at.map(|used_at| (used_at, said)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measurement::{Outcome, Phase};

    const COMPLETE: &str = "1338357901 42336 1338357901 42369 1338357901 42464 1338357901 42589 1338357901 42646 \
        1338357901 43234 1338357901 43298 1338357901 893410 1338357902 500000 75 51416 0";

    fn about() -> About {
        About { source: "siv".to_owned(), size: 51_200 }
    }

    fn read(data: &str, extra: Option<&str>) -> Vec<Result<ImportedRun, (Site, Rule)>> {
        let reader = Reader::new(about(), data.as_bytes(), extra.map(str::as_bytes));
        reader.map(|run| run.map_err(|violation| (violation.site, violation.rule))).collect()
    }

    /// A run that was complete so many seconds after the first.
    fn later(seconds: u64) -> String {
        (0..9)
            .fold(COMPLETE.to_owned(), |line, _| line)
            .replace("1338357901 ", &format!("{} ", 1_338_357_901 + seconds))
            .replace("1338357902 ", &format!("{} ", 1_338_357_902 + seconds))
    }

    #[test]
    fn a_line_becomes_a_run() {
        let runs = read(&format!("{COMPLETE}\n"), None);
        let run = runs[0].as_ref().unwrap();
        assert_eq!(
            (run.start, run.size, run.written, run.read),
            (UnixMicros(1_338_357_901_042_336), 51_200, 75, 51_416)
        );
        assert_eq!((run.steps.socket, run.steps.data_complete, run.ended), (Some(33), Some(1_457_664), 1_457_664));
        assert_eq!((&run.outcome, run.did_time_out, &*run.source), (&Outcome::Complete, false, "siv"));
        assert!(run.extra.is_empty() && run.steps.deciles == [None; 11]);
    }

    #[test]
    fn tenths_and_steps_that_were_not_reached_are_read() {
        let line = format!(
            "{} 75 9000 1 1338357901 900000{}",
            &COMPLETE[..COMPLETE.find(" 1338357902").unwrap()].to_owned(),
            " 0 0".repeat(9)
        );
        let line = line.replace(" 75 9000", " 0 0 75 9000");
        let runs = read(&format!("{line}\n"), None);
        let run = runs[0].as_ref().unwrap();
        assert_eq!((run.steps.deciles[0], run.steps.deciles[1]), (Some(857_664), None));
        assert_eq!((&run.outcome, run.did_time_out), (&Outcome::Timeout(Phase::DataComplete), true));
    }

    #[test]
    fn every_rule_is_told_with_its_line() {
        for (from, to, rule) in [
            (" 0$", "", Rule::Columns),
            (" 0$", " 0 0", Rule::Columns),
            (" 0$", " 2", Rule::Flag),
            ("75", "-75", Rule::Number),
            ("51416", "2147483648", Rule::Number),
            ("42369", "1000000", Rule::Timestamp),
            ("42369", "-1", Rule::Timestamp),
            ("1338357901 42369", "1338357901.5 42369", Rule::Timestamp),
            ("1338357901 42336", "0 0", Rule::NoStart),
            ("1338357901 42336", "253402300800 0", Rule::StartOutOfRange),
            ("42369", "42335", Rule::StepBeforeStart),
            ("1338357902", "1338444302", Rule::StepTooLate),
        ] {
            let line = match from.strip_suffix('$') {
                Some(end) => COMPLETE.strip_suffix(end).unwrap().to_owned() + to,
                None => COMPLETE.replacen(from, to, 1),
            };
            let read = read(&format!("{COMPLETE}\n{line}\n{COMPLETE}\n"), None);
            assert_eq!((read.len(), &read[1]), (3, &Err((Site::Line(2), rule))), "{line}");
            assert!(read[0].is_ok() && read[2].is_ok(), "{line}");
        }
        let of = |file: &str| read(file, None).into_iter().find_map(Result::err);
        assert_eq!(of(COMPLETE), Some((Site::Line(1), Rule::LineEnd)));
        assert_eq!(of(&format!("{COMPLETE}\n\n")), Some((Site::Line(2), Rule::BlankLine)));
        assert_eq!(of(&format!("{}\n{COMPLETE}\n", later(3_601))), Some((Site::Line(2), Rule::Order)));
        assert_eq!(of(&format!("{}\n{COMPLETE}\n", later(3_599))), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn extradata_is_joined_within_a_second() {
        let extra = "BUILDTIMEOUT_SET COMPUTED TOTAL_TIMES=1000 TIMEOUT_MS=1000\n\
            CIRC_ID=1 FAIL_REASONS=TIMEOUT\n\
            CIRC_ID=2 USED_AT=1338357900.9 USED_BY=1\n\
            CIRC_ID=3 USED_AT=1338357902.6 USED_BY=2\n\
            CIRC_ID=4 USED_AT=1338357903.4\n\
            CIRC_ID=5 USED_AT=1338358203.6\n";
        let data: String = [0, 300, 600].map(|after| later(after) + "\n").concat();
        let circuits: Vec<_> = read(&data, Some(extra))
            .into_iter()
            .map(|run| run.unwrap().extra.first().map(|(key, value)| format!("{key}={value}")))
            .collect();
        // The second's USED_AT is 1.1 s off, and the third has none.
        assert_eq!(circuits, [Some("CIRC_ID=3".to_owned()), None, None]);
    }

    #[test]
    fn extradata_has_rules_of_its_own() {
        let good = "CIRC_ID=2 USED_AT=1338357900.9";
        for (line, rule) in [
            ("CIRC_ID=2 USED_AT=1338357900", Rule::Timestamp),
            ("CIRC_ID=x USED_AT=1338357900.9", Rule::Number),
            ("CIRC_ID=2 CIRC_ID=2 USED_AT=1338357900.9", Rule::RepeatedKey),
            ("START=1.0 USED_AT=1338357900.9", Rule::RepeatedKey),
            ("DATAPERC10=1.0 USED_AT=1338357900.9", Rule::RepeatedKey),
            ("CIRC_ID USED_AT=1338357900.9", Rule::NoPair),
            ("CIRC_ID= USED_AT=1338357900.9", Rule::EmptyValue),
            ("CIRC_ID=2  USED_AT=1338357900.9", Rule::Space),
            ("PATH=$1 USED_AT=1338357900.9", Rule::Path),
            ("USED_AT=1338350000.0", Rule::Order),
            ("", Rule::BlankLine),
        ] {
            let extra = format!("{good}\n{line}\n{good}\n");
            let alone: Vec<_> = Extra::new(extra.as_bytes()).map(|fault| (fault.site, fault.rule)).collect();
            assert_eq!(alone, [(Site::ExtraLine(2), rule)], "{line}");
            let joined: Vec<_> =
                read(&format!("{COMPLETE}\n"), Some(&extra)).into_iter().filter_map(Result::err).collect();
            assert_eq!(joined, [(Site::ExtraLine(2), rule)], "{line}");
        }
    }

    #[test]
    fn names_say_source_and_size() {
        for (name, source, size) in [
            ("50kb.data", None, Some(51_200)),
            ("1mb-siv.data", Some("siv"), Some(1_048_576)),
            ("siv-5mb.extradata", Some("siv"), Some(5_242_880)),
            ("torperf-moria-50kb.data", Some("torperf-moria"), Some(51_200)),
            ("siv.data", Some("siv"), None),
            ("9999mb-siv.data", Some("9999mb-siv"), None),
            ("1mb-50kb.data", Some("50kb"), Some(1_048_576)),
        ] {
            assert_eq!(named(name), (source.map(str::to_owned), size), "{name}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(data in any::<String>(), numbers in "[0-9 \n-]{0,200}", extra in any::<String>()) {
            read(&data, Some(&extra));
            read(&format!("{COMPLETE}\n{numbers}"), Some(&format!("USED_AT={numbers}\n{extra}")));
        }
    }
}
