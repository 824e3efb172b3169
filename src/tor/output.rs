//! What a tor says, line by line: into perfd's log, and its end kept for whoever asks why it ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};
use tracing::{Level, debug, info, warn};

/// As many of the last lines are kept.
const KEPT: usize = 12;
/// Longer lines are cut, in bytes.
const LONGEST: usize = 1024;
/// More lines in one second are counted instead of logged.
const LINES_A_SECOND: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// The last lines of a tor's output.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Reads to the end, and logs and keeps what comes.
pub(super) async fn drain(mut output: impl AsyncRead + Unpin, tor: String, tail: Tail) {
    let mut cutter = Cutter::default();
    let mut flood = Flood::new(Instant::now());
    let mut bytes = [0; 8192];
    loop {
        let read = tokio::select! {
            read = output.read(&mut bytes) => read.unwrap_or(0),
            () = sleep_until(flood.ends()), if flood.unlogged > 0 => {
                log_unlogged(&tor, flood.take_unlogged());
                continue;
            }
        };
        let lines = if read == 0 {
            cutter.rest().into_iter().collect()
        } else {
            cutter.cut(bytes.get(..read).unwrap_or_default())
        };
        for line in lines {
            let (admitted, unlogged) = flood.admits(Instant::now());
            log_unlogged(&tor, unlogged);
            if admitted {
                log(&tor, &line);
            }
            tail.push(line);
        }
        if read == 0 {
            return log_unlogged(&tor, flood.take_unlogged());
        }
    }
}

fn log(tor: &str, line: &str) {
    match severity(line) {
        (Level::WARN, said) => warn!(tor, "{said}"),
        (Level::INFO, said) => info!(tor, "{said}"),
        (_, said) => debug!(tor, "{said}"),
    }
}

fn log_unlogged(tor: &str, lines: u64) {
    if lines > 0 {
        warn!(tor, lines, "this tor says too much; so many lines are not logged");
    }
}

/// How severe a line is, and what it says behind tor's time and severity.
pub(super) fn severity(line: &str) -> (Level, &str) {
    // "Nov 24 23:11:17.000 [notice] Bootstrapped 0% (starting): Starting"
    const TIME: usize = "Nov 24 23:11:17.000 ".len();
    let marks = [("[warn] ", Level::WARN), ("[err] ", Level::WARN), ("[notice] ", Level::INFO)];
    let found = marks.into_iter().find_map(|(mark, level)| {
        let (time, said) = line.split_once(mark)?;
        (time.len() <= TIME).then_some((level, said))
    });
    found.unwrap_or((Level::DEBUG, line))
}

/// Cuts bytes into lines of bounded length that steer no terminal.
#[derive(Default)]
struct Cutter {
    line: Vec<u8>,
    overlong: bool,
}

impl Cutter {
    /// The lines that end in these bytes.
    fn cut(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => lines.push(self.take()),
                _ if self.line.len() < LONGEST => self.line.push(byte),
                _ => self.overlong = true,
            }
        }
        lines
    }

    /// The last line, if it has no end.
    fn rest(&mut self) -> Option<String> {
        (!self.line.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line));
        let harmless = text.chars().map(|c| {
            if c == '\t' {
                ' '
            } else if c.is_control() {
                '?'
            } else {
                c
            }
        });
        harmless.chain(std::mem::take(&mut self.overlong).then_some('…')).collect()
    }
}

/// Counts the lines of a second.
struct Flood {
    since: Instant,
    logged: u32,
    unlogged: u64,
}

impl Flood {
    fn new(now: Instant) -> Self {
        Flood { since: now, logged: 0, unlogged: 0 }
    }

    fn ends(&self) -> Instant {
        self.since + SECOND
    }

    /// Whether a line is to be logged, and how many were not in the second before.
    fn admits(&mut self, now: Instant) -> (bool, u64) {
        let mut before = 0;
        if now >= self.ends() {
            before = self.unlogged;
            *self = Flood::new(now);
        }
        let admitted = self.logged < LINES_A_SECOND;
        if admitted {
            self.logged += 1;
        } else {
            self.unlogged += 1;
        }
        (admitted, before)
    }

    fn take_unlogged(&mut self) -> u64 {
        std::mem::take(&mut self.unlogged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_line_is_as_severe_as_tor_says() {
        let cases = [
            ("Nov 24 23:11:17.000 [notice] Opening", (Level::INFO, "Opening")),
            ("Nov 24 23:11:17.000 [warn] Could not bind", (Level::WARN, "Could not bind")),
            ("Nov 24 23:11:17.000 [err] Reading config failed", (Level::WARN, "Reading config failed")),
            ("Nov 24 23:11:17.000 [info] x", (Level::DEBUG, "Nov 24 23:11:17.000 [info] x")),
            ("[warn] x", (Level::WARN, "x")),
            ("Nov 24 23:11:17.000 [notice] he said [warn] x", (Level::INFO, "he said [warn] x")),
            ("something other than tor said [warn] x", (Level::DEBUG, "something other than tor said [warn] x")),
            ("", (Level::DEBUG, "")),
        ];
        for (line, expected) in cases {
            assert_eq!(severity(line), expected);
        }
    }

    #[test]
    fn lines_are_bounded_and_harmless() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.cut(b"one\ntw"), ["one"]);
        assert_eq!(cutter.cut(b"o\r\n\n\x1b[2J\ta\xff\n"), ["two", "", "?[2J a\u{fffd}"]);
        assert_eq!(cutter.cut(&[b'x'; 5000]), [""; 0]);
        assert_eq!(cutter.cut(b"\nshort\nlast"), [format!("{}…", "x".repeat(1024)), "short".to_owned()]);
        assert_eq!((cutter.rest().as_deref(), cutter.rest()), (Some("last"), None));
    }

    #[test]
    fn a_flood_is_counted() {
        let start = Instant::now();
        let mut flood = Flood::new(start);
        let admitted = (0..250).filter(|_| flood.admits(start + SECOND / 2).0).count();
        assert_eq!(admitted, 100);
        assert_eq!(flood.admits(start + SECOND), (true, 150));
        assert_eq!((flood.admits(start + SECOND), flood.take_unlogged()), ((true, 0), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_read_the_end_is_kept_and_a_flood_reaches_the_log_as_a_number() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);

        let tail = Tail::default();
        let (mut tor, output) = tokio::io::duplex(64);
        let say = async {
            for i in 0..1000 {
                tor.write_all(format!("Nov 24 23:11:17.000 [notice] line {i}\n").as_bytes()).await.unwrap();
            }
            // The count comes though nothing more is said.
            tokio::time::sleep(SECOND * 2).await;
            assert!(log.text().ends_with("so many lines are not logged tor=\"a\" lines=900\n"), "{}", log.text());
            tor.write_all(b"Nov 24 23:11:17.000 [err] the end").await.unwrap();
            drop(tor);
        };
        tokio::join!(say, drain(output, "a".to_owned(), tail.clone()));

        let text = log.text();
        assert_eq!(text.lines().count(), 102, "{text}");
        assert!(text.contains(" INFO ") && text.contains(": line 99 tor=\"a\"\n"), "{text}");
        assert!(text.ends_with(": the end tor=\"a\"\n") && text.contains(" WARN "), "{text}");
        let kept = tail.lines();
        assert_eq!((kept.len(), kept[10].as_str()), (12, "Nov 24 23:11:17.000 [notice] line 999"));
        assert_eq!(kept[11], "Nov 24 23:11:17.000 [err] the end");
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn however_it_comes_in_pieces_the_lines_are_the_same(
            text in prop::collection::vec(any::<u8>(), 0..200), at in 0..200_usize,
        ) {
            let at = at.min(text.len());
            let (mut whole, mut pieces) = (Cutter::default(), Cutter::default());
            let lines = whole.cut(&text);
            let mut same = pieces.cut(&text[..at]);
            same.extend(pieces.cut(&text[at..]));
            prop_assert_eq!((&same, whole.rest()), (&lines, pieces.rest()));
            prop_assert!(lines.iter().all(|line| !line.contains(char::is_control)));
        }
    }
}
