//! Results as CSV (RFC 4180), for spreadsheets and data frames.
//!
//! The columns are the JSON's properties, nested ones joined by `_` (`steps_us_socket`); of `circuit`, which
//! has more parts than columns, they are [`CIRCUIT_COLUMNS`]. An empty cell means that there is no value.

use serde_json::Value;

use super::json::ResultJson;
use crate::circuit::Circuit;
use crate::measurement::ResultRow;

/// The columns, in order. New ones are added at the end.
pub const COLUMNS: [&str; COLUMN_COUNT] = [
    "run_id",
    "revision",
    "source",
    "experiment",
    "tor",
    "planned",
    "planned_unix_us",
    "start",
    "start_unix_us",
    "ended_us",
    "size_bytes",
    "outcome",
    "phase",
    "cause",
    "socks_code",
    "socks_meaning",
    "http_status",
    "detail",
    "steps_us_socket",
    "steps_us_connect",
    "steps_us_negotiate",
    "steps_us_request",
    "steps_us_response",
    "steps_us_data_request",
    "steps_us_data_response",
    "steps_us_data_complete",
    "deciles_us_0",
    "deciles_us_10",
    "deciles_us_20",
    "deciles_us_30",
    "deciles_us_40",
    "deciles_us_50",
    "deciles_us_60",
    "deciles_us_70",
    "deciles_us_80",
    "deciles_us_90",
    "deciles_us_100",
    "partials_us_10240",
    "partials_us_20480",
    "partials_us_51200",
    "partials_us_102400",
    "partials_us_204800",
    "partials_us_512000",
    "partials_us_1048576",
    "partials_us_2097152",
    "partials_us_5242880",
    "socks_us",
    "request_response_us",
    "transfer_us",
    "time_to_first_byte_us",
    "time_to_last_byte_us",
    "mean_bytes_per_second",
    "bytes_written",
    "bytes_read",
    "endpoint_local",
    "endpoint_proxy",
    "endpoint_remote",
    "isolated",
    "verified",
    "configuration_id",
    "perfd_version",
    "kind",
    "server",
    "optimistic",
    "place_index",
    "place_of",
    "socks_user",
    "server_us_request",
    "server_us_deciles_0",
    "server_us_deciles_10",
    "server_us_deciles_20",
    "server_us_deciles_30",
    "server_us_deciles_40",
    "server_us_deciles_50",
    "server_us_deciles_60",
    "server_us_deciles_70",
    "server_us_deciles_80",
    "server_us_deciles_90",
    "server_us_deciles_100",
    "circuit_state",
    "circuit_connection",
    "tor_version",
    "stream_id",
    "circuit_id",
    "circuit_purpose",
    "path",
    "guard",
    "conflux",
    "launched_us",
    "built_us",
    "used_at_us",
    "build_timeout_ms",
    "build_timeout_quantile",
    "build_timeout_learning",
    "imported",
];

const COLUMN_COUNT: usize = 95;

/// What of [`CircuitData`](crate::circuit::CircuitData) has a column: the column, and where in the JSON's
/// `circuit` its value stands. `path`, `conflux` and `used_at_us` are made of several.
pub const CIRCUIT_COLUMNS: [(&str, &str); 12] = [
    ("circuit_state", "/state"),
    ("circuit_connection", "/connection"),
    ("tor_version", "/tor_version"),
    ("stream_id", "/stream_id"),
    ("circuit_id", "/circuit/id"),
    ("circuit_purpose", "/circuit/purpose"),
    ("guard", "/guard/fingerprint"),
    ("launched_us", "/circuit/launched_us"),
    ("built_us", "/circuit/built_us"),
    ("build_timeout_ms", "/build_timeout/timeout_ms"),
    ("build_timeout_quantile", "/build_timeout/quantile"),
    ("build_timeout_learning", "/build_timeout/learning"),
];

/// The line of the columns' names, its line end (CR LF) included.
pub fn header() -> String {
    COLUMNS.join(",") + "\r\n"
}

/// One result as a line, its line end (CR LF) included.
///
/// Spreadsheets take a text that begins with `=`, `+`, `-`, `@`, a tab or CR for a formula; such a
/// text gets a leading `'`.
pub fn line(row: &ResultRow) -> String {
    let mut cells: [String; COLUMN_COUNT] = std::array::from_fn(|_| String::new());
    // A struct of plain fields always becomes an object.
    let mut result = serde_json::to_value(ResultJson::from(row)).unwrap_or_default();
    let circuit = result.as_object_mut().and_then(|result| result.remove("circuit")).unwrap_or_default();
    fill(&result, "", &mut cells);
    for (column, place) in CIRCUIT_COLUMNS {
        put(column, circuit.pointer(place).unwrap_or(&Value::Null), &mut cells);
    }
    if let Some(data) = &row.circuit {
        put("path", &data.circuit.as_ref().and_then(Circuit::path_text).into(), &mut cells);
        put("conflux", &data.conflux.is_some().into(), &mut cells);
        put("used_at_us", &data.used_at_us().into(), &mut cells);
    }
    cells.join(",") + "\r\n"
}

fn fill(value: &Value, prefix: &str, cells: &mut [String; COLUMN_COUNT]) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        if value.is_object() {
            fill(value, &format!("{name}_"), cells);
        } else {
            put(&name, value, cells);
        }
    }
}

fn put(name: &str, value: &Value, cells: &mut [String; COLUMN_COUNT]) {
    if let Some(column) = COLUMNS.iter().position(|column| *column == name) {
        cells[column] = cell(value);
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// Text as a cell: quoted as needed, and no formula.
pub fn quoted(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    let text = format!("{guard}{text}");
    if text.contains([',', '"', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::measurement::ServerSide;
    use crate::test_support::circuit::{example_circuit, whole_circuit};
    use crate::test_support::{example_row, result_row};

    /// The cells of one record, by RFC 4180.
    fn read(record: &str) -> Vec<String> {
        let mut rest = record.strip_suffix("\r\n").unwrap().chars().peekable();
        let mut cells = vec![String::new()];
        let mut inside = false;
        while let Some(c) = rest.next() {
            let cell = cells.last_mut().unwrap();
            match c {
                '"' if inside && rest.peek() == Some(&'"') => cell.push(rest.next().unwrap()),
                '"' if inside => inside = false,
                '"' if cell.is_empty() => inside = true,
                ',' if !inside => cells.push(String::new()),
                '"' | '\r' | '\n' if !inside => panic!("bare {c:?} in {record:?}"),
                c => cell.push(c),
            }
        }
        assert!(!inside, "{record:?}");
        cells
    }

    fn names(value: &Value, prefix: &str) -> BTreeSet<String> {
        let fields = value.as_object().unwrap().iter();
        fields
            .flat_map(|(name, value)| match value.is_object() {
                true => names(value, &format!("{prefix}{name}_")),
                false => BTreeSet::from([format!("{prefix}{name}")]),
            })
            .collect()
    }

    #[test]
    fn the_columns_are_the_properties_of_the_json() {
        let mut row = example_row();
        row.measurement.server = Some(ServerSide { request: 1, deciles: [None; 11] });
        let mut value = serde_json::to_value(ResultJson::from(&row)).unwrap();
        let circuit = value.as_object_mut().unwrap().remove("circuit");
        assert_eq!(circuit, Some(Value::Null), "it has columns of its own");
        let mut expected = names(&value, "");
        expected.extend(CIRCUIT_COLUMNS.iter().map(|(column, _)| (*column).to_owned()));
        expected.extend(["path", "conflux", "used_at_us"].map(str::to_owned));
        assert_eq!(COLUMNS.map(str::to_owned).into_iter().collect::<BTreeSet<_>>(), expected);
    }

    fn by_column(row: &ResultRow) -> impl Fn(&str) -> String + use<> {
        let cells = read(&line(row));
        move |name| cells[COLUMNS.iter().position(|column| *column == name).unwrap()].clone()
    }

    #[test]
    fn the_columns_of_the_circuit_are_filled_where_it_is_known() {
        let data = serde_json::to_value(whole_circuit()).unwrap();
        for (column, place) in CIRCUIT_COLUMNS {
            assert!(data.pointer(place).is_some_and(|value| !value.is_null()), "{column}");
        }
        let mut row = example_row();
        row.circuit = Some(example_circuit());
        let cell = by_column(&row);
        let path = [1, 2, 3].map(|hop: u8| format!("${}", hop.to_string().repeat(40))).join(",");
        for (column, expected) in [
            ("kind", "download"),
            ("server", "exit"),
            ("optimistic", "false"),
            ("place_of", "1"),
            ("server_us_request", ""),
            ("server_us_deciles_0", ""),
            ("circuit_state", "known"),
            ("circuit_id", "17"),
            ("stream_id", "24"),
            ("path", &path),
            ("guard", &"1".repeat(40)),
            ("conflux", "false"),
            ("launched_us", "-12400000"),
            ("built_us", "-12060000"),
            ("used_at_us", "1500300"),
            ("build_timeout_ms", "1500"),
            ("build_timeout_quantile", "0.8"),
            ("build_timeout_learning", "false"),
        ] {
            assert_eq!(cell(column), expected, "{column}");
        }
        row.circuit = None;
        let cell = by_column(&row);
        assert!(["circuit_state", "path", "conflux", "used_at_us"].iter().all(|column| cell(column).is_empty()));
    }

    #[test]
    fn cells_are_quoted_and_no_text_is_a_formula() {
        for (text, cell) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=1+1", "'=1+1"),
            ("-1", "'-1"),
            ("@x,y", "\"'@x,y\""),
            ("\rx", "\"'\rx\""),
            ("two\nlines", "\"two\nlines\""),
        ] {
            assert_eq!(quoted(text), cell);
        }
    }

    proptest! {
        #[test]
        fn every_line_reads_back(row in result_row()) {
            let cells = read(&line(&row));
            prop_assert_eq!(cells.len(), COLUMNS.len());
            let cell = |name: &str| cells[COLUMNS.iter().position(|column| *column == name).unwrap()].as_str();
            prop_assert_eq!(cell("run_id").trim_start_matches('\''), row.measurement.id.as_str());
            prop_assert_eq!(cell("size_bytes"), row.measurement.size.to_string());
            prop_assert_eq!(cell("outcome"), row.measurement.outcome.word());
            let step = row.measurement.steps.response.map(|at| at.to_string()).unwrap_or_default();
            prop_assert_eq!(cell("steps_us_response"), step);
            prop_assert!(cell("experiment").ends_with(&row.experiment));
            prop_assert!(!cell("experiment").starts_with(['=', '+', '-', '@', '\t', '\r']));
        }
    }
}
