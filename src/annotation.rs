//! Notes on results: what somebody knows of a run, or of a time, that no measurement tells (no I/O).
//!
//! A note is kept for ever. What was wrong is put right by another one that replaces it.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMicros;
use crate::measurement::{ResultRow, RunId};

/// The longest note, in characters.
pub const LONGEST_NOTE: usize = 2000;

/// The most tags of one note.
pub const MOST_TAGS: usize = 16;

/// The longest tag, in characters.
pub const LONGEST_TAG: usize = 32;

/// The longest name of an author, a source, an experiment or a tor, in characters.
pub const LONGEST_NAME: usize = 100;

/// The last moment that can be written with a year of four digits.
const LAST_MOMENT: i64 = 253_402_300_799_999_999;

/// What a note is about. Where a name is absent, it is about all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The run; `None` where it is about a time.
    pub run: Option<RunId>,
    /// The name of the instance.
    pub source: Option<String>,
    /// The experiment's name.
    pub experiment: Option<String>,
    /// The name of the tor.
    pub tor: Option<String>,
    /// The first moment (of a run: its START).
    pub since: UnixMicros,
    /// The last moment, included.
    pub until: UnixMicros,
}

impl About {
    /// What a note on this run is about: the run, with its names and its time.
    pub fn run(row: &ResultRow) -> Self {
        let run = &row.measurement;
        let ended = i64::try_from(run.ended).unwrap_or(i64::MAX);
        About {
            run: Some(run.id.clone()),
            source: Some(row.source.clone()),
            experiment: Some(row.experiment.clone()),
            tor: Some(row.tor.clone()),
            since: run.start,
            until: UnixMicros(run.start.0.saturating_add(ended)),
        }
    }
}

/// A note to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAnnotation {
    /// Who wrote it: the name of a token, or of a user.
    pub author: String,
    /// When it was written.
    pub created: UnixMicros,
    /// What it is about.
    pub about: About,
    /// The note itself.
    pub note: String,
    /// Its tags, in alphabetical order.
    pub tags: Vec<String>,
    /// The number of the annotation that it replaces.
    pub replaces: Option<i64>,
}

/// A note that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Its number.
    pub id: i64,
    /// Its place in the sequence of revisions that it shares with the results.
    pub revision: i64,
    /// The number of the annotation that took its place.
    pub replaced_by: Option<i64>,
    /// What was written.
    pub written: NewAnnotation,
}

/// A note as somebody sends it: `POST /annotations`, or the options of `perfd annotate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// The run that it is about: its name, or the beginning of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Or the time: its first moment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// and its last one; the first, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Of a time: only of this source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Of a time: only of this experiment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// Of a time: only through this tor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tor: Option<String>,
    /// The note.
    pub note: String,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The number of the annotation that it replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<i64>,
}

/// What a draft is about, where a run is still to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A run, by its name or the beginning of it.
    Run(String),
    /// A time.
    Time(About),
}

impl Draft {
    /// Checks what was sent, and gives what it is about.
    ///
    /// # Errors
    /// A sentence that names what is wrong, and what it must be.
    pub fn check(&self) -> Result<Subject, String> {
        check_note(&self.note)?;
        if self.tags.len() > MOST_TAGS {
            return Err(format!("there are {} tags; at most {MOST_TAGS} are kept", self.tags.len()));
        }
        self.tags.iter().try_for_each(|tag| check_tag(tag))?;
        let names = [("source", &self.source), ("experiment", &self.experiment), ("tor", &self.tor)];
        for (key, name) in names.iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
            check_name(key, name)?;
        }
        let Some(run) = &self.run else { return self.time().map(Subject::Time) };
        let others = [("since", &self.since), ("until", &self.until)].into_iter().chain(names);
        if let Some((key, _)) = others.into_iter().find(|(_, value)| value.is_some()) {
            return Err(format!("{key} goes with a time; a run has its own"));
        }
        Ok(Subject::Run(run.clone()))
    }

    /// The note, about this, by its author.
    pub fn written(self, about: About, author: String, created: UnixMicros) -> NewAnnotation {
        let mut tags = self.tags;
        tags.sort();
        tags.dedup();
        NewAnnotation { author, created, about, note: self.note, tags, replaces: self.replaces }
    }

    fn time(&self) -> Result<About, String> {
        let Some(since) = &self.since else {
            return Err("say what it is about: run, or since (and until)".to_owned());
        };
        let since = moment("since", since)?;
        let until = self.until.as_ref().map_or(Ok(since), |until| moment("until", until))?;
        if until < since {
            return Err(format!("until is {until}, which is before since, {since}"));
        }
        let (source, experiment, tor) = (self.source.clone(), self.experiment.clone(), self.tor.clone());
        Ok(About { run: None, source, experiment, tor, since, until })
    }
}

/// Whether `text` may be a tag.
///
/// # Errors
/// What a tag must be.
pub fn check_tag(text: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=LONGEST_TAG).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("{text:?} is no tag: it must be 1 to {LONGEST_TAG} of a-z, 0-9 and -"))
}

/// Whether `text` may be a name (of an author, a source, an experiment, a tor).
///
/// # Errors
/// What it must be.
pub fn check_name(key: &str, text: &str) -> Result<(), String> {
    let length = text.chars().count();
    if !(1..=LONGEST_NAME).contains(&length) {
        return Err(format!("{key} has {length} characters; it must have 1 to {LONGEST_NAME}"));
    }
    match text.chars().find(|c| steers(*c)) {
        Some(c) => Err(format!("{key} has the character {}, which may not stand there", c.escape_unicode())),
        None => Ok(()),
    }
}

fn check_note(text: &str) -> Result<(), String> {
    let length = text.chars().count();
    if length > LONGEST_NOTE || text.trim().is_empty() {
        return Err(format!("the note has {length} characters; it must have 1 to {LONGEST_NOTE}, and say something"));
    }
    match text.chars().find(|c| steers(*c) && *c != '\n') {
        Some(c) => Err(format!("the note has the character {}, which may not stand there", c.escape_unicode())),
        None => Ok(()),
    }
}

/// Characters that steer a terminal or turn the text around them: controls, other ends of a line, directions.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn moment(key: &str, text: &str) -> Result<UnixMicros, String> {
    let moment = UnixMicros::parse(text).filter(|moment| (0..=LAST_MOMENT).contains(&moment.0));
    let must = "it must be a time such as 2026-11-22T10:00:00Z, 2026-11-22 or 1795341600";
    moment.ok_or_else(|| format!("{key} is {text:?}; {must}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(change: impl FnOnce(&mut Draft)) -> Draft {
        let (since, note) = (Some("2026-11-22".to_owned()), "tor upgraded".to_owned());
        let mut draft = Draft { since, note, ..Draft::default() };
        change(&mut draft);
        draft
    }

    #[test]
    fn a_time_or_a_run_is_annotated() {
        let moment = UnixMicros::parse("2026-11-22").unwrap();
        let about = About { run: None, source: None, experiment: None, tor: None, since: moment, until: moment };
        assert_eq!(draft(|_| {}).check(), Ok(Subject::Time(about.clone())));
        let later = draft(|d| (d.until, d.tor) = (Some("1795341600".to_owned()), Some("main".to_owned())));
        let until = UnixMicros(1_795_341_600_000_000);
        assert_eq!(later.check(), Ok(Subject::Time(About { until, tor: Some("main".to_owned()), ..about.clone() })));
        let run = draft(|d| (d.since, d.run) = (None, Some("abcdef".to_owned())));
        assert_eq!(run.check(), Ok(Subject::Run("abcdef".to_owned())));
        let tagged = draft(|d| d.tags = ["b", "a", "b"].map(str::to_owned).to_vec());
        assert_eq!(tagged.written(about, "me".to_owned(), moment).tags, ["a", "b"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Change = fn(&mut Draft);
        let cases: [(Change, &str); 19] = [
            (|d| d.note.clear(), "the note has 0 characters"),
            (|d| d.note = " \n ".to_owned(), "and say something"),
            (|d| d.note = "x".repeat(2001), "the note has 2001 characters; it must have 1 to 2000"),
            (|d| d.note = "\u{1b}[2J".to_owned(), "the note has the character \\u{1b}"),
            (|d| d.note = "a\r\nb".to_owned(), "the note has the character \\u{d}"),
            (|d| d.note = "a\0".to_owned(), "the note has the character \\u{0}"),
            (|d| d.note = "\u{202e}evil".to_owned(), "the note has the character \\u{202e}"),
            (|d| d.tags = vec![String::new()], "\"\" is no tag"),
            (|d| d.tags = vec!["A".to_owned()], "\"A\" is no tag: it must be 1 to 32 of a-z, 0-9 and -"),
            (|d| d.tags = vec!["x".repeat(33)], "is no tag"),
            (|d| d.tags = vec!["x".to_owned(); 17], "there are 17 tags; at most 16 are kept"),
            (|d| d.since = None, "say what it is about"),
            (|d| d.since = Some("yesterday".to_owned()), "since is \"yesterday\"; it must be a time"),
            (|d| d.since = Some("253402300800".to_owned()), "it must be a time"),
            (|d| d.until = Some("2026-11-21".to_owned()), "which is before since"),
            (|d| d.run = Some("abcdef".to_owned()), "since goes with a time; a run has its own"),
            (|d| (d.run, d.since, d.tor) = (Some(String::new()), None, Some("t".to_owned())), "tor goes with a time"),
            (|d| d.tor = Some(String::new()), "tor has 0 characters"),
            (|d| d.source = Some("a\tb".to_owned()), "source has the character \\u{9}"),
        ];
        for (change, reason) in cases {
            let error = draft(change).check().unwrap_err();
            assert!(error.contains(reason), "{error} has no {reason}");
        }
        assert!(draft(|d| d.note = format!("{}\n", "ü".repeat(1999))).check().is_ok(), "characters are counted");
    }

    #[test]
    fn what_is_sent_is_read_strictly() {
        for json in [
            r#"{}"#,
            r#"{"note":1}"#,
            r#"{"note":"a","nots":"b"}"#,
            r#"{"note":"a","note":"b"}"#,
            r#"{"note":"a","tags":"b"}"#,
            r#"{"note":"a","replaces":"1"}"#,
            r#"["a"]"#,
        ] {
            assert!(serde_json::from_str::<Draft>(json).is_err(), "{json}");
        }
        let read: Draft = serde_json::from_str(r#"{"note":"a","run":"b","tags":["c"],"replaces":1}"#).unwrap();
        assert_eq!(
            (read.note.as_str(), read.run.as_deref(), read.tags.len(), read.replaces),
            ("a", Some("b"), 1, Some(1))
        );
    }
}
