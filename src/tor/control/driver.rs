//! Driving a control connection: commands out, replies and events in.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::error::{ControlError, quoted_bytes, shown};
use super::lines::Lines;
use super::reply::{Heard, Hearing, Reply, TooLong};

/// How long tor may take to answer, unless said otherwise.
pub const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// So many commands may wait to be sent.
const QUEUE: usize = 16;

/// So many commands may be sent and not answered, those included whose asker has given up.
const IN_FLIGHT: usize = 64;

/// Makes the two ends of a connection that is open: what asks, and what does the work. The stream should not
/// buffer what is written to it.
pub fn start<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> (Commands, Driver<S>) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let driver = Driver {
        stream,
        lines: Lines::default(),
        hearing: Hearing::default(),
        queue,
        writing: None,
        waiting: VecDeque::new(),
        write_error: None,
    };
    (Commands { queue: sender }, driver)
}

/// Asks tor over a connection that a [`Driver`] drives meanwhile.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: mpsc::Sender<Asked>,
}

impl Commands {
    /// Sends a command, one line without its end, and returns what tor answers within [`REPLY_DEADLINE`].
    ///
    /// # Errors
    /// If it is no command, or tor refuses it, or there is no answer. Where the answer is late or too long, the
    /// connection goes on.
    pub async fn ask(&self, command: &str) -> Result<Reply, ControlError> {
        self.ask_within(command, REPLY_DEADLINE).await
    }

    /// As [`Commands::ask`], with another deadline.
    ///
    /// # Errors
    /// As there.
    pub async fn ask_within(&self, command: &str, within: Duration) -> Result<Reply, ControlError> {
        let keyword = || keyword(command);
        if command.trim().is_empty() || command.starts_with('+') || command.contains(['\0', '\r', '\n']) {
            return Err(ControlError::NotACommand { command: keyword() });
        }
        let (answer, answered) = oneshot::channel();
        let asked = Asked { line: format!("{command}\r\n"), answer };
        let ended = || ControlError::Ended { command: keyword() };
        let exchange = async {
            self.queue.send(asked).await.map_err(|_| ended())?;
            answered.await.map_err(|_| ended())
        };
        match timeout(within, exchange).await {
            Err(_) => Err(ControlError::Stalled { command: keyword(), within }),
            Ok(Err(ended)) => Err(ended),
            Ok(Ok(Err(TooLong))) => Err(ControlError::TooLong { command: keyword() }),
            Ok(Ok(Ok(reply))) if reply.ok() => Ok(reply),
            Ok(Ok(Ok(reply))) => {
                let text = without_secrets(&reply.lines.join("; "), command);
                Err(ControlError::Refused { command: keyword(), code: reply.code, text: shown(&text) })
            }
        }
    }
}

struct Asked {
    line: String,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<Reply, TooLong>>;

/// The first word of a command; never more, as the rest may be secret.
fn keyword(command: &str) -> String {
    let word = command.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
    if word.is_empty() { "the command".to_owned() } else { word.chars().take(40).collect() }
}

/// tor's words about a command that may hold secrets, without any word of the command that is long enough to
/// be one. Of others they stay as they are: `Unrecognized event "NOSUCH"` should be seen.
fn without_secrets(text: &str, command: &str) -> String {
    const HARMLESS: [&str; 8] =
        ["PROTOCOLINFO", "SETEVENTS", "GETINFO", "GETCONF", "SIGNAL", "EXTENDCIRCUIT", "ATTACHSTREAM", "CLOSECIRCUIT"];
    let (keyword, rest) = command.split_once(' ').unwrap_or((command, ""));
    if HARMLESS.iter().any(|harmless| harmless.eq_ignore_ascii_case(keyword)) {
        return text.to_owned();
    }
    let words = rest.split(|c: char| c.is_whitespace() || "\"\\:=,".contains(c)).filter(|word| word.len() >= 4);
    words.fold(text.to_owned(), |text, word| text.replace(word, "[…]"))
}

/// Does all reading and writing of a connection.
pub struct Driver<S> {
    stream: S,
    lines: Lines,
    hearing: Hearing,
    queue: mpsc::Receiver<Asked>,
    /// The command that is being sent, and how much of it has been.
    writing: Option<(Asked, usize)>,
    /// Who waits for the next replies, in the order of their commands.
    waiting: VecDeque<Answer>,
    /// Why nothing more can be sent. What tor said last may still be read.
    write_error: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Runs until the connection ends, and returns why. Dropping this ends it.
    ///
    /// `sink` gets each event at once: when the read that brought it returned, and the text of its line without
    /// the code (`STREAM 24 NEW …`). Of an event of several lines it gets the first, of one that is longer than
    /// a line may be nothing. While it runs nothing is read, so it must be quick; after each read of at most
    /// 64 KiB (1 MiB after a line of that size) other tasks have their turn.
    pub async fn run(mut self, mut sink: impl FnMut(Instant, &[u8])) -> ControlError {
        poll_fn(|context| self.turn(context, &mut sink)).await
    }

    /// Sends what can be sent, and reads once.
    fn turn(&mut self, context: &mut Context<'_>, sink: &mut impl FnMut(Instant, &[u8])) -> Poll<ControlError> {
        if self.write_error.is_none() {
            self.write_error = self.write(context).err();
        }
        let mut room = ReadBuf::new(self.lines.room());
        let read = match Pin::new(&mut self.stream).poll_read(context, &mut room) {
            Poll::Ready(read) => read,
            Poll::Pending => return self.write_error.take().map_or(Poll::Pending, |e| ControlError::Broken(e).into()),
        };
        let count = room.filled().len();
        if let Err(error) = read {
            return Poll::Ready(ControlError::Broken(error));
        }
        if count == 0 {
            return Poll::Ready(ControlError::Closed { within_line: self.lines.within_line() });
        }
        self.lines.filled(count);
        if let Err(error) = self.hear(Instant::now(), sink) {
            return Poll::Ready(error);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends commands until the stream takes no more or there are none.
    fn write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let Some((asked, written)) = &mut self.writing else {
                if self.waiting.len() >= IN_FLIGHT {
                    return Ok(());
                }
                let Poll::Ready(Some(asked)) = self.queue.poll_recv(context) else { return Ok(()) };
                if !asked.answer.is_closed() {
                    self.writing = Some((asked, 0));
                }
                continue;
            };
            let rest = asked.line.as_bytes().get(*written..).unwrap_or_default();
            let Poll::Ready(count) = Pin::new(&mut self.stream).poll_write(context, rest)? else { return Ok(()) };
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            *written += count;
            if *written >= asked.line.len()
                && let Some((asked, _)) = self.writing.take()
            {
                self.waiting.push_back(asked.answer);
            }
        }
    }

    /// Takes in the lines that are there.
    fn hear(&mut self, now: Instant, sink: &mut impl FnMut(Instant, &[u8])) -> Result<(), ControlError> {
        while let Some(line) = self.lines.next_line() {
            match self.hearing.hear(line) {
                Ok(Heard::Event(text)) => sink(now, text),
                Ok(Heard::Nothing) if self.hearing.within_reply() && self.waiting.is_empty() => {
                    return Err(ControlError::Unasked { line: quoted_bytes(line.text) });
                }
                Ok(Heard::Nothing) => {}
                Ok(Heard::Reply(reply)) => match self.waiting.pop_front() {
                    // Who asked may have given up.
                    Some(answer) => drop(answer.send(reply)),
                    None => return Err(ControlError::Unasked { line: quoted_bytes(line.text) }),
                },
                Err(_) => return Err(ControlError::Malformed { line: quoted_bytes(line.text) }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_no_secret() {
        let cases = [
            ("SETEVENTS CIRC NOSUCH", "Unrecognized event \"NOSUCH\"", "Unrecognized event \"NOSUCH\""),
            ("AUTHENTICATE \"open sesame\"", "no: open sesame, sesame", "no: […] […], […]"),
            ("AUTHENTICATE \"pass\\\"word\"", "pass\"word", "[…]\"[…]"),
            ("ADD_ONION ED25519-V3:a2V5 Port=80", "Bad key a2V5", "Bad key […]"),
            ("SETCONF Socks5ProxyPassword=hush", "Unacceptable value: hush", "Unacceptable value: […]"),
            ("AUTHENTICATE", "Authentication failed", "Authentication failed"),
        ];
        for (command, text, expected) in cases {
            assert_eq!(without_secrets(text, command), expected);
        }
    }

    #[test]
    fn of_a_command_its_first_word_is_shown() {
        let long = "X".repeat(100);
        for (command, expected) in [
            ("AUTHENTICATE \"x\"", "AUTHENTICATE"),
            ("AUTHENTICATE\"x\"", "AUTHENTICATE"),
            ("ADD_ONION a:b", "ADD_ONION"),
            ("\"x\"", "the command"),
            (&long, &long[..40]),
        ] {
            assert_eq!(keyword(command), expected);
        }
    }
}
