//! The query of `/results`: filters, order, limit and cursor, strictly read.

use super::error::ApiError;
use crate::clock::UnixMicros;
use crate::config::units::parse_size;
use crate::store::{Filter, Order};

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

const NAMES: &str = "source, experiment, size, outcome, since, until, order, limit, cursor";

impl ResultsQuery {
    /// Reads a query string. A name that is unknown, or that comes twice, is refused rather than ignored:
    /// a mistyped filter would give everything.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parsed = ResultsQuery::default();
        let mut seen = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&name) {
                return Err(ApiError::bad_request(format!("{name} is given twice")));
            }
            parsed.set(&name, &value)?;
            seen.push(name);
        }
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ApiError> {
        let bad = |must: &str| ApiError::bad_request(format!("{name}={value}: {must}"));
        let moment = || {
            UnixMicros::parse(value)
                .ok_or_else(|| bad("must be a time such as 2026-11-22T10:00:00Z, 2026-11-22 or 1795341600"))
        };
        match name {
            "source" => self.filter.source = Some(value.to_owned()),
            "experiment" => self.filter.experiment = Some(value.to_owned()),
            "size" => self.filter.size = Some(parse_size(value).map_err(|e| bad(&e.to_string()))?),
            "outcome" if ["complete", "timeout", "failed"].contains(&value) => {
                self.filter.outcome = Some(value.to_owned());
            }
            "outcome" => return Err(bad("must be complete, timeout or failed")),
            "since" => self.filter.since = Some(moment()?),
            "until" => self.filter.until = Some(moment()?),
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
            _ => return Err(ApiError::bad_request(format!("{name} is no parameter of this page; there are {NAMES}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_query_is_read() {
        let query = ResultsQuery::parse(
            "source=a&experiment=50kib&size=50+KiB&outcome=timeout&since=2026-11-22&order=newest&limit=5&cursor=7",
        )
        .unwrap();
        assert_eq!(query.filter.size, Some(51_200));
        assert_eq!(query.filter.since, UnixMicros::parse("2026-11-22"));
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
            "limit=1&limit=2",
            "x",
        ] {
            assert!(ResultsQuery::parse(query).is_err(), "{query}");
        }
    }
}
