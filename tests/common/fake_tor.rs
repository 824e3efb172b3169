//! A tor that is none: an honest SOCKS proxy, and a control port that follows a script.
//!
//! It tells each client of the proxy as a stream on a circuit of its own. Its ids begin at 1 with each control
//! connection, as those of a tor that was started again do, and the hops of its circuits name the connection.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::relay::{Pace, Relay, Told};

/// What is done on one control connection.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Answers in place of the right ones, by how the command begins; an empty one is none.
    pub answers: Vec<(&'static str, String)>,
    /// What is sent once events were asked for.
    pub then: Vec<u8>,
    /// What is told of streams.
    pub streams: Streams,
}

/// What is told of streams.
#[derive(Clone, Copy, Debug, Default)]
pub enum Streams {
    /// All.
    #[default]
    Whole,
    /// Nothing.
    Nothing,
    /// All of this many; of the next one that it was attached, half a line, and then the connection is closed.
    CutAfter(usize),
}

/// A running one. Whoever writes to the control connection holds its lock, as lines must not be mixed.
pub struct FakeTor {
    pub socks: SocketAddr,
    pub control: SocketAddr,
    live: Arc<Mutex<Option<Live>>>,
}

/// The present control connection.
struct Live {
    number: u64,
    stream: TcpStream,
    script: Script,
    /// Whether events were asked for.
    listening: bool,
    next_id: u64,
    streams: HashMap<String, u64>,
}

const EVENTS: &str = "CIRC CIRC_MINOR STREAM STREAM_BW CIRC_BW BUILDTIMEOUT_SET GUARD STATUS_CLIENT HS_DESC CONN_BW";

impl FakeTor {
    /// Starts one; the scripts are for its control connections, the last one also for all after it.
    pub fn start(scripts: Vec<Script>) -> FakeTor {
        let live: Arc<Mutex<Option<Live>>> = Arc::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let control = listener.local_addr().unwrap();
        let of_control = Arc::clone(&live);
        std::thread::spawn(move || {
            for (client, i) in listener.incoming().flatten().zip(0..) {
                let script = scripts.get(i).or(scripts.last()).cloned().unwrap_or_default();
                let _ = converse(client, i as u64 + 1, script, &of_control);
                *lock(&of_control) = None;
            }
        });
        let of_socks = Arc::clone(&live);
        let relay = Relay::start_told(Pace::AtOnce, move |told| {
            if let Some(live) = lock(&of_socks).as_mut().filter(|live| live.listening) {
                // Whoever listened may be gone.
                let _ = live.tell(told);
            }
        });
        FakeTor { socks: relay.address, control, live }
    }

    /// Sends this over the present control connection.
    pub fn send(&self, bytes: &[u8]) {
        lock(&self.live).as_mut().expect("perfd is connected").stream.write_all(bytes).unwrap();
    }
}

/// The hops of a circuit of a connection, as tor writes them.
pub fn path(connection: u64, circuit: u64) -> String {
    let hops = (1..=3).map(|hop| format!("${:040X}~hop{hop}", connection << 32 | circuit << 8 | hop));
    hops.collect::<Vec<_>>().join(",")
}

fn lock(live: &Mutex<Option<Live>>) -> std::sync::MutexGuard<'_, Option<Live>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers commands until the connection ends.
fn converse(client: TcpStream, number: u64, script: Script, live: &Mutex<Option<Live>>) -> io::Result<()> {
    let answers = script.answers.clone();
    let commands = BufReader::new(client.try_clone()?).lines();
    let streams = HashMap::new();
    *lock(live) = Some(Live { number, stream: client, script, listening: false, next_id: 0, streams });
    for command in commands {
        let command = command?;
        let other = answers.iter().find(|(beginning, _)| command.starts_with(beginning));
        let mut bytes = other.map_or_else(|| right_answer(&command), |(_, answer)| answer.clone()).into_bytes();
        let mut live = lock(live);
        let Some(live) = live.as_mut() else { break };
        if command.starts_with("SETEVENTS") {
            live.listening = true;
            bytes.extend(&live.script.then);
        }
        live.stream.write_all(&bytes)?;
    }
    Ok(())
}

fn right_answer(command: &str) -> String {
    let lines = match command {
        "PROTOCOLINFO 1" => "250-PROTOCOLINFO 1\r\n250-AUTH METHODS=NULL\r\n250-VERSION Tor=\"0.4.9.11\"\r\n",
        "GETINFO events/names" => &format!("250-events/names={EVENTS}\r\n"),
        "GETINFO circuit-status" => "250-circuit-status=\r\n",
        "GETINFO entry-guards" => "250-entry-guards=\r\n",
        "GETINFO status/bootstrap-phase" => {
            "250-status/bootstrap-phase=NOTICE BOOTSTRAP PROGRESS=100 TAG=done SUMMARY=\"Done\"\r\n"
        }
        _ => "",
    };
    format!("{lines}250 OK\r\n")
}

impl Live {
    fn tell(&mut self, told: Told) -> io::Result<()> {
        match (told, self.script.streams) {
            (_, Streams::Nothing) => Ok(()),
            (Told::Asked { user, client }, streams) => {
                self.next_id += 1;
                let id = self.next_id;
                self.streams.insert(user.to_owned(), id);
                let cut = matches!(streams, Streams::CutAfter(most) if self.streams.len() > most);
                let (path, named) = (path(self.number, id), format!("SOCKS_USERNAME=\"{user}\""));
                let mut lines = format!(
                    "650 CIRC {id} LAUNCHED PURPOSE=GENERAL\r\n650 CIRC {id} BUILT {path} PURPOSE=GENERAL {named}\r\n\
                     650 STREAM {id} NEW 0 127.0.0.1:1 SOURCE_ADDR={client} PURPOSE=USER {named}\r\n\
                     650 STREAM {id} SENTCONNECT {id} 127.0.0.1:1 {named}\r\n"
                );
                lines.push_str(&match cut {
                    true => format!("650 STREAM {id} SUCC"),
                    false => format!("650 STREAM {id} SUCCEEDED {id} 127.0.0.1:1 {named}\r\n"),
                });
                self.stream.write_all(lines.as_bytes())?;
                if cut {
                    self.listening = false;
                    self.stream.shutdown(std::net::Shutdown::Both)?;
                }
                Ok(())
            }
            (Told::Over { user }, _) => {
                let Some(id) = self.streams.get(user) else { return Ok(()) };
                write!(self.stream, "650 STREAM {id} CLOSED {id} 127.0.0.1:1 REASON=END SOCKS_USERNAME=\"{user}\"\r\n")
            }
        }
    }
}
