//! One result as JSON with all that is kept beside it: what `/results/{id}` gives.

use serde::{Deserialize, Serialize};

use super::annotations::AnnotationJson;
use super::json::ResultJson;
use crate::measurement::{Curve, ResultRow};
use crate::store::WholeResult;

/// A result, and what a list leaves out of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WholeJson {
    /// The result as in a list; the schema describes it.
    #[serde(flatten)]
    pub result: ResultJson,
    /// How the payload came, or went: pairs of µs after START and bytes by then.
    pub curve: Curve,
    /// The control lines that touch the run, as they were kept.
    pub evidence: Option<String>,
    /// The other runs of its slot.
    pub slot_runs: Vec<SlotRunJson>,
    /// The notes that touch it, the oldest first.
    #[serde(default)]
    pub annotations: Vec<AnnotationJson>,
}

/// Another run of the same slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRunJson {
    /// Its name.
    pub run_id: String,
    /// The tor that it went through.
    pub tor: String,
    /// Its number in the slot, from 0.
    pub index: u32,
}

impl From<&ResultRow> for WholeJson {
    /// Of a row that stands alone, as one that is stored nowhere.
    fn from(row: &ResultRow) -> Self {
        let curve = row.measurement.curve.clone();
        WholeJson {
            result: ResultJson::from(row),
            curve,
            evidence: None,
            slot_runs: Vec::new(),
            annotations: Vec::new(),
        }
    }
}

impl From<&WholeResult> for WholeJson {
    fn from(whole: &WholeResult) -> Self {
        let mates = whole.slot_mates.iter();
        let slot_runs =
            mates.map(|mate| SlotRunJson { run_id: mate.id.to_string(), tor: mate.tor.clone(), index: mate.index });
        WholeJson {
            evidence: whole.evidence.clone(),
            slot_runs: slot_runs.collect(),
            annotations: whole.annotations.iter().map(AnnotationJson::from).collect(),
            ..WholeJson::from(&whole.row)
        }
    }
}
