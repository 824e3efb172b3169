//! Torperf's key=value format, `@type torperf 1.0` and `1.1`, read as strictly as Tor Metrics' own reader does it, and
//! a little more: what it would take for an unknown key (`DATAPERC101`) or never looks at (an endpoint) is refused too.
//!
//! A file is lines `KEY=VALUE KEY=VALUE …` below an annotation. Times are decimal seconds since the epoch and are read
//! to the microsecond; `0.0` is a step that was not reached. START itself must not be `0.0`.

use std::collections::HashSet;
use std::io::BufRead;

use super::lines::Lines;
use super::outcome::{Signs, outcome};
use super::rule::{Rule, Site, Violation, quoted};
use super::text::{endpoint_port, int32, is_onion, is_path, name, timestamp};
use super::{ImportedRun, LONGEST_RUN};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, PARTIALS, RunId, ServerKind, Steps};

/// What every file begins with; a minor version follows.
const ANNOTATION: &str = "@type torperf 1.";

/// The longest run, microseconds.
const LONGEST: i64 = LONGEST_RUN.as_micros() as i64;

/// The year 10000 begins: microseconds since the epoch.
const END_OF_TIME: i64 = 253_402_300_800_000_000;

/// The results of a file, one after the other; memory is that of one line.
///
/// After a violation it goes on with the next line, but for one of reading (`unreadable`).
#[derive(Debug)]
pub struct Reader<R> {
    lines: Lines<R>,
    annotated: bool,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// A reader of what `input` gives.
    pub fn new(input: R) -> Self {
        Reader { lines: Lines::new(input, Site::Line), annotated: false, ended: false }
    }

    /// Where the result stands that came last.
    pub fn site(&self) -> Site {
        self.lines.site()
    }

    /// The next result; `None` at the end.
    fn read(&mut self) -> Result<Option<ImportedRun>, Violation> {
        while self.lines.advance()? {
            let line = self.lines.text();
            if line.starts_with('@') {
                check_annotation(line).map_err(|(rule, why)| self.lines.violation(rule, why))?;
                self.annotated = true;
                continue;
            }
            if !self.annotated {
                // Said once.
                self.annotated = true;
                let why = format!("the file must begin with {ANNOTATION}0 or {ANNOTATION}1");
                return Err(self.lines.violation(Rule::NoAnnotation, why));
            }
            return match run(line) {
                Ok(run) => Ok(Some(run)),
                Err((rule, why)) => Err(self.lines.violation(rule, why)),
            };
        }
        if !self.annotated {
            self.annotated = true;
            let sentence = "the file is empty; without results it still has its annotation".to_owned();
            return Err(Violation { site: Site::File, rule: Rule::NoAnnotation, sentence });
        }
        Ok(None)
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

/// A broken rule, and what is wrong.
pub(super) type Fault = (Rule, String);

fn check_annotation(line: &str) -> Result<(), Fault> {
    let minor = line.strip_prefix(ANNOTATION).unwrap_or_default();
    if !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(());
    }
    Err((Rule::Annotation, format!("{} is not {ANNOTATION}0 or {ANNOTATION}1", quoted(line))))
}

/// Reads one line, without its end.
///
/// # Errors
/// The first rule that it breaks, and what is wrong.
pub fn run(line: &str) -> Result<ImportedRun, (Rule, String)> {
    check_form(line)?;
    let mut draft = Draft::default();
    for pair in Pairs::of(line) {
        let (key, value) = pair?;
        draft.take(key, value)?;
    }
    draft.finish()
}

/// The pairs of a line: words of `KEY=VALUE`, one space between them.
pub(super) struct Pairs<'a>(Option<&'a str>);

impl<'a> Pairs<'a> {
    pub(super) fn of(line: &'a str) -> Self {
        Pairs(Some(line))
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a str, &'a str), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0?;
        let (word, rest) = cut(rest, b' ').map_or((rest, None), |(word, rest)| (word, Some(rest)));
        self.0 = rest;
        Some(pair(word))
    }
}

fn pair(word: &str) -> Result<(&str, &str), Fault> {
    if word.is_empty() {
        return Err((Rule::Space, "one space stands between pairs, and none at the ends".to_owned()));
    }
    let Some((key, value)) = cut(word, b'=') else {
        return Err((Rule::NoPair, format!("{} has no =", quoted(word))));
    };
    if key.is_empty() {
        return Err((Rule::EmptyKey, format!("{} has no key", quoted(word))));
    }
    if value.is_empty() {
        return Err((Rule::EmptyValue, format!("{} has no value", quoted(key))));
    }
    if memchr::memchr(b'=', value.as_bytes()).is_some() {
        return Err((Rule::SecondEquals, format!("{} has a second =", quoted(word))));
    }
    Ok((key, value))
}

/// What stands before and after the first of this ASCII character. The library's own is several times slower.
fn cut(text: &str, at: u8) -> Option<(&str, &str)> {
    let index = memchr::memchr(at, text.as_bytes())?;
    Some((text.get(..index)?, text.get(index + 1..)?))
}

/// What can be said of a line before it is taken apart.
pub(super) fn check_form(line: &str) -> Result<(), Fault> {
    if line.is_empty() {
        return Err((Rule::BlankLine, "a line must not be empty".to_owned()));
    }
    let is_control = |byte: u8| byte < b' ' || byte == 0x7f;
    // Without an early end, so that many bytes are looked at at once.
    let plain = line.bytes().fold(true, |plain, byte| plain & !is_control(byte) & byte.is_ascii());
    if !plain && let Some(control) = line.chars().find(|c| c.is_control()) {
        return Err((Rule::ControlCharacter, format!("the line holds the control character {control:?}")));
    }
    Ok(())
}

/// The keys of the format that must be there, with START first among the times.
pub(super) const REQUIRED: [&str; 13] = [
    "SOURCE",
    "FILESIZE",
    "START",
    "SOCKET",
    "CONNECT",
    "NEGOTIATE",
    "REQUEST",
    "RESPONSE",
    "DATAREQUEST",
    "DATARESPONSE",
    "DATACOMPLETE",
    "WRITEBYTES",
    "READBYTES",
];

/// A line as far as it was read. Times are microseconds since the epoch, `None` where they are `0.0`.
#[derive(Default)]
struct Draft<'a> {
    /// Which of [`REQUIRED`] are there.
    seen: u16,
    /// Which of the percentages are there.
    percents: u128,
    /// Which of [`PARTIALS`] are there.
    partials_seen: u16,
    source: &'a str,
    /// FILESIZE, WRITEBYTES and READBYTES.
    size: u64,
    written: u64,
    read: u64,
    /// START, and the steps in the order of [`REQUIRED`].
    times: [Option<i64>; 9],
    did_time_out: Option<bool>,
    deciles: [Option<i64>; 11],
    partials: [Option<i64>; PARTIALS.len()],
    experiment: Option<&'a str>,
    id: Option<RunId>,
    revision: bool,
    extra: Vec<(&'a str, &'a str)>,
}

impl<'a> Draft<'a> {
    fn take(&mut self, key: &'a str, value: &'a str) -> Result<(), Fault> {
        match key {
            "SOURCE" => {
                self.require(0, key)?;
                self.source = value;
            }
            "FILESIZE" => {
                self.require(1, key)?;
                self.size = number(key, value)?;
            }
            "START" => self.step(0, key, value)?,
            "SOCKET" => self.step(1, key, value)?,
            "CONNECT" => self.step(2, key, value)?,
            "NEGOTIATE" => self.step(3, key, value)?,
            "REQUEST" => self.step(4, key, value)?,
            "RESPONSE" => self.step(5, key, value)?,
            "DATAREQUEST" => self.step(6, key, value)?,
            "DATARESPONSE" => self.step(7, key, value)?,
            "DATACOMPLETE" => self.step(8, key, value)?,
            "WRITEBYTES" => {
                self.require(11, key)?;
                self.written = number(key, value)?;
            }
            "READBYTES" => {
                self.require(12, key)?;
                self.read = number(key, value)?;
            }
            "DIDTIMEOUT" => {
                let flag = match value {
                    "0" => false,
                    "1" => true,
                    _ => return Err((Rule::Flag, format!("DIDTIMEOUT is {}, not 0 or 1", quoted(value)))),
                };
                once(self.did_time_out.replace(flag).is_some(), key)?;
            }
            "EXPERIMENT" => once(self.experiment.replace(value).is_some(), key)?,
            "REVISION" => once(std::mem::replace(&mut self.revision, true), key)?,
            "RUN_ID" => match RunId::parse(value) {
                Some(id) => once(self.id.replace(id).is_some(), key)?,
                None => self.extra.push((key, value)),
            },
            _ => self.take_further(key, value)?,
        }
        Ok(())
    }

    /// A key that not every line has.
    fn take_further(&mut self, key: &'a str, value: &'a str) -> Result<(), Fault> {
        if let Some(percent) = key.strip_prefix("DATAPERC") {
            return self.percent(key, percent, value);
        }
        if let Some(bytes) = key.strip_prefix("PARTIAL") {
            return self.partial(key, bytes, value);
        }
        check_value(key, value)?;
        self.extra.push((key, value));
        Ok(())
    }

    fn require(&mut self, index: usize, key: &str) -> Result<(), Fault> {
        let before = self.seen;
        self.seen |= 1 << index;
        once(before == self.seen, key)
    }

    fn step(&mut self, index: usize, key: &str, value: &str) -> Result<(), Fault> {
        self.require(index + 2, key)?;
        let at = time(key, value)?;
        if let Some(time) = self.times.get_mut(index) {
            *time = at;
        }
        Ok(())
    }

    fn percent(&mut self, key: &'a str, number: &str, value: &'a str) -> Result<(), Fault> {
        let percent = int32(number).filter(|percent| *percent <= 100);
        let Some(percent) = percent else {
            return Err((Rule::Percent, format!("{} is not DATAPERC and a number from 0 to 100", quoted(key))));
        };
        let at = time(key, value)?;
        let tenth = usize::try_from(percent / 10).unwrap_or(usize::MAX);
        match self.deciles.get_mut(tenth) {
            // A decile that was reached, in the form in which it is written again.
            Some(decile) if percent % 10 == 0 && at.is_some() && is_canonical(number) => {
                once(self.percents & 1 << percent != 0, key)?;
                self.percents |= 1 << percent;
                *decile = at;
            }
            _ => self.extra.push((key, value)),
        }
        Ok(())
    }

    fn partial(&mut self, key: &'a str, number: &str, value: &'a str) -> Result<(), Fault> {
        let Some(bytes) = int32(number) else {
            return Err((Rule::Partial, format!("{} is not PARTIAL and a number of bytes", quoted(key))));
        };
        let at = time(key, value)?;
        let index = PARTIALS.iter().position(|partial| *partial == bytes).filter(|_| at.is_some());
        match index.filter(|_| is_canonical(number)).and_then(|index| Some((index, self.partials.get_mut(index)?))) {
            Some((index, partial)) => {
                once(self.partials_seen & 1 << index != 0, key)?;
                self.partials_seen |= 1 << index;
                *partial = at;
            }
            None => self.extra.push((key, value)),
        }
        Ok(())
    }

    fn finish(self) -> Result<ImportedRun, Fault> {
        if let Some((_, key)) = REQUIRED.iter().enumerate().find(|(index, _)| self.seen & 1 << index == 0) {
            return Err((Rule::MissingKey, format!("{key} is missing")));
        }
        self.check_repeated()?;
        let [start, socket, connect, negotiate, request, response, data_request, data_response, data_complete] =
            self.times;
        let Some(start) = start else {
            return Err((Rule::NoStart, "START is 0.0, and every run began at some time".to_owned()));
        };
        check_start(start)?;
        let mut steps = Steps {
            socket: after(start, socket, || "SOCKET".to_owned())?,
            connect: after(start, connect, || "CONNECT".to_owned())?,
            negotiate: after(start, negotiate, || "NEGOTIATE".to_owned())?,
            request: after(start, request, || "REQUEST".to_owned())?,
            response: after(start, response, || "RESPONSE".to_owned())?,
            data_request: after(start, data_request, || "DATAREQUEST".to_owned())?,
            data_response: after(start, data_response, || "DATARESPONSE".to_owned())?,
            data_complete: after(start, data_complete, || "DATACOMPLETE".to_owned())?,
            ..Steps::default()
        };
        for (tenth, (step, at)) in steps.deciles.iter_mut().zip(self.deciles).enumerate() {
            *step = after(start, at, || format!("DATAPERC{}", tenth * 10))?;
        }
        for (bytes, (step, at)) in PARTIALS.iter().zip(steps.partials.iter_mut().zip(self.partials)) {
            *step = after(start, at, || format!("PARTIAL{bytes}"))?;
        }
        let value = |wanted: &str| self.extra.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        let kind = value("KIND").and_then(Kind::parse).unwrap_or_default();
        let by_name = value("ENDPOINTREMOTE").filter(|remote| is_onion(remote)).map(|_| ServerKind::Onion);
        let server = value("SERVER").and_then(ServerKind::parse).or(by_name).unwrap_or_default();
        let did_time_out = self.did_time_out.unwrap_or(false);
        let signs = Signs {
            error_code: value("ERRORCODE"),
            did_time_out,
            kind,
            steps: &steps,
            size: self.size,
            written: self.written,
            read: self.read,
        };
        Ok(ImportedRun {
            source: name(self.source),
            experiment: self.experiment.map(name),
            id: self.id,
            tor: value("TOR").map(name),
            start: UnixMicros(start),
            ended: ImportedRun::last_step(&steps),
            size: self.size,
            written: self.written,
            read: self.read,
            local_port: value("ENDPOINTLOCAL").and_then(endpoint_port),
            kind,
            server,
            outcome: outcome(&signs),
            did_time_out,
            steps,
            extra: self.extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        })
    }

    /// Looks for a key that stands twice in `extra`, or there and in its field.
    fn check_repeated(&self) -> Result<(), Fault> {
        let mut many = HashSet::new();
        for (index, (key, _)) in self.extra.iter().enumerate() {
            let before = if self.extra.len() <= 64 {
                self.extra.iter().take(index).any(|(other, _)| other == key)
            } else {
                !many.insert(*key)
            };
            once(before || self.is_in_field(key), key)?;
        }
        Ok(())
    }

    /// Whether a key that is in `extra` for one of its values is in its field with another.
    fn is_in_field(&self, key: &str) -> bool {
        if let Some(percent) = key.strip_prefix("DATAPERC").filter(|number| is_canonical(number)).and_then(int32) {
            return percent <= 100 && self.percents & 1 << percent != 0;
        }
        if let Some(bytes) = key.strip_prefix("PARTIAL").filter(|number| is_canonical(number)).and_then(int32) {
            let index = PARTIALS.iter().position(|partial| *partial == bytes);
            return index.is_some_and(|index| self.partials_seen & 1 << index != 0);
        }
        key == "RUN_ID" && self.id.is_some()
    }
}

/// Checks the value of a key that not every line has, and that is no step.
pub(super) fn check_value(key: &str, value: &str) -> Result<(), Fault> {
    match key {
        "LAUNCH" | "USED_AT" => drop(time(key, value)?),
        "TIMEOUT" | "CIRC_ID" | "USED_BY" => drop(number(key, value)?),
        "PATH" if !is_path(value) => {
            let why = format!("PATH is {}, not $ and 40 hexadecimal digits for each relay", quoted(value));
            return Err((Rule::Path, why));
        }
        "BUILDTIMES" if value.split(',').any(|time| timestamp(time).is_none()) => {
            let why = format!("BUILDTIMES is {}, not decimal seconds for each relay", quoted(value));
            return Err((Rule::BuildTimes, why));
        }
        "QUANTILE" if !value.parse::<f64>().is_ok_and(f64::is_finite) => {
            return Err((Rule::Quantile, format!("QUANTILE is {}, not a number", quoted(value))));
        }
        "ENDPOINTLOCAL" | "ENDPOINTPROXY" | "ENDPOINTREMOTE" if endpoint_port(value).is_none() => {
            return Err((Rule::Endpoint, format!("{key} is {}, not host:ip:port", quoted(value))));
        }
        _ => {}
    }
    Ok(())
}

/// Whether a number is written without needless zeros.
fn is_canonical(number: &str) -> bool {
    number == "0" || !number.starts_with('0')
}

pub(super) fn once(again: bool, key: &str) -> Result<(), Fault> {
    if again { Err((Rule::RepeatedKey, format!("{} stands twice", quoted(key)))) } else { Ok(()) }
}

fn number(key: &str, value: &str) -> Result<u64, Fault> {
    int32(value).ok_or_else(|| (Rule::Number, format!("{key} is {}, not a number up to 2147483647", quoted(value))))
}

/// Microseconds since the epoch; `None` for `0.0`, which is a step that was not reached.
fn time(key: &str, value: &str) -> Result<Option<i64>, Fault> {
    match timestamp(value) {
        Some(at) => Ok(Some(at).filter(|at| *at != 0)),
        None => {
            let why = "decimal seconds since 1970 with one point, such as 1493397365.93, or 0.0";
            Err((Rule::Timestamp, format!("{key} is {}, not {why}", quoted(value))))
        }
    }
}

/// START must be of the year 9999 or before, in microseconds since the epoch.
pub(super) fn check_start(start: i64) -> Result<(), Fault> {
    if start < END_OF_TIME {
        return Ok(());
    }
    Err((Rule::StartOutOfRange, "START is in the year 10000 or later, and years have four digits".to_owned()))
}

/// A step as microseconds after START.
pub(super) fn after(start: i64, at: Option<i64>, key: impl Fn() -> String) -> Result<Option<u64>, Fault> {
    let Some(at) = at else { return Ok(None) };
    let after = at.saturating_sub(start);
    if after > LONGEST {
        let hours = LONGEST_RUN.as_secs() / 3600;
        return Err((Rule::StepTooLate, format!("{} lies more than {hours} hours after START", key())));
    }
    let before = || (Rule::StepBeforeStart, format!("{} lies {} µs before START", key(), after.unsigned_abs()));
    u64::try_from(after).map(Some).map_err(|_| before())
}

#[cfg(test)]
mod tests;
