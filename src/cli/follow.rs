//! `perfd results --follow`: prints results as they are stored, over broken connections and restarts of the service.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Deserialize;

use super::ask::{self, ServiceArgs};
use super::exit::{Exit, FAILED, OrExit, UNAVAILABLE};
use super::output;
use crate::export::json::ResultJson;
use crate::export::table::Lines;

/// After a connection broke off, so long is waited before the next; the pause doubles with each that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between two attempts.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// The service may be anybody, and what one event says is held in memory.
const LONGEST_EVENT: usize = 16 << 20;

/// So many runs that were printed are remembered, so as not to take one that was completed for a new one.
const REMEMBERED: usize = 20_000;

/// What is followed, and how it is printed.
pub(super) struct Follow<'a> {
    /// Which service is asked.
    pub service: &'a ServiceArgs,
    /// The filters, and where to begin.
    pub query: Vec<(&'static str, String)>,
    /// Whether it is a table; else lines as the service gives them.
    pub table: bool,
    /// Whether the table shows a run again when it is completed.
    pub completed: bool,
}

/// One server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    id: Option<i64>,
    first: Option<i64>,
    data: String,
}

/// What the first event says beside its id.
#[derive(Deserialize)]
struct Hello {
    /// What stands above the lines.
    head: Option<String>,
}

/// Why a connection is over.
enum Over {
    /// Nobody reads what is printed.
    Unread,
    /// It broke off, or was ended by the service.
    Broken(String),
}

/// Follows until interrupted, or until nobody reads what is printed.
///
/// # Errors
/// If the service can't be asked at first, or refuses.
pub(super) async fn run(follow: Follow<'_>) -> Result<(), Exit> {
    tokio::select! {
        ended = go_on(follow) => ended,
        interrupted = tokio::signal::ctrl_c() => interrupted.or_exit(FAILED),
    }
}

async fn go_on(follow: Follow<'_>) -> Result<(), Exit> {
    let mut printer = Printer::new(follow.table, follow.completed);
    let (mut pause, mut told) = (FIRST_PAUSE, false);
    loop {
        let broken = match connect(&follow, printer.position).await {
            Ok(pieces) => {
                if std::mem::take(&mut told) {
                    output::note("connected again; nothing was missed");
                }
                let position = printer.position;
                let over = listen(pieces, &mut printer).await?;
                if printer.position != position {
                    pause = FIRST_PAUSE;
                }
                match over {
                    Over::Unread => return Ok(()),
                    Over::Broken(why) => why,
                }
            }
            // Whoever never answered may be mistyped.
            Err(exit) if exit.code == UNAVAILABLE && printer.position.is_some() => format!("{:#}", exit.error),
            Err(exit) => return Err(exit),
        };
        if !std::mem::replace(&mut told, true) {
            output::note(format_args!("{broken}; trying again until it answers"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn connect(
    follow: &Follow<'_>,
    position: Option<i64>,
) -> Result<impl Stream<Item = reqwest::Result<Bytes>> + use<>, Exit> {
    let mut query = follow.query.clone();
    if let Some(position) = position {
        query.retain(|(name, _)| !["last", "cursor"].contains(name));
        query.push(("cursor", position.to_string()));
    }
    Ok(ask::get(follow.service, &["events"], &query).await?.bytes_stream())
}

async fn listen(
    mut pieces: impl Stream<Item = reqwest::Result<Bytes>> + Unpin,
    printer: &mut Printer,
) -> Result<Over, Exit> {
    let mut unread = Unread::default();
    while let Some(piece) = pieces.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => return Ok(Over::Broken(format!("the connection broke off ({error})"))),
        };
        unread.0.extend_from_slice(&piece);
        while let Some(event) = unread.next() {
            if !printer.print(event)? {
                return Ok(Over::Unread);
            }
        }
        if unread.0.len() > LONGEST_EVENT {
            return Err(anyhow!("one event is longer than {LONGEST_EVENT} bytes; this is no perfd"))
                .or_exit(UNAVAILABLE);
        }
    }
    Ok(Over::Broken("the service ended the answer".to_owned()))
}

/// What came and is no whole event yet.
#[derive(Default)]
struct Unread(Vec<u8>);

impl Unread {
    /// The next event, if it is there as a whole. Lines end as perfd ends them, with a line feed.
    fn next(&mut self) -> Option<Event> {
        let end = self.0.windows(2).position(|two| two == b"\n\n")?;
        let block: Vec<u8> = self.0.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&block);
        let mut event = Event::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            match name {
                "event" => value.clone_into(&mut event.name),
                "id" => event.id = value.parse().ok(),
                "first" => event.first = value.parse().ok(),
                "data" => value.clone_into(&mut event.data),
                _ => {}
            }
        }
        Some(event)
    }
}

/// Prints, and remembers how far it has come.
struct Printer {
    table: Option<Lines>,
    completed: bool,
    /// The last id; `None` before the first.
    position: Option<i64>,
    /// Where it began: a run that was stored after this is new, unless it was printed.
    began: i64,
    printed: HashSet<String>,
    order: VecDeque<String>,
    terminal: bool,
}

impl Printer {
    fn new(table: bool, completed: bool) -> Self {
        Printer {
            table: table.then(Lines::default),
            completed,
            position: None,
            began: 0,
            printed: HashSet::new(),
            order: VecDeque::new(),
            terminal: std::io::IsTerminal::is_terminal(&std::io::stdout()),
        }
    }

    /// Prints what the event is worth. Gives whether somebody reads on.
    fn print(&mut self, event: Event) -> Result<bool, Exit> {
        let text = self.text(&event).or_exit(UNAVAILABLE)?;
        if event.id.is_some() {
            self.position = event.id;
        }
        match text {
            Some(text) if self.terminal => output::print(output::harmless(&text)),
            Some(text) => output::print(text),
            None => Ok(true),
        }
    }

    fn text(&mut self, event: &Event) -> anyhow::Result<Option<String>> {
        let no_perfd = "the answer is not what a perfd gives";
        match event.name.as_str() {
            "hello" if self.position.is_none() => {
                self.began = event.id.unwrap_or(0);
                let hello: Hello = serde_json::from_str(&event.data).context(no_perfd)?;
                Ok(self.table.as_ref().map(Lines::headings).or(hello.head))
            }
            "result" | "completed" => {
                // The forms that are no JSON objects come as strings.
                if self.table.is_none() {
                    let line = serde_json::from_str::<String>(&event.data);
                    return Ok(Some(line.unwrap_or_else(|_| format!("{}\n", event.data))));
                }
                let result: ResultJson = serde_json::from_str(&event.data).context(no_perfd)?;
                let new = event.name == "result" || event.first.is_some_and(|first| first > self.began);
                let again = !new || self.printed.contains(&result.run_id);
                if again && !self.completed {
                    return Ok(None);
                }
                self.remember(&result.run_id);
                Ok(self.table.as_mut().map(|lines| lines.line(&result, again)))
            }
            _ => Ok(None),
        }
    }

    fn remember(&mut self, run: &str) {
        if self.printed.insert(run.to_owned()) {
            self.order.push_back(run.to_owned());
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.printed.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::example_row;

    fn event(name: &str, id: i64, first: i64, revision: i64) -> Event {
        let mut row = example_row();
        row.revision = revision;
        let data = serde_json::to_string(&ResultJson::from(&row)).unwrap();
        Event { name: name.to_owned(), id: Some(id), first: Some(first), data }
    }

    #[test]
    fn events_are_read_however_they_come_in_pieces() {
        let text = "retry: 3000\n\nevent: hello\nid: 4\ndata: {}\n\n:\n\nfirst: 5\nevent: result\nid: 6\ndata: {\"a: b\"}\n\nev";
        let mut unread = Unread::default();
        let mut seen = Vec::new();
        for byte in text.bytes() {
            unread.0.push(byte);
            seen.extend(std::iter::from_fn(|| unread.next()));
        }
        let event =
            |name: &str, id, first, data: &str| Event { name: name.to_owned(), id, first, data: data.to_owned() };
        let expected = [
            event("", None, None, ""),
            event("hello", Some(4), None, "{}"),
            event("", None, None, ""),
            event("result", Some(6), Some(5), "{\"a: b\"}"),
        ];
        assert_eq!(seen, expected);
        assert_eq!(unread.0, b"ev");
    }

    #[test]
    fn the_table_shows_each_run_once_and_a_completed_one_if_asked() {
        let hello = || Event { name: "hello".to_owned(), id: Some(4), first: None, data: "{}".to_owned() };
        for (completed, expected) in [(false, [true, false, false]), (true, [true, true, true])] {
            let mut printer = Printer::new(true, completed);
            assert!(printer.text(&hello()).unwrap().unwrap().starts_with("OUTCOME"));
            printer.position = Some(4);
            assert_eq!(printer.text(&hello()).unwrap(), None, "again after a broken connection");
            // Completed before its first place was come to: new. Then again; and one from before it began.
            let told = [event("completed", 7, 5, 7), event("completed", 8, 5, 8), event("completed", 9, 3, 9)];
            let texts = told.map(|event| printer.text(&event).unwrap());
            assert_eq!(texts.each_ref().map(Option::is_some), expected);
            let marked = texts.map(|text| text.is_some_and(|text| text.ends_with("completed later\n")));
            assert_eq!(marked, [false, completed, completed]);
        }
    }

    #[test]
    fn a_run_is_remembered_for_a_while() {
        let mut printer = Printer::new(true, false);
        (0..REMEMBERED + 5).for_each(|n| printer.remember(&n.to_string()));
        assert_eq!((printer.printed.len(), printer.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!printer.printed.contains("4") && printer.printed.contains("5"));
    }
}
