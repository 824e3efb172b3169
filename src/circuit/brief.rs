//! What of a run's circuit stands in columns and keys of its own: derived, and stored nowhere else.

use super::{Circuit, CircuitData, Hop};

impl CircuitData {
    /// When the run's stream ended: tor's last CLOSED or FAILED of it, µs after START (Torperf's USED_AT).
    pub fn used_at_us(&self) -> Option<i64> {
        let ended = |status: &str| matches!(status, "CLOSED" | "FAILED");
        self.stream.iter().rev().find(|event| ended(&event.status)).map(|event| event.at_us)
    }

    /// The nicknames of the circuit's hops, joined by `>`, or why they are not known; for people.
    pub fn path_for_people(&self) -> String {
        let hop =
            |hop: &Hop| hop.relay.nickname.clone().unwrap_or_else(|| hop.relay.fingerprint.chars().take(8).collect());
        match &self.circuit {
            Some(circuit) => circuit.path.iter().map(hop).collect::<Vec<_>>().join(">"),
            None => self.state.as_str().to_owned(),
        }
    }
}

impl Circuit {
    /// The hops' fingerprints as `$FP,$FP,…` (Torperf's PATH); `None` where there is no hop, or one of them is
    /// not 40 hexadecimal digits.
    pub fn path_text(&self) -> Option<String> {
        let fingerprint = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let known = !self.path.is_empty() && self.path.iter().all(|hop| fingerprint(&hop.relay.fingerprint));
        let hops = self.path.iter().map(|hop| format!("${}", hop.relay.fingerprint));
        known.then(|| hops.collect::<Vec<_>>().join(","))
    }

    /// When each hop was reached, µs after the launch, with commas between (Torperf's BUILDTIMES, which has
    /// seconds); `None` where there is no hop, or one of the times is not known.
    pub fn build_times_text(&self) -> Option<String> {
        let times: Option<Vec<String>> =
            self.path.iter().map(|hop| hop.built_after_us.map(|us| us.to_string())).collect();
        times.filter(|times| !times.is_empty()).map(|times| times.join(","))
    }
}
