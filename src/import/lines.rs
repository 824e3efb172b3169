//! Lines of bounded length, counted.

use std::io::{BufRead, ErrorKind};

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
        let mut length = 0;
        loop {
            let bytes = match self.input.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.ended = true;
                    return Err(self.violation(Rule::Unreadable, format!("it can't be read on: {error}")));
                }
            };
            if bytes.is_empty() {
                self.ended = true;
                if length == 0 {
                    self.number -= 1;
                    return Ok(false);
                }
                return self.check(length, false);
            }
            let end = memchr::memchr(b'\n', bytes);
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            // What is too long is passed over.
            let room = (LINE_LIMIT + 1).saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(&piece[..piece.len().min(room)]);
            length += piece.len();
            let used = end.map_or(bytes.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() {
                return self.check(length, true);
            }
        }
    }

    /// Looks at a line of `length` bytes, of which the buffer holds what may be kept.
    fn check(&mut self, mut length: usize, has_end: bool) -> Result<bool, Violation> {
        if has_end && length == self.buffer.len() && self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
            length -= 1;
        }
        if length > LINE_LIMIT {
            return Err(self.violation(Rule::LongLine, format!("the line has more than {LINE_LIMIT} bytes")));
        }
        if !has_end {
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

    /// The line that was read last.
    pub(super) fn text(&self) -> &str {
        // It was checked when it was read.
        std::str::from_utf8(&self.buffer).unwrap_or_default()
    }
}
