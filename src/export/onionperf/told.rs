//! What the line of an imported result told beyond its steps, for the sections that OnionPerf has for it.

use serde_json::{Value, json};

use crate::measurement::ResultRow;

/// An imported row, and its line's other keys.
pub(super) struct Told<'a> {
    pub row: &'a ResultRow,
    pub extra: &'a [(String, String)],
}

impl<'a> Told<'a> {
    /// Of any row; one that was not imported told nothing.
    pub(super) fn of(row: &'a ResultRow) -> Self {
        Told { row, extra: row.imported.as_ref().map_or(&[], |imported| &imported.extra) }
    }

    /// The value of a key.
    pub(super) fn said(&self, key: &str) -> Option<&'a str> {
        self.extra.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.said(key)?.parse().ok()
    }

    /// TGen's word, of an ERRORCODE that was made of one: `TOR` and `TGEN/WORD`, with tor's reasons behind them, or the
    /// word alone. Of perfd's own codes the outcome says more.
    pub(super) fn tgen_error(&self) -> Option<&'a str> {
        const WORDS: [&str; 7] = ["AUTH", "PROXY", "READ", "READEOF", "STALLOUT", "TIMEOUT", "WRITE"];
        match self.code()? {
            ("TOR", _) => Some("PROXY"),
            ("TGEN", rest) => rest.first().copied().filter(|word| !word.is_empty()),
            (word, rest) => Some(word).filter(|word| rest.is_empty() && WORDS.contains(word)),
        }
    }

    /// Its circuit, if the line says when it was launched.
    pub(super) fn circuit(&self) -> Option<Value> {
        let launched = self.seconds("LAUNCH")?;
        let hops = self.said("PATH").into_iter().flat_map(|path| path.split(','));
        let times = self.said("BUILDTIMES").into_iter().flat_map(|times| times.split(','));
        let path: Vec<Value> = hops
            .zip(times.map(|time| time.parse::<f64>().unwrap_or(0.0)))
            .map(|(hop, time)| json!([hop.to_ascii_uppercase(), time]))
            .collect();
        let mut circuit = json!({
            "cbt_set": false,
            "elapsed_seconds": [],
            "path": if path.is_empty() { Value::Null } else { path.into() },
            "unix_ts_start": launched,
        });
        for (key, number) in [("circuit_id", self.number("CIRC_ID")), ("build_timeout", self.number("TIMEOUT"))] {
            if let Some(number) = number {
                circuit[key] = json!(number);
            }
        }
        if let Some(quantile) = self.said("QUANTILE").and_then(|quantile| quantile.parse::<f64>().ok()) {
            circuit["build_quantile"] = json!(quantile);
        }
        Some(circuit)
    }

    /// Its stream, if the line says when it ended.
    pub(super) fn tor_stream(&self, circuit: Option<&str>) -> Option<Value> {
        let ended = self.seconds("USED_AT")?;
        let mut stream = json!({
            "circuit_id": circuit,
            "elapsed_seconds": [],
            "unix_ts_end": ended,
            "unix_ts_start": self.row.measurement.start.0.max(1_000) as f64 / 1e6,
        });
        if let Some(id) = self.number("USED_BY") {
            stream["stream_id"] = json!(id);
        }
        // A port by which readers join; an IPv6 address would hide it.
        let source = self.said("ENDPOINTLOCAL").and_then(|local| local.split_once(':')).map(|(_, source)| source);
        if let Some(source) = source.filter(|source| source.matches(':').count() == 1) {
            stream["source"] = json!(source);
        }
        let reasons = match self.code() {
            Some(("TOR", rest)) => rest,
            Some(("TGEN", rest)) => rest.into_iter().skip(1).collect(),
            _ => Vec::new(),
        };
        for (key, reason) in ["failure_reason_local", "failure_reason_remote"].into_iter().zip(reasons) {
            if !reason.is_empty() {
                stream[key] = json!(reason);
            }
        }
        Some(stream)
    }

    /// The parts of an ERRORCODE: the first, and the others.
    fn code(&self) -> Option<(&'a str, Vec<&'a str>)> {
        let mut parts = self.said("ERRORCODE").filter(|code| !code.is_empty())?.split('/');
        Some((parts.next()?, parts.collect()))
    }

    fn seconds(&self, key: &str) -> Option<f64> {
        self.said(key)?.parse().ok()
    }
}
