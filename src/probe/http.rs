//! Watching an HTTP/1.1 response go by: where its payload begins, how much of it has come, and when
//! (no I/O).
//!
//! hyper speaks HTTP. It hands payload up later than it came, in pieces of its own; so the stream under
//! it shows every byte to this watch first, and the times of the payload are those of the reads.

use crate::payload::progress::Progress;

/// A response's head may not be longer than this. hyper is given the same bound, and goes beyond it where
/// the head ends within the same read.
pub const HEAD_LIMIT: usize = 64 * 1024;

/// How many header lines are looked at (hyper's own bound).
const HEADER_LIMIT: usize = 100;

/// A payload may not be announced longer than this: a larger number is no size that anything can keep.
pub const SIZE_LIMIT: u64 = i64::MAX as u64;

/// What has been seen of a response so far.
#[derive(Debug)]
pub struct Watch {
    state: State,
    head_too_long: bool,
    /// The payload; its size is what was asked for, else what the head announces.
    payload: Progress,
    surplus: u64,
    first_byte: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// Gathering the head.
    Head(Vec<u8>),
    /// A payload of so many bytes more, as its Content-Length says.
    Sized(u64),
    /// A payload that ends with the connection.
    UntilClose,
    /// A payload in chunks.
    Chunked(Chunks),
    /// The payload is over; whatever comes now is too much.
    Over,
    /// No payload of ours: another status, or no HTTP. Bytes are not looked at any more.
    Ignored,
}

impl Watch {
    /// Watches for a payload of `size` bytes, or of as many as the response announces.
    pub fn new(size: Option<u64>) -> Self {
        Watch {
            state: State::Head(Vec::new()),
            head_too_long: false,
            payload: Progress::new(size),
            surplus: 0,
            first_byte: None,
        }
    }

    /// Notes bytes that came at `at` (µs after START).
    pub fn read(&mut self, at: u64, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.first_byte.get_or_insert(at);
        while !bytes.is_empty() {
            let used = self.step(at, bytes);
            bytes = &bytes[used..];
        }
    }

    /// Whether a head was longer than [`HEAD_LIMIT`]; nothing after it was looked at.
    pub fn head_too_long(&self) -> bool {
        self.head_too_long
    }

    /// The payload: what was asked for or announced, and how much of it came when. Whether it is whole and
    /// right is not for the watch to say.
    pub fn payload(&self) -> &Progress {
        &self.payload
    }

    /// How many bytes came after the end of the payload.
    pub fn surplus(&self) -> u64 {
        self.surplus
    }

    /// When the first byte of the response came, whatever it was.
    pub fn first_byte(&self) -> Option<u64> {
        self.first_byte
    }

    /// Takes in the beginning of `bytes` and returns how many of them, at least one.
    fn step(&mut self, at: u64, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::Head(head) => {
                // Empty lines before the status line are no head; hyper passes them over as well.
                if head.is_empty() && matches!(bytes[0], b'\r' | b'\n') {
                    return 1;
                }
                let before = head.len();
                head.extend_from_slice(bytes);
                let end = end_of_head(head, before);
                if end.unwrap_or(head.len()) > HEAD_LIMIT {
                    self.head_too_long = true;
                    self.state = State::Ignored;
                    return bytes.len();
                }
                let Some(end) = end else { return bytes.len() };
                head.truncate(end);
                self.state = after_head(head, &mut self.payload);
                end - before
            }
            State::Sized(left) => {
                let n = (bytes.len() as u64).min(*left);
                *left -= n;
                if *left == 0 {
                    self.state = State::Over;
                }
                self.payload.advance(at, n);
                n.max(1) as usize
            }
            State::UntilClose => {
                self.payload.advance(at, bytes.len() as u64);
                bytes.len()
            }
            State::Chunked(chunks) => {
                let (used, payload, over) = chunks.step(bytes);
                if over {
                    self.state = State::Over;
                }
                self.payload.advance(at, payload);
                used
            }
            State::Over => {
                self.surplus += bytes.len() as u64;
                bytes.len()
            }
            State::Ignored => bytes.len(),
        }
    }
}

/// Where the head ends: after the first empty line. Only what is new since `before` is searched.
fn end_of_head(head: &[u8], before: usize) -> Option<usize> {
    let from = before.saturating_sub(3);
    (from..head.len()).find_map(|i| match &head[i..] {
        [b'\n', b'\n', ..] => Some(i + 2),
        [b'\n', b'\r', b'\n', ..] => Some(i + 3),
        _ => None,
    })
}

/// What follows this head, by the rules that hyper goes by: it decides what is payload, the watch when it came.
fn after_head(head: &[u8], payload: &mut Progress) -> State {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_LIMIT];
    let mut response = httparse::Response::new(&mut headers);
    if !matches!(response.parse(head), Ok(httparse::Status::Complete(_))) {
        return State::Ignored;
    }
    match response.code {
        Some(100 | 102..=199) => return State::Head(Vec::new()),
        Some(200) => {}
        _ => return State::Ignored,
    }
    let values = |name: &'static str| {
        let lines = response.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name));
        lines.map(|h| text(h.value).unwrap_or_default())
    };
    // The last encoding is the outermost; where that is another, only the close can end the payload.
    if let Some(line) = values("transfer-encoding").next_back() {
        let chunked = line.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
        return if chunked { State::Chunked(Chunks::Size { so_far: 0 }) } else { State::UntilClose };
    }
    // A length may be repeated, in one line or in many, if it is always the same.
    let mut lengths = values("content-length").flat_map(|line| line.split(',')).map(length);
    match lengths.next() {
        Some(Some(announced)) if lengths.all(|again| again == Some(announced)) => {
            payload.announce(announced);
            if announced == 0 { State::Over } else { State::Sized(announced) }
        }
        Some(_) => State::Ignored,
        None => State::UntilClose,
    }
}

/// A header's value, if it is text: hyper takes printable ASCII alone for that.
fn text(value: &[u8]) -> Option<&str> {
    let printable = |b: &u8| matches!(b, b'\t' | b' '..=b'~');
    std::str::from_utf8(value).ok().filter(|_| value.iter().all(printable))
}

/// A length as a header has it: digits alone.
fn length(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|length| digits && *length <= SIZE_LIMIT)
}

/// Where in a chunked payload the next byte stands. hyper decodes and judges it; this only counts.
#[derive(Debug)]
enum Chunks {
    /// In the hexadecimal size.
    Size { so_far: u64 },
    /// In what may follow the size on its line.
    Extension { size: u64 },
    /// In a chunk, with so many bytes to come.
    Data { left: u64 },
    /// In the line end after a chunk.
    DataEnd,
    /// In the trailer; `line` counts the bytes of the present line.
    Trailer { line: u64 },
}

impl Chunks {
    /// How many of `bytes` were used, how many of these are payload, and whether the payload is over.
    fn step(&mut self, bytes: &[u8]) -> (usize, u64, bool) {
        let byte = bytes[0];
        match self {
            Chunks::Size { so_far } => match (byte as char).to_digit(16) {
                Some(digit) => *so_far = so_far.saturating_mul(16).saturating_add(digit.into()),
                None => *self = Chunks::after_size_line(byte, *so_far),
            },
            Chunks::Extension { size } => *self = Chunks::after_size_line(byte, *size),
            Chunks::Data { left } => {
                let n = (bytes.len() as u64).min(*left);
                *left -= n;
                if *left == 0 {
                    *self = Chunks::DataEnd;
                }
                return (n as usize, n, false);
            }
            Chunks::DataEnd if byte == b'\n' => *self = Chunks::Size { so_far: 0 },
            Chunks::DataEnd => {}
            Chunks::Trailer { line: 0 } if byte == b'\n' => return (1, 0, true),
            Chunks::Trailer { line } => match byte {
                b'\n' => *line = 0,
                b'\r' => {}
                _ => *line += 1,
            },
        }
        (1, 0, false)
    }

    fn after_size_line(byte: u8, size: u64) -> Chunks {
        match (byte, size) {
            (b'\n', 0) => Chunks::Trailer { line: 0 },
            (b'\n', size) => Chunks::Data { left: size },
            _ => Chunks::Extension { size },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One byte at a time, the byte at position `i` of the response coming at `i` µs.
    fn watch(size: Option<u64>, response: &[u8]) -> Watch {
        let mut watch = Watch::new(size);
        response.iter().enumerate().for_each(|(i, byte)| watch.read(i as u64, &[*byte]));
        watch
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";

    #[test]
    fn marks_lie_where_the_bytes_came() {
        let watch = watch(Some(100), format!("{HEAD}{}", "x".repeat(100)).as_bytes());
        let head = HEAD.len() as u64;
        assert_eq!(watch.first_byte(), Some(0));
        let payload = watch.payload();
        assert_eq!(payload.deciles()[0], Some(head), "the first byte");
        assert_eq!(payload.deciles()[1], Some(head + 9), "the tenth byte");
        assert_eq!(payload.deciles()[10], Some(head + 99));
        assert_eq!((payload.complete(), payload.passed(), watch.surplus()), (Some(head + 99), 100, 0));
        assert_eq!(payload.partials(), [None; 9], "10 KiB are beyond its size");
    }

    #[test]
    fn what_comes_after_the_payload_is_surplus() {
        let watch = watch(Some(100), format!("{HEAD}{}", "x".repeat(107)).as_bytes());
        assert_eq!((watch.payload().passed(), watch.surplus()), (100, 7));
    }

    #[test]
    fn chunks_are_counted_without_their_frames() {
        let body = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n1A\r\n\
                    abcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: 1\r\n\r\nxyz";
        let watch = watch(None, body.as_bytes());
        assert_eq!((watch.payload().passed(), watch.surplus(), watch.payload().size()), (30, 3, None));
    }

    #[test]
    fn a_provisional_response_and_bare_line_feeds_are_passed_over() {
        let watch =
            watch(None, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\ncontent-length: 3\n\nabc");
        assert_eq!(
            (watch.payload().passed(), watch.payload().size(), watch.payload().complete().is_some()),
            (3, Some(3), true)
        );
    }

    #[test]
    fn lengths_and_encodings_are_understood_as_hyper_does() {
        for (headers, payload, size) in [
            ("Content-Length: 3, 3\r\ncontent-length:3", 3, Some(3)),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 1, None),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2", 1, None),
            ("Transfer-Encoding: gzip\r\nContent-Length: 2", 9, None),
            ("Transfer-Encoding: chunked, xchunked", 9, None),
        ] {
            let watch = watch(None, format!("\r\n\r\nHTTP/1.1 200 OK\r\n{headers}\r\n\r\n1\r\na\r\n0\r\n").as_bytes());
            assert_eq!((watch.payload().passed(), watch.payload().size()), (payload, size), "{headers}");
        }
    }

    #[test]
    fn the_body_of_an_error_is_no_payload() {
        for head in [
            "HTTP/1.1 503 No\r\nContent-Length: 3",
            "no http at all",
            "HTTP/1.1 200 OK\r\nContent-Length: -3",
            "HTTP/1.1 200 OK\r\nContent-Length: +3",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4",
            "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808",
        ] {
            assert_eq!(watch(Some(3), format!("{head}\r\n\r\nabc").as_bytes()).payload().passed(), 0, "{head}");
        }
    }

    proptest! {
        #[test]
        fn cutting_the_reads_elsewhere_changes_no_count(
            cuts in prop::collection::vec(1usize..50, 1..50),
            response in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..400),
                "HTTP/1.1 200 OK\r\nContent-Length: [0-9]{1,3}\r\n\r\n[a-z\r\n]{0,200}".prop_map(String::into_bytes),
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n([0-9a-f]{1,2}\r\n[a-z]{0,20}\r\n){0,5}0\r\n\r\n[a-z]{0,4}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            let whole = watch(None, &response);
            let mut cut = Watch::new(None);
            let (mut rest, mut cuts) = (response.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                cut.read(0, now);
                rest = later;
            }
            let count = |watch: &Watch| (watch.payload().passed(), watch.surplus(), watch.payload().size());
            prop_assert_eq!(count(&whole), count(&cut));
        }
    }
}
