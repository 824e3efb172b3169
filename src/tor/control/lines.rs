//! Lines as tor sends them on its control port, and the frame of each (no I/O).
//!
//! The form is that of Tor's control-spec, section 2.3.

use std::io::BufRead;

/// What is beyond so many bytes of a line is thrown away. tor's own lines stay far below it.
pub const LINE_LIMIT: usize = 1 << 20;

/// The buffer's size, in bytes, as long as lines are short.
const USUAL_SIZE: usize = 64 * 1024;

/// The buffer's greatest size: the longest line and its CR LF.
const GREATEST_SIZE: usize = LINE_LIMIT + 2;

/// A line without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// At most [`LINE_LIMIT`] bytes.
    pub text: &'a [u8],
    /// Whether the line was longer.
    pub cut: bool,
}

/// Bytes in, lines out. The lines are slices of one buffer, whose size is bounded whatever comes.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// What has come and was not given out: `bytes[start..end]`.
    start: usize,
    end: usize,
    /// Up to here there is no LF.
    searched: usize,
    /// Whether what comes is the rest of a line that was cut.
    skipping: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Lines { bytes: vec![0; USUAL_SIZE], start: 0, end: 0, searched: 0, skipping: false }
    }
}

impl Lines {
    /// Where the next bytes are to be read into. Never empty if all lines that are there were taken first.
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.searched -= self.start;
        self.end -= self.start;
        self.start = 0;
        if self.end == 0 && self.bytes.len() > USUAL_SIZE {
            self.bytes.truncate(USUAL_SIZE);
            self.bytes.shrink_to_fit();
        }
        if self.end == self.bytes.len() {
            self.bytes.resize((2 * self.end).min(GREATEST_SIZE), 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Notes that so many bytes were read into the room.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// The next line: what stands before LF or CR LF. `None` if more bytes are needed.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        if self.skipping {
            let rest = find_line_feed(&self.bytes[self.start..self.end]);
            self.skipping = rest.is_none();
            self.start = rest.map_or(self.end, |at| self.start + at + 1);
            self.searched = self.start;
        }
        let start = self.start;
        match find_line_feed(&self.bytes[self.searched..self.end]) {
            Some(at) => {
                let text = &self.bytes[start..self.searched + at];
                self.start = self.searched + at + 1;
                self.searched = self.start;
                let text = text.strip_suffix(b"\r").unwrap_or(text);
                Some(Line { text: &text[..text.len().min(LINE_LIMIT)], cut: text.len() > LINE_LIMIT })
            }
            None if self.end - start == GREATEST_SIZE => {
                self.start = self.end;
                self.searched = self.end;
                self.skipping = true;
                Some(Line { text: &self.bytes[start..start + LINE_LIMIT], cut: true })
            }
            None => {
                self.searched = self.end;
                None
            }
        }
    }

    /// Whether the bytes so far end within a line.
    pub fn within_line(&self) -> bool {
        self.start < self.end || self.skipping
    }

    /// The buffer's size, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.capacity()
    }
}

/// As fast as the C library's `memchr`, which `skip_until` comes down to.
fn find_line_feed(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let last = rest.skip_until(b'\n').ok()?.checked_sub(1)?;
    (bytes.get(last) == Some(&b'\n')).then_some(last)
}

/// What stands between a line's code and its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `-`: more lines follow.
    More,
    /// `+`: data follow, until a line that is `.`; then more lines.
    Data,
    /// A space: it is the last line.
    Last,
}

/// A line of the control port that is not one of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// 0 to 999.
    pub code: u16,
    /// What follows.
    pub mark: Mark,
    /// The rest of the line.
    pub text: &'a [u8],
}

/// The line has no code and mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the frame of a line: three digits, a mark, and any text.
///
/// # Errors
/// If it is not of that form.
pub fn frame(line: &[u8]) -> Result<Frame<'_>, Malformed> {
    let [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', mark, text @ ..] = line else { return Err(Malformed) };
    let mark = match mark {
        b'-' => Mark::More,
        b'+' => Mark::Data,
        b' ' => Mark::Last,
        _ => return Err(Malformed),
    };
    let digit = |digit: &u8| u16::from(digit - b'0');
    Ok(Frame { code: 100 * digit(a) + 10 * digit(b) + digit(c), mark, text })
}

/// The text of a line of data, whose leading dot is doubled; `None` if the line ends the data.
pub fn data(line: &[u8]) -> Option<&[u8]> {
    match line {
        b"." => None,
        [b'.', text @ ..] => Some(text),
        text => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads the pieces as reads would bring them, and gives all lines with whether they were cut.
    fn read(lines: &mut Lines, pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut all = Vec::new();
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let room = lines.room();
                let count = piece.len().min(room.len());
                room[..count].copy_from_slice(&piece[..count]);
                lines.filled(count);
                piece = &piece[count..];
                while let Some(line) = lines.next_line() {
                    all.push((line.text.to_vec(), line.cut));
                }
            }
        }
        all
    }

    #[test]
    fn lines_end_with_lf_or_cr_lf() {
        let mut lines = Lines::default();
        let read = read(&mut lines, &[b"one\r\ntw", b"o\n\r\n\n a\rb\r", b"\r\nrest"]);
        let expected: [&[u8]; 5] = [b"one", b"two", b"", b"", b" a\rb\r"];
        assert_eq!(read, expected.map(|line| (line.to_vec(), false)));
        assert!(lines.within_line());
    }

    #[test]
    fn a_line_is_cut_at_the_limit_wherever_the_reads_end() {
        for (length, end, cut) in [
            (LINE_LIMIT, "\n", false),
            (LINE_LIMIT, "\r\n", false),
            (LINE_LIMIT + 1, "\n", true),
            (LINE_LIMIT + 1, "\r\n", true),
            (LINE_LIMIT + 2, "\n", true),
            (3 * LINE_LIMIT, "\r\n", true),
        ] {
            let text = [&vec![b'x'; length], end.as_bytes(), b"next\n"].concat();
            for first in [0, 1, 1000, LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1, LINE_LIMIT + 2] {
                let mut lines = Lines::default();
                let read = read(&mut lines, &[&text[..first], &text[first..]]);
                let kept: Vec<_> = read.iter().map(|(line, cut)| (line.len(), *cut)).collect();
                assert_eq!(kept, [(LINE_LIMIT, cut), (4, false)], "{length} {end:?} {first}");
                assert!(!lines.within_line());
            }
        }
    }

    #[test]
    fn a_long_line_takes_no_more_memory_than_the_limit_and_gives_it_back() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 10_000];
        for piece_number in 0..1000 {
            let cut = read(&mut lines, &[&piece]).len();
            assert_eq!(cut, usize::from(piece_number == GREATEST_SIZE / 10_000), "{piece_number}");
            assert!(lines.size() <= GREATEST_SIZE, "{}", lines.size());
        }
        assert!(lines.within_line());
        assert_eq!(read(&mut lines, &[b"\nnext\n"]), [(b"next".to_vec(), false)]);
        assert_eq!(lines.size(), USUAL_SIZE);
    }

    #[test]
    fn a_frame_is_three_digits_a_mark_and_any_text() {
        let frames: [(&[u8], Frame); 4] = [
            (b"250 OK", Frame { code: 250, mark: Mark::Last, text: b"OK" }),
            (b"650-", Frame { code: 650, mark: Mark::More, text: b"" }),
            (b"250+a=", Frame { code: 250, mark: Mark::Data, text: b"a=" }),
            (b"007 \xff", Frame { code: 7, mark: Mark::Last, text: b"\xff" }),
        ];
        for (line, expected) in frames {
            assert_eq!(frame(line), Ok(expected));
        }
        let others: [&[u8]; 8] =
            [b"", b"250", b"25 OK", b"2500 OK", b"250\tOK", b" 250 OK", b"25x OK", b"HTTP/1.1 400"];
        for line in others {
            assert_eq!(frame(line), Err(Malformed), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn data_lose_the_dot_that_was_put_before_theirs() {
        let cases: [(&[u8], Option<&[u8]>); 5] =
            [(b".", None), (b"..", Some(b".")), (b"", Some(b"")), (b".a", Some(b"a")), (b"a.", Some(b"a."))];
        for (line, expected) in cases {
            assert_eq!(data(line), expected);
        }
    }

    proptest! {
        #[test]
        fn lines_are_the_same_wherever_the_reads_end(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..400),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            let mut expected: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
            let rest = expected.pop().unwrap_or_default();
            let expected: Vec<_> =
                expected.into_iter().map(|line| (line.strip_suffix(b"\r").unwrap_or(line).to_vec(), false)).collect();
            let mut lines = Lines::default();
            prop_assert_eq!(read(&mut lines, &pieces), expected);
            prop_assert_eq!(lines.within_line(), !rest.is_empty());
        }

        #[test]
        fn no_line_is_too_strange_for_a_frame(line in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(Frame { code, mark, text }) = frame(&line) {
                let mark = match mark { Mark::More => '-', Mark::Data => '+', Mark::Last => ' ' };
                prop_assert_eq!([format!("{code:03}{mark}").as_bytes(), text].concat(), line);
            }
        }
    }
}
