//! What the lines of a control connection add up to: replies and events (no I/O).
//!
//! Replies answer commands in their order. Events have codes 600 to 699 and come between replies and between
//! the lines of one, but not among its data.

use super::lines::{Line, Malformed, Mark, data, frame};

/// A longer reply is thrown away. In bytes of memory, so that many short lines count as well.
pub const REPLY_LIMIT: usize = 16 << 20;

/// What tor answered to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of its last line, 200 to 599.
    pub code: u16,
    /// Its lines without their codes, at least one. Data follow their line after a line feed, and have line
    /// feeds between their lines. What is not UTF-8 is replaced.
    pub lines: Vec<String>,
}

impl Reply {
    /// Whether the command was carried out.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// The value in the first line `KEY=VALUE`, be it in the line or the data that follow; `key` is compared
    /// exactly.
    pub fn value(&self, key: &str) -> Option<&str> {
        let value = self.lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.strip_prefix('\n').unwrap_or(value))
    }
}

/// The reply was longer than [`REPLY_LIMIT`], or a line of it longer than
/// [`LINE_LIMIT`](super::lines::LINE_LIMIT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// What a line brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Nothing by itself.
    Nothing,
    /// An event: the text of its first line.
    Event(&'a [u8]),
    /// The end of a reply.
    Reply(Result<Reply, TooLong>),
}

/// Listens to a connection from its beginning, line by line.
#[derive(Debug, Default)]
pub struct Hearing {
    /// The reply that has begun.
    reply: Option<Partial>,
    /// Whether an event of several lines has begun.
    within_event: bool,
    /// What the lines are data of.
    data: Option<Of>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Reply,
    Event,
}

#[derive(Debug, Default)]
struct Partial {
    lines: Vec<String>,
    size: usize,
    too_long: bool,
}

impl Hearing {
    /// Takes in the next line.
    ///
    /// An event is passed over if its first line was cut (what is missing could change its meaning), and so are
    /// the further lines of an event.
    ///
    /// # Errors
    /// If the line is none of the control protocol; whatever follows can't be understood then.
    pub fn hear<'a>(&mut self, line: Line<'a>) -> Result<Heard<'a>, Malformed> {
        if let Some(of) = self.data {
            match (data(line.text), of) {
                (None, _) => self.data = None,
                (Some(text), Of::Reply) => self.reply.get_or_insert_default().add_data(text, line.cut),
                (Some(_), Of::Event) => {}
            }
            return Ok(Heard::Nothing);
        }
        let frame = frame(line.text)?;
        match frame.code {
            200..600 => {
                let reply = self.reply.get_or_insert_default();
                reply.add_line(frame.text, line.cut);
                match frame.mark {
                    Mark::More => {}
                    Mark::Data => self.data = Some(Of::Reply),
                    Mark::Last => {
                        let Partial { lines, too_long, .. } = self.reply.take().unwrap_or_default();
                        let reply = if too_long { Err(TooLong) } else { Ok(Reply { code: frame.code, lines }) };
                        return Ok(Heard::Reply(reply));
                    }
                }
                Ok(Heard::Nothing)
            }
            600..700 => {
                let first = !std::mem::replace(&mut self.within_event, frame.mark != Mark::Last);
                if frame.mark == Mark::Data {
                    self.data = Some(Of::Event);
                }
                Ok(if first && !line.cut { Heard::Event(frame.text) } else { Heard::Nothing })
            }
            _ => Err(Malformed),
        }
    }

    /// Whether a reply has begun and not ended.
    pub fn within_reply(&self) -> bool {
        self.reply.is_some()
    }
}

impl Partial {
    fn add_line(&mut self, text: &[u8], cut: bool) {
        let text = String::from_utf8_lossy(text);
        if self.has_room_for(text.len() + size_of::<String>(), cut) {
            self.lines.push(text.into_owned());
        }
    }

    fn add_data(&mut self, text: &[u8], cut: bool) {
        let text = String::from_utf8_lossy(text);
        if self.has_room_for(text.len() + 1, cut)
            && let Some(line) = self.lines.last_mut()
        {
            line.push('\n');
            line.push_str(&text);
        }
    }

    fn has_room_for(&mut self, more: usize, cut: bool) -> bool {
        self.size += more;
        if cut || self.size > REPLY_LIMIT {
            self.too_long = true;
            self.lines = Vec::new();
        }
        !self.too_long
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    type Answer = Result<Reply, TooLong>;

    #[derive(Debug, Default, PartialEq)]
    struct All {
        events: Vec<String>,
        replies: Vec<Answer>,
        malformed: Option<String>,
    }

    fn hear(text: &[u8]) -> All {
        let mut all = All::default();
        let mut hearing = Hearing::default();
        for text in text.split(|byte| *byte == b'\n') {
            match hearing.hear(Line { text, cut: false }) {
                Ok(Heard::Nothing) => {}
                Ok(Heard::Event(text)) => all.events.push(String::from_utf8_lossy(text).into_owned()),
                Ok(Heard::Reply(reply)) => all.replies.push(reply),
                Err(Malformed) => {
                    all.malformed = Some(String::from_utf8_lossy(text).into_owned());
                    break;
                }
            }
        }
        all
    }

    fn reply(code: u16, lines: &[&str]) -> Answer {
        Ok(Reply { code, lines: lines.iter().map(|line| (*line).to_owned()).collect() })
    }

    #[test]
    fn replies_and_events_are_told_apart() {
        let cases: [(&str, &[&str], &[Answer]); 9] = [
            ("250 OK", &[], &[reply(250, &["OK"])]),
            ("552 no\n250-a=b\n250 OK", &[], &[reply(552, &["no"]), reply(250, &["a=b", "OK"])]),
            ("250-a=b\n650 BW 1 2\n250 OK", &["BW 1 2"], &[reply(250, &["a=b", "OK"])]),
            ("250+a=\nx\n\n..y\n.\n250 OK", &[], &[reply(250, &["a=\nx\n\n.y", "OK"])]),
            ("250+a=\n.\n650 BW 1 2\n250 OK", &["BW 1 2"], &[reply(250, &["a=", "OK"])]),
            ("250+a=\n650 BW 1 2\n250 OK\n.\n250 OK", &[], &[reply(250, &["a=\n650 BW 1 2\n250 OK", "OK"])]),
            ("650+NS\n250 OK\n650 BW 1 2\n.\n650 OK\n650 BW 3 4", &["NS", "BW 3 4"], &[]),
            ("650-CONF_CHANGED\n650-Nickname=CIRC\n250 OK\n650 OK", &["CONF_CHANGED"], &[reply(250, &["OK"])]),
            ("650 \n651 NEW\n650 WORD", &["", "NEW", "WORD"], &[]),
        ];
        for (text, events, replies) in cases {
            let all = hear(text.as_bytes());
            assert_eq!(
                (all.events.as_slice(), all.replies.as_slice(), all.malformed),
                (events.iter().map(|event| (*event).to_owned()).collect::<Vec<_>>().as_slice(), replies, None)
            );
        }
    }

    #[test]
    fn what_is_no_line_of_the_protocol_is_malformed() {
        for line in ["", ".", "250", "100 Continue", "700 X", "000 ", "HTTP/1.1 400 Bad Request", "250=OK"] {
            let all = hear(format!("650 BW 1 2\n{line}\n650 BW 3 4").as_bytes());
            assert_eq!((all.events.len(), all.malformed), (1, Some(line.to_owned())));
        }
    }

    #[test]
    fn a_value_is_found_in_its_line_or_in_the_data_after_it() {
        let Ok(reply) = reply(250, &["version=0.4.9.11", "a=\nx\ny", "b=\n\nz", "c=\n", "d=", "OK"]) else { panic!() };
        let cases = [
            ("version", Some("0.4.9.11")),
            ("a", Some("x\ny")),
            ("b", Some("\nz")),
            ("c", Some("")),
            ("d", Some("")),
            ("vers", None),
            ("OK", None),
        ];
        for (key, value) in cases {
            assert_eq!(reply.value(key), value, "{key}");
        }
    }

    /// What a reply of so many lines and lines of data comes to, and what follows it.
    fn long(lines: usize, data: usize, line: &[u8], cut: bool) -> Answer {
        let mut hearing = Hearing::default();
        let mut say = |text: &[u8], cut| match hearing.hear(Line { text, cut }) {
            Ok(Heard::Reply(reply)) => Some(reply),
            Ok(Heard::Nothing) => None,
            other => panic!("{other:?}"),
        };
        for _ in 0..lines {
            assert_eq!(say(&[b"250-", line].concat(), cut), None);
        }
        assert_eq!(say(b"250+data=", false), None);
        for _ in 0..data {
            assert_eq!(say(line, cut), None);
        }
        assert_eq!(say(b".", false), None);
        let reply = say(b"250 OK", false).expect("a reply");
        assert_eq!(hearing.hear(Line { text: b"250 next", cut: false }), Ok(Heard::Reply(self::reply(250, &["next"]))));
        reply
    }

    #[test]
    fn a_reply_that_is_too_long_is_thrown_away_and_the_next_is_not() {
        let line = vec![b'x'; 1 << 20];
        assert!(long(8, 7, &line, false).is_ok());
        assert_eq!(long(16, 0, &line, false), Err(TooLong));
        assert_eq!(long(0, 16, &line, false), Err(TooLong));
        assert_eq!(long(1, 0, b"x", true), Err(TooLong));
        assert_eq!(long(0, 1, b"x", true), Err(TooLong));
        // Lines without anything take memory as well.
        assert_eq!(long(REPLY_LIMIT / size_of::<String>(), 0, b"", false), Err(TooLong));
    }

    #[test]
    fn an_event_that_was_cut_is_passed_over() {
        let mut hearing = Hearing::default();
        assert_eq!(hearing.hear(Line { text: b"650 CIRC 1 BUILT", cut: true }), Ok(Heard::Nothing));
        assert_eq!(hearing.hear(Line { text: b"650 BW 1 2", cut: false }), Ok(Heard::Event(b"BW 1 2")));
    }

    /// An event or a reply, and what it should be taken for.
    fn message() -> impl Strategy<Value = (String, bool)> {
        let rest = "[ -~]{0,12}";
        let data = prop::collection::vec("[.a-z0-9 ]{0,6}", 0..4).prop_map(|lines| {
            lines
                .iter()
                .map(|line| if line.starts_with('.') { format!(".{line}\n") } else { format!("{line}\n") })
                .collect()
        });
        let middle = prop::collection::vec((select(vec!['-', '+']), rest, data), 0..4);
        (select(vec![250u16, 552, 650]), middle, rest).prop_map(
            |(code, middle, rest): (_, Vec<(char, String, String)>, _)| {
                let mut text = String::new();
                for (mark, line, data) in middle {
                    let data = if mark == '+' { format!("{data}.\n") } else { String::new() };
                    text.push_str(&format!("{code}{mark}{line}\n{data}"));
                }
                (format!("{text}{code} {rest}\n"), code == 650)
            },
        )
    }

    proptest! {
        #[test]
        fn every_message_is_heard_once(messages in prop::collection::vec(message(), 0..10)) {
            let text: String = messages.iter().map(|(text, _)| text.as_str()).collect();
            let all = hear(text.trim_end_matches('\n').as_bytes());
            let events = messages.iter().filter(|(_, event)| *event).count();
            prop_assert_eq!(all.malformed.is_some(), messages.is_empty());
            prop_assert_eq!((all.events.len(), all.replies.len()), (events, messages.len() - events));
        }

        #[test]
        fn no_lines_are_too_strange(text in prop::collection::vec(
            prop_oneof![select(b"250650+- .\n\n".to_vec()), any::<u8>()], 0..200)) {
            let all = hear(&text);
            let lines = text.split(|byte| *byte == b'\n').count();
            prop_assert!(all.events.len() + all.replies.len() <= lines);
        }
    }
}
