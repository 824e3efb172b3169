//! Circuits that failed, or that no run used, as JSON.

use serde::{Deserialize, Serialize};

use crate::circuit::{Circuit, LooseCircuit};

/// A circuit as it is shown; `circuit` has the form that the schema of a result describes, its times being
/// relative to `since`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CircuitJson {
    /// The name of the tor.
    pub tor: String,
    /// The number of the control connection.
    pub connection: u64,
    /// When it was launched (or when perfd first heard of it): RFC 3339, UTC, with microseconds.
    pub since: String,
    /// The same in microseconds since the Unix epoch.
    pub since_unix_us: i64,
    /// The circuit.
    pub circuit: Circuit,
}

impl From<LooseCircuit> for CircuitJson {
    fn from(loose: LooseCircuit) -> Self {
        let LooseCircuit { tor, connection, since, circuit } = loose;
        CircuitJson { tor, connection, since: since.to_string(), since_unix_us: since.0, circuit }
    }
}
