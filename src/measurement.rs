//! One run: what was asked, which steps it reached, how it ended (no I/O).
//!
//! A failed run is a value like any other. Steps are microseconds after START on the monotonic clock;
//! durations between steps are derived where they are needed and stored nowhere.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::circuit::CircuitData;
use crate::clock::UnixMicros;

/// A run's globally unique name: 32 lower-case hexadecimal digits, 128 random bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RunId(String);

impl RunId {
    /// A name that no run had before.
    pub fn random() -> Self {
        Self::from_bits(rand::random())
    }

    /// The name made of these 128 bits.
    pub fn from_bits(bits: u128) -> Self {
        RunId(format!("{bits:032x}"))
    }

    /// The name that `text` is, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(hex)).then(|| RunId(text.to_owned()))
    }

    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a run does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It fetches random bytes (GET).
    #[default]
    Download,
    /// It sends random bytes, which the server verifies (POST).
    Upload,
}

impl Kind {
    /// Every kind, with the word that the configuration, the store and the API use for it.
    pub const ALL: [(Kind, &'static str); 2] = [(Kind::Download, "download"), (Kind::Upload, "upload")];

    /// The kind's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The kind of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(k, _)| *k)
    }
}

/// How the server is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerKind {
    /// At its public address, through an exit.
    #[default]
    Exit,
    /// As an onion service.
    Onion,
    /// As a single-hop (non-anonymous) onion service.
    SingleOnion,
}

impl ServerKind {
    /// Every kind, with the word that the store and the API use for it.
    pub const ALL: [(ServerKind, &'static str); 3] =
        [(ServerKind::Exit, "exit"), (ServerKind::Onion, "onion"), (ServerKind::SingleOnion, "single_onion")];

    /// The kind's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The kind of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(k, _)| *k)
    }
}

/// Which of the runs of its slot a run is: a slot of a series, or of a comparison of several tors, has
/// more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Place {
    /// In the order in which they were run, from 0.
    pub index: u32,
    /// How many runs the slot was to have, at least 1.
    pub of: u32,
}

impl Place {
    /// The place of a run that has its slot for itself.
    pub const ALONE: Place = Place { index: 0, of: 1 };
}

/// What a run is to fetch or send, and through what.
#[derive(Clone, Debug)]
pub struct Request {
    /// The run's name, sent to the server in the header `X-Perfd-Run`.
    pub id: RunId,
    /// Whether it fetches or sends.
    pub kind: Kind,
    /// The SOCKS user name, 1 to 255 bytes: Tor gives streams of different user names different circuits.
    pub user: String,
    /// Whether the HTTP request is sent before the SOCKS reply has come (trac #3875).
    pub optimistic: bool,
    /// The SOCKS 5 proxy.
    pub socks: SocketAddr,
    /// The server's name or address, as the proxy is told it (an IPv6 address without brackets).
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// How many bytes of payload must come (`None` takes what the server announces), or are sent
    /// (`None` sends nothing).
    pub size: Option<u64>,
    /// How long the whole run may take, connection included.
    pub timeout: Duration,
    /// The seed of the payload's ChaCha8 stream; `None` leaves the payload unverified.
    pub payload_seed: Option<[u8; 32]>,
}

/// Payload positions in bytes at which the time is noted, as `PARTIALn`: 10, 20, 50, 100, 200 and
/// 500 KiB, 1, 2 and 5 MiB.
pub const PARTIALS: [u64; 9] = [10_240, 20_480, 51_200, 102_400, 204_800, 512_000, 1_048_576, 2_097_152, 5_242_880];

/// When each step was reached: microseconds after START, `None` where it was not reached.
///
/// The steps are Torperf's, in the order in which a run passes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// The socket was created.
    pub socket: Option<u64>,
    /// It was connected to the proxy.
    pub connect: Option<u64>,
    /// The proxy's choice of a SOCKS method came.
    pub negotiate: Option<u64>,
    /// The SOCKS request was sent.
    pub request: Option<u64>,
    /// The SOCKS reply came, whole.
    pub response: Option<u64>,
    /// The HTTP request was written, whole; of an upload, its head.
    pub data_request: Option<u64>,
    /// The first byte of the HTTP response came.
    pub data_response: Option<u64>,
    /// The payload was complete (and, where it was verified, right); of an upload, the server had said so.
    pub data_complete: Option<u64>,
    /// 0, 10, … 100 % of the payload had come; 0 is its first byte. Of an upload: had been taken by the
    /// kernel for sending.
    pub deciles: [Option<u64>; 11],
    /// So many bytes of payload had come, by [`PARTIALS`]; only those within the payload's size.
    pub partials: [Option<u64>; PARTIALS.len()],
}

impl Steps {
    /// The steps that every run has, in order, with their Torperf names.
    pub fn in_order(&self) -> [(Phase, Option<u64>); 8] {
        [
            (Phase::Socket, self.socket),
            (Phase::Connect, self.connect),
            (Phase::Negotiate, self.negotiate),
            (Phase::Request, self.request),
            (Phase::Response, self.response),
            (Phase::DataRequest, self.data_request),
            (Phase::DataResponse, self.data_response),
            (Phase::DataComplete, self.data_complete),
        ]
    }

    /// The first step that was not reached; `DataComplete` if all were.
    pub fn pending(&self) -> Phase {
        self.in_order().into_iter().find(|(_, at)| at.is_none()).map_or(Phase::DataComplete, |(phase, _)| phase)
    }
}

/// The step that a run was waiting for when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Creating the socket.
    Socket,
    /// Connecting to the proxy.
    Connect,
    /// Waiting for the proxy's choice of a method.
    Negotiate,
    /// Authenticating to the proxy and sending the SOCKS request.
    Request,
    /// Waiting for the SOCKS reply.
    Response,
    /// Writing the HTTP request.
    DataRequest,
    /// Waiting for the first byte of the HTTP response.
    DataResponse,
    /// Waiting for the end of the payload.
    DataComplete,
}

impl Phase {
    /// Every phase, with the word that the store and the API use for it.
    pub const ALL: [(Phase, &'static str); 8] = [
        (Phase::Socket, "socket"),
        (Phase::Connect, "connect"),
        (Phase::Negotiate, "negotiate"),
        (Phase::Request, "request"),
        (Phase::Response, "response"),
        (Phase::DataRequest, "data_request"),
        (Phase::DataResponse, "data_response"),
        (Phase::DataComplete, "data_complete"),
    ];

    /// The phase's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The phase of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(p, _)| *p)
    }
}

/// Why a run failed: a closed set. What goes with a cause (a code, a message) is in [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The proxy's port refused the connection.
    Refused,
    /// No route to the proxy.
    Unreachable,
    /// The connection was reset.
    Reset,
    /// The connection was closed before the step was reached.
    Closed,
    /// Another error of the operating system, or a request that can't be made; the detail names it.
    Io,
    /// What answered does not speak SOCKS 5, or broke its rules.
    SocksMalformed,
    /// The proxy accepted none of the methods offered.
    SocksMethod,
    /// The proxy refused user name and password.
    SocksAuth,
    /// The proxy answered the request with an error; `socks_code` is its code.
    SocksReply,
    /// What answered does not speak HTTP/1.1, or broke its rules.
    HttpMalformed,
    /// The server answered with another status than 200; `http_status` is it.
    HttpStatus,
    /// The server announced another size than was asked for.
    PayloadSize,
    /// The payload ended before its announced size.
    PayloadTruncated,
    /// More bytes came than the payload's size.
    PayloadPadded,
    /// A byte of the payload is not the one that was sent.
    PayloadTampered,
    /// Another program measured, and what it says of the failure has no word here; the detail is what it says.
    /// Of imported results alone.
    Other,
}

impl Cause {
    /// Every cause, with the word that the store and the API use for it.
    pub const ALL: [(Cause, &'static str); 16] = [
        (Cause::Refused, "refused"),
        (Cause::Unreachable, "unreachable"),
        (Cause::Reset, "reset"),
        (Cause::Closed, "closed"),
        (Cause::Io, "io"),
        (Cause::SocksMalformed, "socks_malformed"),
        (Cause::SocksMethod, "socks_method"),
        (Cause::SocksAuth, "socks_auth"),
        (Cause::SocksReply, "socks_reply"),
        (Cause::HttpMalformed, "http_malformed"),
        (Cause::HttpStatus, "http_status"),
        (Cause::PayloadSize, "payload_size"),
        (Cause::PayloadTruncated, "payload_truncated"),
        (Cause::PayloadPadded, "payload_padded"),
        (Cause::PayloadTampered, "payload_tampered"),
        (Cause::Other, "other"),
    ];

    /// The cause's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The cause of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(c, _)| *c)
    }
}

/// What went wrong, with what the other side said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step that was being waited for.
    pub phase: Phase,
    /// Why it was not reached.
    pub cause: Cause,
    /// The code of the SOCKS reply, where the cause is [`Cause::SocksReply`].
    pub socks_code: Option<u8>,
    /// The status of the HTTP response, where the cause is [`Cause::HttpStatus`].
    pub http_status: Option<u16>,
    /// A sentence for people, in our own words but for what an operating system's error says.
    pub detail: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was reached, and the payload is what was sent.
    Complete,
    /// The timeout ran out while this step was being waited for.
    Timeout(Phase),
    /// It failed before its timeout.
    Failed(Failure),
}

impl Outcome {
    /// The outcome's word: `complete`, `timeout` or `failed`.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Complete => "complete",
            Outcome::Timeout(_) => "timeout",
            Outcome::Failed(_) => "failed",
        }
    }

    /// The step that was being waited for; `None` of a complete run.
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Outcome::Complete => None,
            Outcome::Timeout(phase) => Some(*phase),
            Outcome::Failed(failure) => Some(failure.phase),
        }
    }

    /// What went wrong, where something did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Complete => f.write_str("complete"),
            Outcome::Timeout(phase) => write!(f, "timeout waiting for {}", phase.as_str()),
            Outcome::Failed(e) => write!(f, "failed at {}: {} ({})", e.phase.as_str(), e.cause.as_str(), e.detail),
        }
    }
}

/// What the codes of a SOCKS 5 reply mean: RFC 1928's and, from F0 on, tor's extended ones
/// (its `ExtendedErrors`, proposal 304).
pub fn socks_reply_meaning(code: u8) -> &'static str {
    match code {
        0x00 => "succeeded",
        0x01 => "general failure",
        0x02 => "not allowed by ruleset",
        0x03 => "network unreachable",
        0x04 => "host unreachable",
        0x05 => "connection refused",
        0x06 => "TTL expired",
        0x07 => "command not supported",
        0x08 => "address type not supported",
        0xf0 => "onion service descriptor can not be found",
        0xf1 => "onion service descriptor is invalid",
        0xf2 => "onion service introduction failed",
        0xf3 => "onion service rendezvous failed",
        0xf4 => "onion service needs client authorization",
        0xf5 => "onion service has wrong client authorization",
        0xf6 => "onion service address is invalid",
        0xf7 => "onion service introduction timed out",
        _ => "unknown code",
    }
}

/// How much of the payload had passed when: at most [`CURVE_POINTS`] pairs of µs after START and bytes of
/// payload, both growing; the first byte and the last one are always among them.
///
/// From perfd's own reads of a download, from its own writes of an upload.
pub type Curve = Vec<(u64, u64)>;

/// The most points of a [`Curve`].
pub const CURVE_POINTS: usize = 64;

/// What the server saw of an upload, in microseconds after the run's START.
///
/// The server says it in its answer, by its own wall clock: on another host, the difference between the
/// two clocks is in every one of these times, which may then even be negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSide {
    /// The request's head had come.
    pub request: i64,
    /// 0, 10, … 100 % of the payload had come; 0 is its first byte.
    pub deciles: [Option<i64>; 11],
}

/// One run, as it was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// The run's name.
    pub id: RunId,
    /// Whether it fetched or sent.
    pub kind: Kind,
    /// The SOCKS user name that it used; not known of an imported run.
    pub user: Option<String>,
    /// Whether the HTTP request was sent before the SOCKS reply had come.
    pub optimistic: bool,
    /// The wall clock at START; every step is relative to it.
    pub start: UnixMicros,
    /// When the run had ended, microseconds after START (the last thing that perfd did for it).
    pub ended: u64,
    /// How many bytes of payload were asked for (or announced, where none were asked for); 0 where
    /// neither was known.
    pub size: u64,
    /// The steps that it reached.
    pub steps: Steps,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of HTTP written, headers included; SOCKS is not counted.
    pub written: u64,
    /// Bytes of HTTP read, headers included; SOCKS is not counted.
    pub read: u64,
    /// Our end of the connection to the proxy, once there was one.
    pub local: Option<SocketAddr>,
    /// The proxy; not known of an imported run whose file doesn't name it.
    pub proxy: Option<SocketAddr>,
    /// The server's name or address; not known of an imported run whose file doesn't name it.
    pub remote_host: Option<String>,
    /// The server's port, known where the host is.
    pub remote_port: Option<u16>,
    /// Whether the proxy took a user name of the run's own, so that Tor gives it a circuit of its
    /// own; `None` where it never got so far.
    pub isolated: Option<bool>,
    /// Whether the run is complete and every byte of its payload was compared with what was sent. Not known of an
    /// imported run, and false there.
    pub verified: bool,
    /// How the payload came, or went. Not part of a row of a list: empty there.
    pub curve: Curve,
    /// Of an upload, what the server saw; absent where it did not say.
    pub server: Option<ServerSide>,
}

impl Measurement {
    /// µs from START until the first byte of the payload had come.
    pub fn time_to_first_byte(&self) -> Option<u64> {
        self.steps.deciles[0]
    }

    /// µs from START until the payload was complete.
    pub fn time_to_last_byte(&self) -> Option<u64> {
        self.steps.data_complete
    }

    /// Torperf's DIDTIMEOUT: a timeout, or any failure that has no DATACOMPLETE (Tor Metrics would otherwise count
    /// it neither as timeout nor as failure).
    pub fn did_time_out(&self) -> bool {
        match self.outcome {
            Outcome::Complete => false,
            Outcome::Timeout(_) => true,
            Outcome::Failed(_) => self.steps.data_complete.is_none(),
        }
    }
}

/// A measurement as the store keeps it and the exporters show it.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultRow {
    /// From one growing sequence: a row that is completed later gets a new, higher one.
    pub revision: i64,
    /// The name of the instance that measured (Torperf's SOURCE).
    pub source: String,
    /// The experiment's name.
    pub experiment: String,
    /// The name of the tor.
    pub tor: String,
    /// When the slot was planned that this run belongs to; an imported run belongs to none.
    pub planned: Option<UnixMicros>,
    /// The number of the configuration in force; the store keeps each distinct one once. Not known of an imported run.
    pub configuration: Option<i64>,
    /// The version of perfd that measured; not known of an imported run.
    pub version: Option<String>,
    /// How the server was reached.
    pub server: ServerKind,
    /// Which of the runs of its slot it is.
    pub place: Place,
    /// The run.
    pub measurement: Measurement,
    /// What tor told of it; absent where perfd has no control of that tor.
    pub circuit: Option<CircuitData>,
    /// Where it was imported: from what, and what its line said beyond all this.
    pub imported: Option<Imported>,
}

/// What an imported result's line said beyond what a [`Measurement`] holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The name of the file that it came from, without its folder; the same for all rows of the file.
    pub file: std::sync::Arc<str>,
    /// Torperf's DIDTIMEOUT, as the line had it.
    pub did_time_out: bool,
    /// Whether the line named the experiment; else perfd chose the name.
    pub names_experiment: bool,
    /// Whether the line named the run; else its name is made of what tells it from others.
    pub names_run: bool,
    /// Keys and values in Torperf's form, in the order in which they came: what has no field of its own, such as
    /// PATH, ENDPOINTLOCAL, steps that were not reached and keys that perfd does not know.
    pub extra: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_values_match() {
        for (phase, word) in Phase::ALL {
            assert_eq!((phase.as_str(), Phase::parse(word)), (word, Some(phase)));
        }
        for (cause, word) in Cause::ALL {
            assert_eq!((cause.as_str(), Cause::parse(word)), (word, Some(cause)));
        }
    }

    #[test]
    fn a_run_waits_for_the_first_step_it_has_not_reached() {
        let mut steps = Steps::default();
        assert_eq!(steps.pending(), Phase::Socket);
        steps.socket = Some(1);
        steps.connect = Some(2);
        assert_eq!(steps.pending(), Phase::Negotiate);
    }

    #[test]
    fn a_run_id_is_thirty_two_lower_case_hex_digits() {
        let id = RunId::from_bits(0xabc);
        assert_eq!(RunId::parse(id.as_str()), Some(id));
        for bad in [
            "",
            "ABCDEF00000000000000000000000000",
            "0123456789abcdef0123456789abcde",
            "g0000000000000000000000000000000",
        ] {
            assert_eq!(RunId::parse(bad), None, "{bad}");
        }
    }
}
