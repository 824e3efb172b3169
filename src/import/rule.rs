//! What a file can break, and where.

use std::fmt;

/// A rule of a format. Its word is stable: scripts may look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// The file can't be read, or not unpacked.
    Unreadable,
    /// It is none of the formats that are known.
    Format,
    /// A line is longer than [`LINE_LIMIT`](super::LINE_LIMIT).
    LongLine,
    /// The last line has no line end: the file may be cut off.
    LineEnd,
    /// A line is not UTF-8.
    Encoding,
    /// A line holds a control character.
    ControlCharacter,
    /// A line that begins with `@` is not `@type torperf 1.x`.
    Annotation,
    /// A result stands before any annotation, or the file is empty.
    NoAnnotation,
    /// A line is empty.
    BlankLine,
    /// A line begins or ends with a space, or has two in a row.
    Space,
    /// A word has no `=`.
    NoPair,
    /// A word begins with `=`.
    EmptyKey,
    /// Nothing stands after a `=`.
    EmptyValue,
    /// A value holds a `=`.
    SecondEquals,
    /// A key stands twice in a line.
    RepeatedKey,
    /// A key that must be there is not.
    MissingKey,
    /// A time is not decimal seconds with one `.`, or beyond what can be kept.
    Timestamp,
    /// A number is no int32, or negative, or not digits alone.
    Number,
    /// DIDTIMEOUT is neither 0 nor 1.
    Flag,
    /// The number in `DATAPERCn` is not 0 to 100.
    Percent,
    /// The number in `PARTIALn` is no int32.
    Partial,
    /// PATH is no list of `$` and 40 hexadecimal digits.
    Path,
    /// BUILDTIMES is no list of decimal seconds.
    BuildTimes,
    /// QUANTILE is no number.
    Quantile,
    /// An endpoint is not `host:ip:port`.
    Endpoint,
    /// START is `0.0`: every run began at some time.
    NoStart,
    /// START is in the year 10000 or later: dates have four digits of a year.
    StartOutOfRange,
    /// A step lies before START.
    StepBeforeStart,
    /// A step lies more than [`LONGEST_RUN`](super::LONGEST_RUN) after START.
    StepTooLate,
    /// A line of `.data` has not 21 numbers, or 21 and pairs.
    Columns,
    /// Lines are not in the order of time.
    Order,
    /// Neither the file's name nor who reads it says the size.
    NoSize,
    /// Neither the file's name nor who reads it says the source.
    NoSource,
    /// The JSON is broken.
    Json,
    /// A value of a JSON document has another type than it must have.
    Type,
    /// A value that must be in a JSON document is missing.
    Missing,
    /// The document is larger than is taken.
    TooLarge,
    /// The document's `type` or `version` is none that is known.
    Version,
    /// The nickname is not letters, digits and hyphens.
    Nick,
    /// A name or an endpoint is empty or holds a space.
    Name,
    /// The seconds of a hop are no JSON float.
    PathSeconds,
    /// There are streams of tor, but no circuits.
    NoCircuits,
    /// There is no measurement.
    NoMeasurement,
    /// OnionPerf's plots lack the time of the first byte (a warning).
    FirstByte,
    /// The file's name has not the form that CollecTor takes.
    FileName,
    /// A result's SOURCE is not that of the file's name.
    NameSource,
    /// A result's FILESIZE is not that of the file's name.
    NameSize,
    /// A result's START is not on the UTC day of the file's name.
    NameDate,
}

impl Rule {
    /// Every rule, with its word.
    pub const ALL: [(Rule, &'static str); 48] = [
        (Rule::Unreadable, "unreadable"),
        (Rule::Format, "format"),
        (Rule::LongLine, "long-line"),
        (Rule::LineEnd, "line-end"),
        (Rule::Encoding, "encoding"),
        (Rule::ControlCharacter, "control-character"),
        (Rule::Annotation, "annotation"),
        (Rule::NoAnnotation, "no-annotation"),
        (Rule::BlankLine, "blank-line"),
        (Rule::Space, "space"),
        (Rule::NoPair, "no-pair"),
        (Rule::EmptyKey, "empty-key"),
        (Rule::EmptyValue, "empty-value"),
        (Rule::SecondEquals, "second-equals"),
        (Rule::RepeatedKey, "repeated-key"),
        (Rule::MissingKey, "missing-key"),
        (Rule::Timestamp, "timestamp"),
        (Rule::Number, "number"),
        (Rule::Flag, "flag"),
        (Rule::Percent, "percent"),
        (Rule::Partial, "partial"),
        (Rule::Path, "path"),
        (Rule::BuildTimes, "build-times"),
        (Rule::Quantile, "quantile"),
        (Rule::Endpoint, "endpoint"),
        (Rule::NoStart, "no-start"),
        (Rule::StartOutOfRange, "start-out-of-range"),
        (Rule::StepBeforeStart, "step-before-start"),
        (Rule::StepTooLate, "step-too-late"),
        (Rule::Columns, "columns"),
        (Rule::Order, "order"),
        (Rule::NoSize, "no-size"),
        (Rule::NoSource, "no-source"),
        (Rule::Json, "json"),
        (Rule::Type, "type"),
        (Rule::Missing, "missing"),
        (Rule::TooLarge, "too-large"),
        (Rule::Version, "version"),
        (Rule::Nick, "nick"),
        (Rule::Name, "name"),
        (Rule::PathSeconds, "path-seconds"),
        (Rule::NoCircuits, "no-circuits"),
        (Rule::NoMeasurement, "no-measurement"),
        (Rule::FirstByte, "first-byte"),
        (Rule::FileName, "file-name"),
        (Rule::NameSource, "name-source"),
        (Rule::NameSize, "name-size"),
        (Rule::NameDate, "name-date"),
    ];

    /// The rule's word, such as `empty-value`.
    pub fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Where in a file something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    /// The file as a whole.
    File,
    /// A line, counted from 1.
    Line(u64),
    /// A line of the `.extradata` file that goes with a `.data` file.
    ExtraLine(u64),
    /// A place in a JSON document, such as `data.op-nl.tgen.streams["1:2"].unix_ts_start`.
    Json(String),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::File => Ok(()),
            Site::Line(line) | Site::ExtraLine(line) => write!(f, "{line}"),
            Site::Json(path) => f.write_str(path),
        }
    }
}

/// One departure from a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where it is.
    pub site: Site,
    /// Which rule is broken.
    pub rule: Rule,
    /// What is wrong there, a sentence for people. It may quote the file, at most 80 characters of it, escaped.
    pub sentence: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.site != Site::File {
            write!(f, "{}: ", self.site)?;
        }
        write!(f, "{}: {}", self.rule.word(), self.sentence)
    }
}

impl std::error::Error for Violation {}

/// What a file says, fit for one line of a message: quoted, escaped, and cut after 80 characters.
pub(super) fn quoted(text: &str) -> String {
    let mut chars = text.chars();
    let begin: String = chars.by_ref().take(80).collect();
    let more = if chars.next().is_some() { "…" } else { "" };
    format!("{begin:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_rules_match_and_are_distinct() {
        let mut words = Vec::new();
        for (rule, word) in Rule::ALL {
            assert_eq!(rule.word(), word);
            assert!(!words.contains(&word), "{word}");
            words.push(word);
        }
    }

    #[test]
    fn what_is_quoted_stays_short_and_on_its_line() {
        assert_eq!(quoted("a\nb\u{1b}"), r#""a\nb\u{1b}""#);
        assert_eq!(quoted(&"x".repeat(81)), format!("\"{}\"…", "x".repeat(80)));
    }
}
