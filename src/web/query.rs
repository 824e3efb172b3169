//! Queries, strictly read: filters, order, limit and cursor of `/results`, and what `/circuits.json` and
//! `/pairs.json` are asked.

use super::error::ApiError;
use crate::annotation::check_tag;
use crate::clock::UnixMicros;
use crate::config::units::parse_size;
use crate::measurement::{Kind, ServerKind};
use crate::store::{AnnotationFilter, Filter, Order, WINDOW};

/// What a client asks of `/results`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResultsQuery {
    /// Which results.
    pub filter: Filter,
    /// In which order.
    pub order: Order,
    /// The revision after which to go on, in that order.
    pub cursor: Option<i64>,
    /// How many results at most; all where absent.
    pub limit: Option<usize>,
}

/// What a client asks of `/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventsQuery {
    /// Which results.
    pub filter: Filter,
    /// The revision after which to begin; from now on, where absent.
    pub cursor: Option<i64>,
    /// In place of a cursor: begin with so many of the last results, 1 to [`MOST_LAST`].
    pub last: Option<usize>,
    /// What the data of an event are.
    pub form: EventForm,
}

/// In which form an event holds its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventForm {
    /// As a JSON object, that of a line of `/results.ndjson`.
    #[default]
    Json,
    /// As a JSON string that holds the line of Torperf's key=value, its end included.
    Torperf,
    /// As a JSON string that holds the line of CSV, its end included.
    Csv,
}

/// The most of the last results that `/events` goes back.
pub const MOST_LAST: usize = WINDOW as usize;

/// What a client asks of `/annotations.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationsQuery {
    /// Those that touch this run: its name, or the beginning of it.
    pub run: Option<String>,
    /// Which notes; of the run, only `run` says.
    pub filter: AnnotationFilter,
    /// In which order.
    pub order: Order,
    /// The revision after which to go on, in that order.
    pub cursor: Option<i64>,
    /// How many at most, 1 to [`MOST_ANNOTATIONS`].
    pub limit: usize,
}

/// The most notes in one answer, which are held in memory together; so many are given by default.
pub const MOST_ANNOTATIONS: usize = 1000;

/// What a client asks of `/circuits.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitsQuery {
    /// Launched at this moment or later.
    pub since: UnixMicros,
    /// Launched before this moment.
    pub until: UnixMicros,
    /// How many at most, 1 to [`MOST_CIRCUITS`].
    pub limit: usize,
}

/// What a client asks of `/pairs.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairsQuery {
    /// The experiment's name.
    pub experiment: String,
    /// Slots planned at this moment or later.
    pub since: UnixMicros,
    /// Slots planned before this moment.
    pub until: UnixMicros,
}

/// The most circuits in one answer, which are held in memory together; so many are given by default.
pub const MOST_CIRCUITS: usize = 1000;

const NAMES: &str =
    "source, experiment, tor, kind, server, size, outcome, since, until, tag, imported, order, limit, cursor";

const EVENT_NAMES: &str =
    "source, experiment, tor, kind, server, size, outcome, since, until, tag, imported, cursor, last, format";

impl ResultsQuery {
    /// Reads a query string.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parsed = ResultsQuery::default();
        each(query, |name, value| parsed.set(name, value, NAMES))?;
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: &str, names: &str) -> Result<(), ApiError> {
        let bad = |must: &str| bad(name, value, must);
        match name {
            "source" => self.filter.source = Some(value.to_owned()),
            "experiment" => self.filter.experiment = Some(value.to_owned()),
            "size" => self.filter.size = Some(parse_size(value).map_err(|e| bad(&e.to_string()))?),
            "outcome" if ["complete", "timeout", "failed"].contains(&value) => {
                self.filter.outcome = Some(value.to_owned());
            }
            "outcome" => return Err(bad("must be complete, timeout or failed")),
            "tag" => {
                check_tag(value).map_err(ApiError::bad_request)?;
                self.filter.tag = Some(value.to_owned());
            }
            "tor" => self.filter.tor = Some(value.to_owned()),
            "kind" => self.filter.kind = Some(word(name, value, Kind::ALL)?),
            "server" => self.filter.server = Some(word(name, value, ServerKind::ALL)?),
            "since" => self.filter.since = Some(moment(name, value)?),
            "until" => self.filter.until = Some(moment(name, value)?),
            "imported" => self.filter.imported = Some(word(name, value, [(true, "yes"), (false, "no")])?),
            "order" => {
                self.order = match value {
                    "oldest" => Order::Oldest,
                    "newest" => Order::Newest,
                    _ => return Err(bad("must be oldest or newest")),
                }
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| *limit > 0);
                self.limit = Some(limit.ok_or_else(|| bad("must be a number from 1 up"))?);
            }
            "cursor" => {
                let cursor = value.parse().ok().filter(|cursor| *cursor >= 0);
                self.cursor = Some(cursor.ok_or_else(|| bad("must be the revision of the last result that you have"))?);
            }
            _ => return Err(no_parameter(name, names)),
        }
        Ok(())
    }
}

impl EventsQuery {
    /// Reads a query string: the filters of `/results`, and where to begin.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let (mut parsed, mut results) = (EventsQuery::default(), ResultsQuery::default());
        each(query, |name, value| {
            match name {
                "last" => {
                    let last = value.parse().ok().filter(|last| (1..=MOST_LAST).contains(last));
                    let must = || bad(name, value, &format!("must be a number from 1 to {MOST_LAST}"));
                    parsed.last = Some(last.ok_or_else(must)?);
                }
                "format" => {
                    parsed.form = match value {
                        "json" | "ndjson" => EventForm::Json,
                        "tpf" => EventForm::Torperf,
                        "csv" => EventForm::Csv,
                        _ => return Err(bad(name, value, "must be ndjson, tpf or csv")),
                    }
                }
                "order" | "limit" => return Err(no_parameter(name, EVENT_NAMES)),
                _ => results.set(name, value, EVENT_NAMES)?,
            }
            Ok(())
        })?;
        if parsed.last.is_some() && results.cursor.is_some() {
            return Err(ApiError::bad_request("give a cursor or last, not both"));
        }
        (parsed.filter, parsed.cursor) = (results.filter, results.cursor);
        Ok(parsed)
    }
}

impl AnnotationsQuery {
    /// Reads a query string; what is absent does not restrict.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        const NAMES: &str = "run, source, experiment, tor, tag, since, until, order, limit, cursor";
        let (mut parsed, mut run) = (ResultsQuery::default(), None);
        each(query, |name, value| {
            match name {
                "run" => run = Some(value.to_owned()),
                "kind" | "server" | "size" | "outcome" => return Err(no_parameter(name, NAMES)),
                _ => parsed.set(name, value, NAMES)?,
            }
            Ok(())
        })?;
        let limit = parsed.limit.unwrap_or(MOST_ANNOTATIONS);
        if limit > MOST_ANNOTATIONS {
            return Err(bad("limit", &limit.to_string(), &format!("must be a number from 1 to {MOST_ANNOTATIONS}")));
        }
        let filter = AnnotationFilter::from(&parsed.filter);
        Ok(AnnotationsQuery { run, filter, order: parsed.order, cursor: parsed.cursor, limit })
    }
}

impl CircuitsQuery {
    /// Reads a query string; what is absent does not restrict.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parsed =
            CircuitsQuery { since: UnixMicros(i64::MIN), until: UnixMicros(i64::MAX), limit: MOST_CIRCUITS };
        each(query, |name, value| {
            match name {
                "since" => parsed.since = moment(name, value)?,
                "until" => parsed.until = moment(name, value)?,
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MOST_CIRCUITS).contains(limit));
                    let must = || bad(name, value, &format!("must be a number from 1 to {MOST_CIRCUITS}"));
                    parsed.limit = limit.ok_or_else(must)?;
                }
                _ => return Err(no_parameter(name, "since, until, limit")),
            }
            Ok(())
        })?;
        Ok(parsed)
    }
}

impl PairsQuery {
    /// Reads a query string, which must name an experiment; the times may be absent.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let (mut experiment, mut since, mut until) = (None, UnixMicros(i64::MIN), UnixMicros(i64::MAX));
        each(query, |name, value| {
            match name {
                "experiment" => experiment = Some(value.to_owned()),
                "since" => since = moment(name, value)?,
                "until" => until = moment(name, value)?,
                _ => return Err(no_parameter(name, "experiment, since, until")),
            }
            Ok(())
        })?;
        let missing = || ApiError::bad_request("name the experiment whose tors are to be compared: ?experiment=NAME");
        Ok(PairsQuery { experiment: experiment.ok_or_else(missing)?, since, until })
    }
}

/// Gives each name and value of a query string. A name that is unknown, or that comes twice, is refused rather
/// than ignored: a mistyped filter would give everything.
fn each(query: &str, mut set: impl FnMut(&str, &str) -> Result<(), ApiError>) -> Result<(), ApiError> {
    let mut seen = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if seen.contains(&name) {
            return Err(ApiError::bad_request(format!("{name} is given twice")));
        }
        set(&name, &value)?;
        seen.push(name);
    }
    Ok(())
}

fn bad(name: &str, value: &str, must: &str) -> ApiError {
    ApiError::bad_request(format!("{name}={value}: {must}"))
}

fn no_parameter(name: &str, names: &str) -> ApiError {
    ApiError::bad_request(format!("{name} is no parameter of this page; there are {names}"))
}

fn moment(name: &str, value: &str) -> Result<UnixMicros, ApiError> {
    let must = "must be a time such as 2026-11-22T10:00:00Z, 2026-11-22 or 1795341600";
    UnixMicros::parse(value).ok_or_else(|| bad(name, value, must))
}

/// One of these words.
fn word<T: Copy, const N: usize>(name: &str, value: &str, words: [(T, &str); N]) -> Result<T, ApiError> {
    let found = words.iter().find(|(_, word)| *word == value).map(|(value, _)| *value);
    let must = || format!("must be one of {}", words.map(|(_, word)| word).join(", "));
    found.ok_or_else(|| bad(name, value, &must()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_query_is_read() {
        let query = ResultsQuery::parse(
            "source=a&experiment=50kib&size=50+KiB&outcome=timeout&since=2026-11-22&order=newest&limit=5&cursor=7\
             &kind=upload&server=single_onion&tor=t&imported=no",
        )
        .unwrap();
        assert_eq!(query.filter.size, Some(51_200));
        assert_eq!(query.filter.since, UnixMicros::parse("2026-11-22"));
        assert_eq!(query.filter.imported, Some(false));
        let (kind, server) = (Some(Kind::Upload), Some(ServerKind::SingleOnion));
        assert_eq!((query.filter.kind, query.filter.server, query.filter.tor.as_deref()), (kind, server, Some("t")));
        assert_eq!((query.order, query.limit, query.cursor), (Order::Newest, Some(5), Some(7)));
    }

    #[test]
    fn what_is_mistyped_is_refused() {
        for query in [
            "experimnet=a",
            "limit=0",
            "limit=-1",
            "cursor=x",
            "outcome=ok",
            "since=yesterday",
            "size=5 MB",
            "order=up",
            "kind=uplaod",
            "server=",
            "imported=true",
            "limit=1&limit=2",
            "x",
        ] {
            assert!(ResultsQuery::parse(query).is_err(), "{query}");
        }
        for query in ["limit=0", "limit=5001", "tor=a", "since=x", "since=1&since=1"] {
            assert!(CircuitsQuery::parse(query).is_err(), "{query}");
        }
        for query in ["", "since=1", "experiment=a&experiment=b", "experiment=a&limit=1", "experiment=a&until=x"] {
            assert!(PairsQuery::parse(query).is_err(), "{query}");
        }
    }
}
