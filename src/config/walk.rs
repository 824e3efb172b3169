//! Reading TOML tables key by key, keeping every problem with its line and key.
//!
//! A reader that finds something wrong notes it and returns `None`; the caller reads on, so that one
//! look at the file finds all that is wrong with it.

use std::cell::RefCell;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::quote::{quoted, shown_key};
use super::units::{format_duration, format_size, parse_duration, parse_size};
use super::{KEYS, Problem};

/// What has been found wrong with a file so far.
pub(super) struct Report<'a> {
    file: &'a str,
    /// Where each line but the first begins.
    line_starts: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a str, text: &str) -> Self {
        let line_starts = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1).collect();
        Report { file, line_starts, problems: RefCell::default() }
    }

    pub(super) fn note(&self, line: usize, key: impl Into<String>, message: impl Display) {
        let (file, key, message) = (self.file.to_owned(), key.into(), message.to_string());
        self.problems.borrow_mut().push(Problem { file, line, key, message });
    }

    /// The problems by line; those of one line in the order in which they were noted.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    /// The line, from 1, on which a piece of the text begins.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        1 + self.line_starts.partition_point(|start| *start <= span.start)
    }
}

/// A table of the file: the top level, a `[section]`, or one of several `[[sections]]`.
pub(super) struct Section<'a> {
    report: &'a Report<'a>,
    /// Absent where the file leaves the section out: then every key is missing.
    table: Option<&'a DeTable<'a>>,
    /// One of [`KEYS`].
    name: &'static str,
    /// Where it begins.
    pub(super) line: usize,
    /// How it is called in messages: empty for the top level, `server`, `tor[1]`.
    pub(super) path: String,
}

impl<'a> Section<'a> {
    pub(super) fn top(report: &'a Report<'a>, table: &'a DeTable<'a>) -> Self {
        Section { report, table: Some(table), name: "", line: 1, path: String::new() }.without_unknown_keys()
    }

    /// The `[name]` below this one.
    pub(super) fn section(&self, name: &'static str) -> Section<'a> {
        let entry = self.entry(name);
        let table = entry.as_ref().and_then(|entry| match entry.value {
            DeValue::Table(table) => Some(table),
            DeValue::Array(_) => entry.wrong(format_args!("is a list of sections; write [{name}], and once")),
            _ => entry.wrong(format_args!("is no section; write [{name}] on a line of its own, its keys below it")),
        });
        let line = entry.map_or(1, |entry| entry.line);
        Section { report: self.report, table, name, line, path: name.to_owned() }.without_unknown_keys()
    }

    /// The `[[name]]`s below this one, at least one; `keys` are those that it needs.
    pub(super) fn sections(&self, name: &'static str, keys: &str) -> Option<Vec<Section<'a>>> {
        let Some(entry) = self.entry(name) else {
            return self.wrong(name, format_args!("is missing; write at least one [[{name}]], with its keys {keys}"));
        };
        let items = match entry.value {
            DeValue::Array(items) if !items.is_empty() => items,
            DeValue::Table(_) => return entry.wrong(format_args!("is a single section; write [[{name}]]")),
            _ => {
                return entry
                    .wrong(format_args!("is no section; write [[{name}]] on a line of its own, its keys below it"));
            }
        };
        let section = |(i, item): (usize, &'a toml::Spanned<DeValue<'a>>)| {
            let (line, path) = (self.report.line(&item.span()), format!("{name}[{}]", i + 1));
            let DeValue::Table(table) = item.get_ref() else {
                self.report.note(line, path, format_args!("is no section; write [[{name}]] on a line of its own"));
                return None;
            };
            let section = Section { report: self.report, table: Some(table), name, line, path };
            Some(section.without_unknown_keys())
        };
        Some(items.iter().enumerate().filter_map(section).collect())
    }

    /// What `read` makes of a key; where it is missing, `default`.
    pub(super) fn optional<T>(&self, key: &str, default: T, read: impl FnOnce(&Entry) -> Option<T>) -> Option<T> {
        match self.entry(key) {
            Some(entry) => read(&entry),
            None => Some(default),
        }
    }

    /// What `read` makes of a key; where it is missing, that is a problem, and `write` says what to write.
    pub(super) fn required<T>(&self, key: &str, write: &str, read: impl FnOnce(&Entry) -> Option<T>) -> Option<T> {
        match self.entry(key) {
            Some(entry) => read(&entry),
            None => self.wrong(key, format_args!("is missing; write {key} = {write}")),
        }
    }

    /// Notes a problem with a key, at the line of the section where the key is missing.
    pub(super) fn wrong<T>(&self, key: &str, message: impl Display) -> Option<T> {
        let line = self.entry(key).map_or(self.line, |entry| entry.line);
        self.report.note(line, self.path_of(key), message);
        None
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// A key's text whatever else is wrong with it, for comparing it with others.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.entry(key)?.value.as_str()
    }

    fn entry(&self, key: &str) -> Option<Entry<'a>> {
        let (name, value) = self.table?.get_key_value(key)?;
        let (line, path) = (self.report.line(&name.span()), self.path_of(key));
        Some(Entry { report: self.report, line, path, value: value.get_ref() })
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { shown_key(key) } else { format!("{}.{}", self.path, shown_key(key)) }
    }

    fn without_unknown_keys(self) -> Self {
        let known = keys_of(self.name);
        let top = self.name.is_empty();
        let is_section = |key: &str| top && KEYS.iter().any(|(section, _)| *section == key);
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            let key = key.get_ref().as_ref();
            if !known.contains(&key) && !is_section(key) {
                let _: Option<()> =
                    self.wrong(key, format_args!("no such key {}; {}", place(self.name), self.hint(key)));
            }
        }
        self
    }

    fn hint(&self, key: &str) -> String {
        let known = keys_of(self.name);
        let sections = KEYS.iter().map(|(section, _)| *section).filter(|name| self.name.is_empty() && !name.is_empty());
        let near = |known: &&str| key.len() <= 40 && strsim::osa_distance(key, known) <= 2;
        if let Some(meant) = known.iter().copied().chain(sections).find(near) {
            return format!("did you mean {meant}?");
        }
        match KEYS.iter().find(|(_, keys)| keys.contains(&key)) {
            Some(("", _)) => "it belongs above the first section".to_owned(),
            Some((section, _)) => format!("it belongs below {}", header(section)),
            None if self.name.is_empty() => {
                let sections: Vec<_> = KEYS.iter().skip(1).map(|(section, _)| header(section)).collect();
                format!("there are {}, and the sections {}", known.join(", "), sections.join(", "))
            }
            None => format!("there are {}", known.join(", ")),
        }
    }
}

/// A key and its value, or one value of a list.
pub(super) struct Entry<'a> {
    report: &'a Report<'a>,
    line: usize,
    path: String,
    value: &'a DeValue<'a>,
}

impl Entry<'_> {
    pub(super) fn wrong<T>(&self, message: impl Display) -> Option<T> {
        self.report.note(self.line, self.path.as_str(), message);
        None
    }

    /// A string; `such_as` is an example for who wrote something else.
    pub(super) fn string(&self, such_as: &str) -> Option<&str> {
        match self.value {
            DeValue::String(text) => Some(text),
            _ => self.wrong_type("a string", &quoted(such_as)),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let all = words.iter().map(|(word, _)| quoted(word)).collect::<Vec<_>>().join(", ");
        let text = self.string(words.first().map_or("", |(word, _)| *word))?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meant)) => Some(*meant),
            None => self.wrong(format_args!("{} is no choice; write one of {all}", quoted(text))),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            DeValue::Boolean(yes) => Some(*yes),
            _ => self.wrong(format_args!("is {}, not a boolean; write true or false", self.type_of())),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let (least, most) = (range.start(), range.end());
        let DeValue::Integer(integer) = self.value else {
            let type_of = self.type_of();
            return self
                .wrong(format_args!("is {type_of}, not a whole number; write {least} to {most} without quotes"));
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(n) if range.contains(&n) => Some(n),
            _ => self.wrong(format_args!("{} is out of range; write {least} to {most}", self.shown())),
        }
    }

    /// A size in bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let parsed = match self.value {
            DeValue::String(text) => parse_size(text),
            // What a u64 can't hold is out of range: what is negative as if it were 0, all else as the most.
            DeValue::Integer(integer) => match u64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(bytes) => Ok(bytes),
                Err(_) if integer.as_str().starts_with('-') => Ok(0),
                Err(_) => Ok(u64::MAX),
            },
            _ => return self.wrong_type("a size", r#""5 MiB""#),
        };
        self.within(parsed, range, |bytes| format_size(*bytes))
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let parsed = match self.value {
            DeValue::String(text) => parse_duration(text),
            DeValue::Integer(integer) if integer.as_str() == "0" => Ok(Duration::ZERO),
            DeValue::Integer(_) => {
                let shown = self.shown();
                let remedy = r#"write it in quotes with ms, s, min, h or d, such as "5 min""#;
                return self.wrong(format_args!("{shown} has no unit; {remedy}"));
            }
            _ => return self.wrong_type("a duration", r#""5 min""#),
        };
        self.within(parsed, range, |duration| format_duration(*duration))
    }

    /// An IP address and a port; `such_as` is an example.
    pub(super) fn address(&self, such_as: &str) -> Option<SocketAddr> {
        let text = self.string(such_as)?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let port = text.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_err());
        let (shown, such_as) = (quoted(text), quoted(such_as));
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            self.wrong(format_args!(
                "{shown} is an IPv6 address without brackets and port; write one such as \"[::1]:80\""
            ))
        } else if text.parse::<std::net::Ipv4Addr>().is_ok() {
            self.wrong(format_args!("{shown} has no port; write one after a colon, such as {such_as}"))
        } else if let Some(port) = port.filter(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())) {
            self.wrong(format_args!("{} is no port; write one up to 65535, such as {such_as}", quoted(port)))
        } else {
            let message =
                format_args!("{shown} is no IP address with a port; write one such as {such_as}, no host name");
            self.wrong(message)
        }
    }

    /// What `read` makes of each value of a list, at least one.
    pub(super) fn list<T>(&self, such_as: &str, read: impl Fn(&Entry) -> Option<T>) -> Option<Vec<T>> {
        let DeValue::Array(items) = self.value else {
            return self.wrong_type("a list", such_as);
        };
        if items.is_empty() {
            return self.wrong(format_args!("is empty; write at least one, such as {such_as}"));
        }
        let read = |item: &toml::Spanned<DeValue>| {
            let line = self.report.line(&item.span());
            read(&Entry { report: self.report, line, path: self.path.clone(), value: item.get_ref() })
        };
        // Not a `collect` into an `Option`, which would stop at the first that is wrong.
        let read: Vec<_> = items.iter().map(read).collect();
        read.into_iter().collect()
    }

    /// What `read` makes of each value of a list, at least one, or of a value that is no list.
    pub(super) fn one_or_list<T>(&self, such_as: &str, read: impl Fn(&Entry) -> Option<T>) -> Option<Vec<T>> {
        match self.value {
            DeValue::Array(_) => self.list(such_as, read),
            _ => Some(vec![read(self)?]),
        }
    }

    fn within<T: PartialOrd>(
        &self,
        parsed: Result<T, impl Display>,
        range: RangeInclusive<T>,
        format: impl Fn(&T) -> String,
    ) -> Option<T> {
        match parsed {
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => {
                let (least, most) = (format(range.start()), format(range.end()));
                self.wrong(format_args!("{} is out of range; write \"{least}\" to \"{most}\"", self.shown()))
            }
            Err(error) => self.wrong(error),
        }
    }

    fn wrong_type<T>(&self, wanted: &str, such_as: &str) -> Option<T> {
        self.wrong(format_args!("is {}, not {wanted}; write one such as {such_as}", self.type_of()))
    }

    fn type_of(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with decimals",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a section",
        }
    }

    fn shown(&self) -> String {
        match self.value {
            DeValue::String(text) => quoted(text),
            DeValue::Integer(integer) => integer.to_string().chars().take(40).collect(),
            _ => self.type_of().to_owned(),
        }
    }
}

fn keys_of(section: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

fn place(section: &str) -> String {
    if section.is_empty() { "at the top level".to_owned() } else { format!("in {}", header(section)) }
}

fn header(section: &str) -> String {
    if matches!(section, "tor" | "experiment") { format!("[[{section}]]") } else { format!("[{section}]") }
}
