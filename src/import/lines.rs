//! Lines of bounded length, counted.

use std::io::{BufRead, Read};

use super::LINE_LIMIT;
use super::rule::{Rule, Site, Violation};

/// The lines of an input, without their ends; one at a time, in a buffer that is used again.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
    site: fn(u64) -> Site,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, site: fn(u64) -> Site) -> Self {
        Lines { input, buffer: Vec::new(), number: 0, site, ended: false }
    }

    /// Where the last line stands that was given.
    pub(super) fn site(&self) -> Site {
        (self.site)(self.number)
    }

    /// What is wrong with the last line that was given.
    pub(super) fn violation(&self, rule: Rule, sentence: impl Into<String>) -> Violation {
        Violation { site: self.site(), rule, sentence: sentence.into() }
    }

    /// Reads the next line, which [`text`](Self::text) then gives. False at the end.
    ///
    /// # Errors
    /// If it is too long, has no end or is not UTF-8; the lines after it can be read. If the input can't be read;
    /// then it has ended.
    pub(super) fn advance(&mut self) -> Result<bool, Violation> {
        self.buffer.clear();
        if self.ended {
            return Ok(false);
        }
        self.number += 1;
        let most = LINE_LIMIT as u64 + 2;
        let read = (&mut self.input).take(most).read_until(b'\n', &mut self.buffer);
        match read {
            Err(error) => {
                self.ended = true;
                Err(self.violation(Rule::Unreadable, format!("it can't be read on: {error}")))
            }
            Ok(0) => {
                self.ended = true;
                self.number -= 1;
                Ok(false)
            }
            Ok(_) => self.check(),
        }
    }

    fn check(&mut self) -> Result<bool, Violation> {
        let had_end = self.buffer.last() == Some(&b'\n');
        if had_end {
            self.buffer.pop();
            if self.buffer.last() == Some(&b'\r') {
                self.buffer.pop();
            }
        }
        if self.buffer.len() > LINE_LIMIT {
            if !had_end {
                self.skip()?;
            }
            return Err(self.violation(Rule::LongLine, format!("the line has more than {LINE_LIMIT} bytes")));
        }
        if !had_end {
            self.ended = true;
            let why = "the last line has no line end; the file may be cut off";
            return Err(self.violation(Rule::LineEnd, why));
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(_) => Ok(true),
            Err(error) => {
                let why = format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1);
                Err(self.violation(Rule::Encoding, why))
            }
        }
    }

    /// Passes over the rest of a line that is too long.
    fn skip(&mut self) -> Result<(), Violation> {
        loop {
            let (used, found) = match self.input.fill_buf() {
                Ok([]) => {
                    self.ended = true;
                    return Ok(());
                }
                Ok(bytes) => match bytes.iter().position(|b| *b == b'\n') {
                    Some(at) => (at + 1, true),
                    None => (bytes.len(), false),
                },
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.ended = true;
                    return Err(self.violation(Rule::Unreadable, format!("it can't be read on: {error}")));
                }
            };
            self.input.consume(used);
            if found {
                return Ok(());
            }
        }
    }

    /// The line that was read last.
    pub(super) fn text(&self) -> &str {
        // It was checked when it was read.
        std::str::from_utf8(&self.buffer).unwrap_or_default()
    }
}
