//! What a book keeps of one circuit, and of one stream (no I/O).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::event::CircuitBandwidth;
use super::{CongestionSample, USER_PREFIX};
use crate::clock::UnixMicros;

/// The most samples of one circuit's congestion.
pub const MOST_SAMPLES: usize = 24;

/// So many attachments to one circuit are remembered: the last ones.
pub(super) const MOST_ATTACHED: usize = 24;

/// A line and when it came.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it came.
    pub at: Instant,
    /// Without status code and line end.
    pub text: Box<str>,
    /// Whether it tells what was found, not what happened: a line of `GETINFO circuit-status`.
    pub found: bool,
}

/// A circuit.
#[derive(Clone, Debug)]
pub struct CircuitRecord {
    /// tor's id.
    pub id: u64,
    /// CIRC and CIRC_MINOR.
    pub lines: Vec<Line>,
    /// The wall clock when it was first heard of.
    pub heard_of: UnixMicros,
    /// Its Conflux set.
    pub set: Option<Box<str>>,
    /// The SOCKS user name that it is isolated for.
    pub user: Option<Box<str>>,
    /// tor's REND_QUERY: the onion service that it is for.
    pub onion: Option<Box<str>>,
    /// tor's PURPOSE, as it was last.
    pub purpose: Box<str>,
    /// tor's word for its last state: `LAUNCHED`, `EXTENDED`, `BUILT` …
    pub status: Box<str>,
    /// tor's HS_STATE, as it was last.
    pub hs_state: Option<Box<str>>,
    /// Its hops as tor wrote them last.
    pub path: Box<str>,
    /// Its bytes and congestion.
    pub traffic: Traffic,
    /// Which streams were attached to it: the last few.
    pub attached: VecDeque<Attached>,
    /// Whether somebody else's stream was attached to it.
    pub(super) foreign: bool,
    /// Whether all was told of it: it was neither found nor forgotten in between.
    pub(super) from_launch: bool,
    /// When it ended.
    pub ended: Option<Instant>,
}

/// A stream's attachment to a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// When it was told.
    pub at: Instant,
    /// tor's id of the stream.
    pub stream: u64,
    /// Bytes that the circuit had carried to us by then, as far as tor had told.
    pub read: u64,
    /// The same, from us.
    pub written: u64,
}

/// What a circuit has carried.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// How many CIRC_BW lines came.
    pub lines: u64,
    /// Bytes to us.
    pub read: u64,
    /// Bytes from us.
    pub written: u64,
    /// Congestion over time, thinned.
    pub samples: Vec<(Instant, CongestionSample)>,
    /// The least time between two samples; it doubles each time they are thinned.
    spacing: Duration,
}

/// A stream.
#[derive(Clone, Debug)]
pub struct StreamRecord {
    /// tor's id.
    pub id: u64,
    /// STREAM.
    pub lines: Vec<Line>,
    /// The SOCKS user name.
    pub user: Option<Box<str>>,
    /// The client's port (SOURCE_ADDR), where tor told it.
    pub source_port: Option<u16>,
    /// Whether it is tor's own: for its directory.
    pub(super) internal: bool,
    /// When it was first heard of.
    pub begun: Instant,
    /// When it ended.
    pub ended: Option<Instant>,
    /// The circuits that it was attached to, in order.
    pub circuits: Vec<u64>,
}

impl CircuitRecord {
    pub(super) fn new(id: u64, heard_of: UnixMicros) -> Self {
        CircuitRecord {
            id,
            lines: Vec::new(),
            heard_of,
            set: None,
            user: None,
            onion: None,
            purpose: "".into(),
            status: "".into(),
            hs_state: None,
            path: "".into(),
            traffic: Traffic::default(),
            attached: VecDeque::new(),
            foreign: false,
            from_launch: false,
            ended: None,
        }
    }

    /// Whether it serves somebody else, or may do so, on a tor that others use too: of one that was not seen from its
    /// launch on, it can't be told who used it; and those for onion services tell much of whoever runs or visits them,
    /// without a stream.
    pub(super) fn is_foreign(&self, is_own_onion: impl Fn(&str) -> bool) -> bool {
        let own = self.user.as_deref().is_some_and(|user| user.starts_with(USER_PREFIX))
            || (self.user.is_none() && self.onion.as_deref().is_some_and(is_own_onion));
        let for_onion = self.onion.is_some() || self.purpose.starts_with("HS_");
        self.foreign || (!own && (self.user.is_some() || for_onion || !self.from_launch))
    }

    /// Whether it failed, or has carried no stream of anybody.
    ///
    /// A circuit that carried somebody else's stream is nobody's business; one to an onion service is used
    /// without a stream of its own, and belongs to the run or service whose name it has.
    pub(super) fn is_loose(&self) -> bool {
        let serves = self.user.is_some() || self.hs_state.as_deref() == Some("HSSR_JOINED");
        &*self.status == "FAILED" || (self.attached.is_empty() && !serves)
    }
}

impl StreamRecord {
    pub(super) fn new(id: u64, at: Instant) -> Self {
        StreamRecord {
            id,
            lines: Vec::new(),
            user: None,
            source_port: None,
            internal: false,
            begun: at,
            ended: None,
            circuits: Vec::new(),
        }
    }
}

impl Traffic {
    pub(super) fn add(&mut self, at: Instant, line: &CircuitBandwidth) {
        self.lines += 1;
        self.read = self.read.saturating_add(line.read);
        self.written = self.written.saturating_add(line.written);
        if line.cwnd.is_none() && line.rtt.is_none() {
            return;
        }
        let sample = CongestionSample {
            // Set when it is written as evidence: it is relative to a run.
            at_us: 0,
            cwnd_cells: line.cwnd,
            rtt_us: line.rtt.map(|ms| ms.saturating_mul(1000)),
            min_rtt_us: line.min_rtt.map(|ms| ms.saturating_mul(1000)),
            slow_start: line.slow_start,
        };
        if let Some((last_at, last)) = self.samples.last_mut() {
            // Only what changes tells anything.
            let same = *last == sample;
            if same || at.saturating_duration_since(*last_at) < self.spacing {
                return;
            }
        }
        if self.samples.len() >= MOST_SAMPLES {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            let span = at.saturating_duration_since(self.samples[0].0);
            self.spacing = (self.spacing * 2).max(span / MOST_SAMPLES as u32);
        }
        self.samples.push((at, sample));
    }
}
