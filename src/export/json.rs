//! One result as JSON, with the units in its names; `result.schema.json` describes it.

use serde::{Deserialize, Serialize};

use crate::circuit::CircuitData;
use crate::measurement::{Failure, PARTIALS, ResultRow, ServerSide, Steps, socks_reply_meaning};

/// The JSON Schema (draft 2020-12) of one result.
pub const SCHEMA: &str = include_str!("result.schema.json");

/// A result as it is shown. The schema describes each field; names that end in `_us` are microseconds,
/// after START unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the schema describes each field")]
pub struct ResultJson {
    pub run_id: String,
    pub revision: i64,
    pub source: String,
    pub experiment: String,
    pub tor: String,
    pub planned: Option<String>,
    pub planned_unix_us: Option<i64>,
    pub start: String,
    pub start_unix_us: i64,
    pub ended_us: u64,
    pub size_bytes: u64,
    pub outcome: String,
    pub phase: Option<String>,
    pub cause: Option<String>,
    pub socks_code: Option<u8>,
    pub socks_meaning: Option<String>,
    pub http_status: Option<u16>,
    pub detail: Option<String>,
    pub steps_us: StepsJson,
    pub deciles_us: DecilesJson,
    pub partials_us: PartialsJson,
    pub socks_us: Option<u64>,
    pub request_response_us: Option<u64>,
    pub transfer_us: Option<u64>,
    pub time_to_first_byte_us: Option<u64>,
    pub time_to_last_byte_us: Option<u64>,
    pub mean_bytes_per_second: Option<f64>,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub endpoint_local: Option<String>,
    pub endpoint_proxy: Option<String>,
    pub endpoint_remote: Option<String>,
    pub isolated: Option<bool>,
    pub verified: Option<bool>,
    pub configuration_id: Option<i64>,
    pub perfd_version: Option<String>,
    pub kind: String,
    pub server: String,
    pub optimistic: bool,
    pub place: PlaceJson,
    pub socks_user: Option<String>,
    pub server_us: Option<ServerSideJson>,
    pub circuit: Option<CircuitData>,
    #[serde(default)]
    pub imported: Option<String>,
}

/// Which of the runs of its slot a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the schema describes each field")]
pub struct PlaceJson {
    pub index: u32,
    pub of: u32,
}

/// What the server saw of an upload, microseconds after START by its own clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the schema describes each field")]
pub struct ServerSideJson {
    pub request: i64,
    pub deciles: DecilesJson<i64>,
}

/// When each step was reached, microseconds after START.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the schema describes each field")]
pub struct StepsJson {
    pub socket: Option<u64>,
    pub connect: Option<u64>,
    pub negotiate: Option<u64>,
    pub request: Option<u64>,
    pub response: Option<u64>,
    pub data_request: Option<u64>,
    pub data_response: Option<u64>,
    pub data_complete: Option<u64>,
}

/// When 0, 10, … 100 % of the payload had come, microseconds after START; the keys are the per cent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ByNumber<T>", bound = "T: Deserialize<'de> + Copy")]
pub struct DecilesJson<T = u64>(pub [Option<T>; 11]);

/// When so many bytes of payload had come, microseconds after START; the keys are the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ByNumber<u64>")]
pub struct PartialsJson(pub [Option<u64>; PARTIALS.len()]);

const PER_CENTS: [u64; 11] = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100];

impl From<&ResultRow> for ResultJson {
    fn from(row: &ResultRow) -> Self {
        let run = &row.measurement;
        let steps = &run.steps;
        let failure = run.outcome.failure();
        let socks_code = failure.and_then(|failure: &Failure| failure.socks_code);
        ResultJson {
            run_id: run.id.to_string(),
            revision: row.revision,
            source: row.source.clone(),
            experiment: row.experiment.clone(),
            tor: row.tor.clone(),
            planned: row.planned.map(|planned| planned.to_string()),
            planned_unix_us: row.planned.map(|planned| planned.0),
            start: run.start.to_string(),
            start_unix_us: run.start.0,
            ended_us: run.ended,
            size_bytes: run.size,
            outcome: run.outcome.word().to_owned(),
            phase: run.outcome.phase().map(|phase| phase.as_str().to_owned()),
            cause: failure.map(|failure| failure.cause.as_str().to_owned()),
            socks_code,
            socks_meaning: socks_code.map(|code| socks_reply_meaning(code).to_owned()),
            http_status: failure.and_then(|failure| failure.http_status),
            detail: failure.map(|failure| failure.detail.clone()),
            steps_us: StepsJson::from(steps),
            deciles_us: DecilesJson(steps.deciles),
            partials_us: PartialsJson(steps.partials),
            socks_us: between(steps.request, steps.response),
            request_response_us: between(steps.data_request, steps.data_response),
            transfer_us: between(steps.data_response, steps.data_complete),
            time_to_first_byte_us: run.time_to_first_byte(),
            time_to_last_byte_us: run.time_to_last_byte(),
            mean_bytes_per_second: mean_rate(run.size, steps.data_complete),
            bytes_written: run.written,
            bytes_read: run.read,
            endpoint_local: run.local.map(|address| address.to_string()),
            endpoint_proxy: run.proxy.map(|address| address.to_string()),
            endpoint_remote: run.remote_host.as_ref().zip(run.remote_port).map(|(host, port)| endpoint(host, port)),
            isolated: run.isolated,
            verified: row.imported.is_none().then_some(run.verified),
            configuration_id: row.configuration,
            perfd_version: row.version.clone(),
            kind: run.kind.as_str().to_owned(),
            server: row.server.as_str().to_owned(),
            optimistic: run.optimistic,
            place: PlaceJson { index: row.place.index, of: row.place.of },
            socks_user: run.user.clone(),
            server_us: run.server.as_ref().map(ServerSideJson::from),
            circuit: row.circuit.clone(),
            imported: row.imported.as_ref().map(|imported| imported.file.to_string()),
        }
    }
}

impl From<&ServerSide> for ServerSideJson {
    fn from(server: &ServerSide) -> Self {
        ServerSideJson { request: server.request, deciles: DecilesJson(server.deciles) }
    }
}

impl From<&Steps> for StepsJson {
    fn from(steps: &Steps) -> Self {
        StepsJson {
            socket: steps.socket,
            connect: steps.connect,
            negotiate: steps.negotiate,
            request: steps.request,
            response: steps.response,
            data_request: steps.data_request,
            data_response: steps.data_response,
            data_complete: steps.data_complete,
        }
    }
}

fn between(earlier: Option<u64>, later: Option<u64>) -> Option<u64> {
    later?.checked_sub(earlier?)
}

fn mean_rate(bytes: u64, micros: Option<u64>) -> Option<f64> {
    micros.filter(|micros| *micros > 0).map(|micros| bytes as f64 * 1e6 / micros as f64)
}

fn endpoint(host: &str, port: u16) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl<T: Serialize + Copy> Serialize for DecilesJson<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(PER_CENTS.iter().map(u64::to_string).zip(self.0))
    }
}

impl Serialize for PartialsJson {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(PARTIALS.iter().map(u64::to_string).zip(self.0))
    }
}

type ByNumber<T> = std::collections::BTreeMap<String, Option<T>>;

impl<T: Copy> TryFrom<ByNumber<T>> for DecilesJson<T> {
    type Error = String;

    fn try_from(map: ByNumber<T>) -> Result<Self, String> {
        by_number(&PER_CENTS, map).map(DecilesJson)
    }
}

impl TryFrom<ByNumber<u64>> for PartialsJson {
    type Error = String;

    fn try_from(map: ByNumber<u64>) -> Result<Self, String> {
        by_number(&PARTIALS, map).map(PartialsJson)
    }
}

/// The values of the keys known; a newer perfd may send more of them.
fn by_number<T: Copy, const N: usize>(keys: &[u64; N], map: ByNumber<T>) -> Result<[Option<T>; N], String> {
    let mut values = [None; N];
    for (value, key) in values.iter_mut().zip(keys) {
        *value = *map.get(&key.to_string()).ok_or_else(|| format!("missing key {key}"))?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use boon::{Compiler, Schemas};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::test_support::circuit::whole_circuit;
    use crate::test_support::{example_row, result_row};

    fn schema() -> (Schemas, boon::SchemaIndex) {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        compiler.add_resource("urn:result", serde_json::from_str(SCHEMA).unwrap()).unwrap();
        let index = compiler.compile("urn:result", &mut schemas).unwrap();
        (schemas, index)
    }

    /// Every property that the schema names, as paths, each of which must be described.
    fn described(root: &Value, schema: &Value, at: &str, into: &mut BTreeSet<String>) {
        if let Some(name) = schema["$ref"].as_str() {
            let definition = root.pointer(name.strip_prefix('#').unwrap()).unwrap();
            described(root, definition, at, into);
        }
        schema["anyOf"].as_array().into_iter().flatten().for_each(|one| described(root, one, at, into));
        if schema["items"].is_object() {
            described(root, &schema["items"], at, into);
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{at}/{name}");
            assert!(property["description"].as_str().is_some_and(|text| text.len() > 10), "{path}");
            described(root, property, &path, into);
            into.insert(path);
        }
    }

    fn present(value: &Value, at: &str, into: &mut BTreeSet<String>) {
        value.as_array().into_iter().flatten().for_each(|item| present(item, at, into));
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{at}/{name}");
            present(value, &path, into);
            into.insert(path);
        }
    }

    #[test]
    fn schema_and_output_have_the_same_properties() {
        let (mut of_schema, mut of_output) = (BTreeSet::new(), BTreeSet::new());
        let schema = serde_json::from_str(SCHEMA).unwrap();
        described(&schema, &schema, "", &mut of_schema);
        let mut row = example_row();
        row.circuit = Some(whole_circuit());
        row.measurement.server = Some(ServerSide { request: -5, deciles: [Some(1); 11] });
        present(&serde_json::to_value(ResultJson::from(&row)).unwrap(), "", &mut of_output);
        assert_eq!(of_schema, of_output);
    }

    #[test]
    fn durations_are_derived_from_the_steps() {
        let result = ResultJson::from(&example_row());
        assert_eq!(result.start, "2026-11-22T10:00:00.000000Z");
        assert_eq!((result.socks_us, result.request_response_us), (Some(399_500), Some(299_900)));
        assert_eq!((result.transfer_us, result.time_to_last_byte_us), (Some(800_000), Some(1_500_000)));
        assert_eq!(result.mean_bytes_per_second.map(f64::round), Some(34_133.0));
        assert_eq!(result.endpoint_remote.as_deref(), Some("example.org:8080"));
    }

    #[test]
    fn the_schema_refuses_what_is_not_a_result() {
        let (schemas, index) = schema();
        let good = serde_json::to_value(ResultJson::from(&example_row())).unwrap();
        schemas.validate(&good, index).unwrap();
        for (name, bad) in [
            ("outcome", json!("done")),
            ("start", json!("yesterday")),
            ("run_id", json!("1")),
            ("steps_us", json!({})),
            ("kind", json!("unload")),
            ("circuit", json!({ "state": "known" })),
            ("place", json!(null)),
            ("unknown", json!(1)),
        ] {
            let mut result = good.clone();
            result[name] = bad;
            assert!(schemas.validate(&result, index).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_result_is_valid_and_reads_back(row in result_row()) {
            let (schemas, index) = schema();
            let result = ResultJson::from(&row);
            let value = serde_json::to_value(&result).unwrap();
            prop_assert!(schemas.validate(&value, index).is_ok(), "{value}");
            let back: ResultJson = serde_json::from_value(value).unwrap();
            prop_assert_eq!(back, result);
        }
    }
}
