//! `GET /openapi.json`: the description of every route, OpenAPI 3.1.
//!
//! `openapi.json` beside this file is it, but for what stands elsewhere: the version, the schema of a result, and what
//! this server grants.

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde_json::{Map, Value, json};

use super::{Shared, of_the_moment};
use crate::config::Config;
use crate::export::json::SCHEMA;
use crate::report::{Dimension, HIGHEST_FLOOR, MOST_DAYS, MOST_POINTS, MOST_RELAYS, Statistic};
use crate::stats::Quantity;
use crate::version;

const DESCRIPTION: &str = include_str!("openapi.json");

/// Answers `GET /openapi.json`.
pub async fn openapi(State(shared): State<Shared>) -> Response<Body> {
    of_the_moment(Body::from(shared.openapi.clone()))
}

/// The description of a server with this configuration.
pub fn description(config: &Config) -> String {
    let mut whole: Value = serde_json::from_str(DESCRIPTION).expect("openapi.json is JSON");
    whole["info"]["version"] = version::VERSION.into();
    let mut result: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    refer(&mut result);
    let schemas = &mut whole["components"]["schemas"];
    let with_more = extended(result.clone(), &schemas["OneResult"]);
    schemas["OneResult"] = with_more;
    schemas["Result"] = result;
    for (path, method) in [("/payload/{bytes}", "get"), ("/urandom/{bytes}", "get"), ("/upload/{bytes}", "post")] {
        whole["paths"][path][method]["parameters"][0]["schema"]["maximum"] = json!(config.server.max_payload);
    }
    if let Some(paths) = whole["paths"].as_object_mut() {
        for (path, end) in [("/collector/", ""), ("/collector/{file}", "{file}")] {
            let described = paths.remove(path);
            if let (Some(described), Some(to)) = (described, &config.collector.path) {
                paths.insert(format!("{to}{end}"), described);
            }
        }
    }
    if let Some(paths) = whole["paths"].as_object_mut() {
        paths.extend(statistics());
    }
    format!("{whole:#}\n")
}

/// Two paths for each statistic.
fn statistics() -> impl Iterator<Item = (String, Value)> {
    Statistic::ALL.into_iter().flat_map(|(statistic, name, what)| {
        let parameters: Vec<Value> = statistic.names().into_iter().map(|name| parameter(statistic, name)).collect();
        let row = json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}});
        let table = json!({
            "type": "object",
            "required": ["statistic", "rows"],
            "properties": {
                "statistic": {"const": name}, "rows": {"type": "array", "items": row},
                "note": {"type": "string", "description": "Why there are no rows"},
            },
        });
        let forms = [("json", "application/json", table), ("csv", "text/csv", json!({"type": "string"}))];
        forms.map(|(ending, media, schema)| {
            let content = Value::from(Map::from_iter([(media.to_owned(), json!({ "schema": schema }))]));
            let operation = json!({
                "operationId": format!("stats-{}-{ending}", name.replace('/', "-")),
                "tags": ["results"],
                "summary": format!("Statistics: {what}"),
                "parameters": parameters.clone(),
                "responses": {
                    "200": {"description": "A row for each period and group.", "content": content},
                    "304": {"description": "It is what the client has, by its If-None-Match."},
                    "400": {"$ref": "#/components/responses/BadRequest"},
                    "413": {"$ref": "#/components/responses/TooLarge"},
                    "503": {"$ref": "#/components/responses/Unavailable"},
                },
            });
            (format!("/stats/{name}.{ending}"), json!({ "get": operation }))
        })
    })
}

fn parameter(statistic: Statistic, name: &str) -> Value {
    let words = |words: Vec<&str>| json!({"type": "string", "enum": words});
    let number = |least: usize, most: usize| json!({"type": "integer", "minimum": least, "maximum": most});
    let (what, schema) = match name {
        "quantity" => ("What is measured.", words(Quantity::ALL.map(|(_, word)| word).into())),
        "period" => ("For each of them, or for all of the time.", words(vec!["hour", "day", "week", "month", "all"])),
        "floor" => ("Figures are shown from so many samples on.", number(1, HIGHEST_FLOOR)),
        "points" => ("At most so many points.", number(2, MOST_POINTS)),
        "top" => ("At most so many relays a list.", number(1, MOST_RELAYS)),
        "omit_last_days" => ("So many days are left out, today the first.", number(0, MOST_DAYS)),
        "group" => {
            let items = words(Dimension::ALL.map(|(_, word)| word).into());
            return json!({
                "name": "group", "in": "query", "style": "form", "explode": false,
                "description": "A row for each of these.",
                "schema": {"type": "array", "uniqueItems": true, "items": items},
            });
        }
        "experiment" if statistic == Statistic::Paired => {
            return json!({
                "name": "experiment", "in": "query", "required": true, "description": "The experiment's name.",
                "schema": {"type": "string"},
            });
        }
        filter => return json!({ "$ref": format!("#/components/parameters/{filter}") }),
    };
    json!({"name": name, "in": "query", "description": what, "schema": schema})
}

/// The schema with further properties.
fn extended(mut schema: Value, more: &Value) -> Value {
    let none = Map::new();
    for (name, property) in more["properties"].as_object().unwrap_or(&none) {
        schema["properties"][name] = property.clone();
    }
    if let (Some(required), Some(more)) = (schema["required"].as_array_mut(), more["required"].as_array()) {
        required.extend(more.iter().cloned());
    }
    schema
}

/// Within the description, the schema of a result stands elsewhere than alone.
fn refer(schema: &mut Value) {
    match schema {
        Value::Object(entries) => {
            // Which dialect it is says the description.
            entries.remove("$schema");
            for (name, value) in entries.iter_mut() {
                match value {
                    Value::String(to) if name == "$ref" => *to = to.replacen('#', "#/components/schemas/Result", 1),
                    value => refer(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(refer),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::measurement::{Kind, ServerKind};
    use crate::slot::SlotState;

    fn config(collector: &str) -> Config {
        let text = format!(
            "source = \"s\"\n[server]\nmax_payload = \"1 MiB\"\n{collector}\n[[tor]]\nname = \"t\"\n\
             socks = \"127.0.0.1:9\"\n[[experiment]]\nname = \"e\"\ntor = \"t\"\nsize = \"1 KiB\"\n\
             every = \"5 min\"\ntimeout = \"1 s\"\n"
        );
        Config::parse(&text, "test").unwrap()
    }

    fn described() -> Value {
        serde_json::from_str(&description(&config(""))).unwrap()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        for collector in ["", "[collector]\npath = \"/elsewhere/\"", "[collector]\npath = \"\""] {
            let config = config(collector);
            let whole: Value = serde_json::from_str(&description(&config)).unwrap();
            let paths = whole["paths"].as_object().unwrap().iter();
            let operations = paths.flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase()))
            });
            let there = super::super::routes(config.collector.path.as_deref());
            let there = there.into_iter().map(|(method, path, _)| (path, method.to_string()));
            let (described, there): (BTreeSet<_>, BTreeSet<_>) = (operations.collect(), there.collect());
            assert_eq!(described, there, "describe it in src/web/openapi.json");
        }
    }

    #[test]
    fn what_is_referred_to_is_there() {
        let whole = described();
        let mut references = BTreeSet::new();
        collect(&whole, &mut references);
        assert!(references.len() > 40, "{references:?}");
        for reference in &references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(whole.pointer(pointer).is_some(), "{reference}");
        }
        for kind in ["parameters", "responses", "schemas"] {
            for name in whole["components"][kind].as_object().unwrap().keys() {
                let reference = format!("#/components/{kind}/{name}");
                assert!(references.iter().any(|used| used.starts_with(&reference)), "{reference} is of no use");
            }
        }
    }

    fn collect(value: &Value, references: &mut BTreeSet<String>) {
        match value {
            Value::Object(entries) => {
                for (name, value) in entries {
                    match value {
                        Value::String(to) if name == "$ref" => drop(references.insert(to.clone())),
                        value => collect(value, references),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            _ => {}
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_what_it_is() {
        let whole = described();
        let mut names = BTreeSet::new();
        for (path, methods) in whole["paths"].as_object().unwrap() {
            for operation in methods.as_object().unwrap().values() {
                assert!(names.insert(operation["operationId"].as_str().unwrap()), "{path}");
                assert!(!operation["summary"].as_str().unwrap().is_empty(), "{path}");
            }
        }
    }

    #[test]
    fn words_are_those_of_the_program() {
        let whole = described();
        let words = |at: &str| whole.pointer(at).and_then(Value::as_array).unwrap_or_else(|| panic!("{at}")).clone();
        assert_eq!(words("/components/parameters/kind/schema/enum"), Kind::ALL.map(|(_, word)| json!(word)));
        assert_eq!(words("/components/parameters/server/schema/enum"), ServerKind::ALL.map(|(_, word)| json!(word)));
        let states = words("/components/schemas/Slot/properties/state/enum");
        assert_eq!(states, SlotState::ALL.map(|(_, word)| json!(word)));
        assert_eq!(whole.pointer("/paths/~1payload~1{bytes}/get/parameters/0/schema/maximum"), Some(&json!(1 << 20)));
        assert!(whole.pointer("/components/schemas/OneResult/properties/run_id").is_some());
    }
}
