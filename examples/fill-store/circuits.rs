//! What carried a run: relays, and the control lines that tell of them.

use std::fmt::Write;

use perfd::circuit::{CircuitData, Evidence, derive};
use perfd::measurement::{Measurement, Outcome, ServerKind};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use crate::runs::log_normal;
use crate::schedule::{Experiment, TORS};

const RELAYS: usize = 7_000;
/// The first relays are guards, the last ones exits.
const GUARDS: usize = 2_500;
const EXITS: usize = 2_000;

/// The relays.
pub struct Network {
    relays: Vec<String>,
    /// Sums of the weights of a relay and those before it.
    weights: Vec<f64>,
    /// The guards of each tor.
    guards: [[usize; 2]; TORS.len()],
}

impl Network {
    /// A network with weights as uneven as real ones.
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        let mut relay = |i: usize| {
            let fingerprint = (0..5).fold(String::new(), |text, _| text + &format!("{:08X}", rng.random::<u32>()));
            format!("${fingerprint}~relay{i}")
        };
        let relays = (0..RELAYS).map(&mut relay).collect();
        let mut sum = 0.0;
        let mut weight = |_| {
            sum += log_normal(1.0, 1.3, rng);
            sum
        };
        let weights = (0..RELAYS).map(&mut weight).collect();
        let mut network = Network { relays, weights, guards: [[0; 2]; TORS.len()] };
        network.guards = std::array::from_fn(|_| std::array::from_fn(|_| network.drawn(0..GUARDS, rng)));
        network
    }

    /// What tor told of this run, and its lines.
    pub fn circuit(&self, experiment: &Experiment, run: &Measurement, rng: &mut ChaCha8Rng) -> (CircuitData, Evidence) {
        let evidence = Evidence(self.lines(experiment, run, rng));
        (derive(&evidence), evidence)
    }

    fn lines(&self, experiment: &Experiment, run: &Measurement, rng: &mut ChaCha8Rng) -> String {
        let tor = TORS.iter().position(|tor| *tor == experiment.tor).unwrap_or(0);
        let circuit = rng.random_range(20..100_000_u64);
        let user = run.user.as_deref().unwrap_or_default();
        let mut text = format!("perfd evidence 1\nuser {user}\n");
        // Writing to a String does not fail.
        let mut line = |line: String| text.push_str(&line);
        if let Some(local) = run.local {
            line(format!("local {local}\n"));
        }
        let start = run.start.0;
        line(format!("start {start}\nconnection 1\nsince -900000000\ntor 0.4.9.11\nsender none\n\n"));
        let timeout = rng.random_range(1_200..2_400);
        line(format!(
            "-60000000 BUILDTIMEOUT_SET COMPUTED TOTAL_TIMES=1000 TIMEOUT_MS={timeout} XM=400 ALPHA=2.1 \
             CUTOFF_QUANTILE=0.800000 TIMEOUT_RATE=0.1 CLOSE_MS=60000 CLOSE_RATE=0.01\n"
        ));
        let Some(request) = run.steps.request.map(|at| at as i64) else { return text };
        // Of the tors that may, most take two circuits that are linked.
        let conflux = tor != 1 && experiment.server == ServerKind::Exit && rng.random_ratio(7, 10);
        let launch = rng.random_range(-400_000_000..-2_000_000);
        let exit = self.drawn(RELAYS - EXITS..RELAYS, rng);
        for leg in 0..=u64::from(conflux) {
            let guard = self.guards[tor][leg as usize % 2];
            let path = [guard, self.drawn(0..RELAYS, rng), exit];
            let set =
                if conflux { format!(" CONFLUX_ID={:032X}", u128::from(circuit) * 0x9e37_79b9) } else { String::new() };
            self.leg(&mut text, circuit + leg, launch, path, &set, rng);
        }
        let rest = format!(
            "{}:{} SOCKS_USERNAME=\"{user}\" SOCKS_PASSWORD=\"x\" CLIENT_PROTOCOL=SOCKS5",
            run.remote_host.as_deref().unwrap_or_default(),
            run.remote_port.unwrap_or_default()
        );
        let (id, ended) = (rng.random_range(50..200_000_u64), run.ended.min(600_000_000) as i64);
        let mut told = |at: i64, status: &str, circuit: u64, more: &str| {
            let _ = writeln!(text, "{at} STREAM {id} {status} {circuit} {rest}{more}");
        };
        told(request + 90, "NEW", 0, " PURPOSE=USER");
        told(request + 120, "SENTCONNECT", circuit, "");
        if let Some(response) = run.steps.response {
            told(response as i64 - 50, "SUCCEEDED", circuit, "");
        }
        match (&run.outcome, run.steps.response) {
            (Outcome::Complete, _) => told(ended + 60, "CLOSED", circuit, " REASON=END REMOTE_REASON=DONE"),
            (_, Some(_)) => told(ended + 60, "CLOSED", circuit, " REASON=DONE"),
            (_, None) => {
                told(ended - 20, "FAILED", circuit, " REASON=TIMEOUT");
                told(ended - 10, "CLOSED", circuit, " REASON=TIMEOUT");
            }
        }
        text
    }

    /// The lines of one circuit, from its launch until it is built.
    fn leg(&self, text: &mut String, id: u64, launch: i64, path: [usize; 3], set: &str, rng: &mut ChaCha8Rng) {
        let purpose = if set.is_empty() { "GENERAL" } else { "CONFLUX_LINKED" };
        let rest = format!("BUILD_FLAGS=NEED_CAPACITY PURPOSE={purpose}{set}");
        let _ = writeln!(text, "{launch} CIRC {id} LAUNCHED {rest}");
        let (mut at, mut hops) = (launch, String::new());
        for relay in path {
            at += log_normal(110_000.0, 0.5, rng) as i64;
            let comma = if hops.is_empty() { "" } else { "," };
            let _ = write!(hops, "{comma}{}", self.relays[relay]);
            let _ = writeln!(text, "{at} CIRC {id} EXTENDED {hops} {rest}");
        }
        let _ = writeln!(text, "{} CIRC {id} BUILT {hops} {rest}", at + 40);
    }

    /// One of these, by weight.
    fn drawn(&self, among: std::ops::Range<usize>, rng: &mut ChaCha8Rng) -> usize {
        let (from, to) = (self.weights[among.start], self.weights[among.end - 1]);
        let at = rng.random_range(from..=to);
        self.weights.partition_point(|sum| *sum < at).clamp(among.start, among.end - 1)
    }
}
