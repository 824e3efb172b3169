//! `GET /metrics`: what a monitor scrapes. Scraping reads: it measures nothing, and the store at most once a second.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::error::ApiError;
use super::results::Answer;
use super::{RESULT_PLACES, Shared};
use crate::export::prometheus::{Dialect, Experiment, Places, Snapshot, Store, Tor, render};
use crate::store::StoreHealth;
use crate::tor::{Condition, TorStatus};
use crate::version;

/// Answers in Prometheus' text format, or in OpenMetrics where `Accept` prefers that.
pub async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Answer {
    let dialect = dialect(&headers)?;
    let mut response = Response::new(Body::from(render(&gather(&shared).await, dialect)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(dialect.content_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

async fn gather(shared: &Shared) -> Snapshot {
    let tally = shared
        .tally
        .look(async || {
            let experiments = shared.config.experiments.iter().map(|e| (e.name.clone(), e.tors.clone())).collect();
            shared.store.reader().tally(experiments).await.map(Into::into)
        })
        .await
        .ok();
    let stuck = shared.board.stuck();
    let experiments = shared.config.experiments.iter().enumerate().map(|(index, e)| Experiment {
        name: e.name.clone(),
        kind: e.kind,
        size: e.size,
        every: e.every,
        timeout: e.timeout,
        stuck: stuck.contains(&e.name),
        tally: tally.as_ref().and_then(|tally| tally.experiments.get(index).cloned()),
    });
    let strangers = shared.config.server.max_payloads;
    Snapshot {
        version: version::VERSION,
        commit: version::COMMIT,
        source: shared.config.source.clone(),
        started: shared.started,
        experiments: experiments.collect(),
        tors: shared.tors.iter().map(|tor| tor_of(&tor.glance())).collect(),
        store: Store {
            writable: *shared.store.health().borrow() == StoreHealth::Ok,
            readable: tally.is_some(),
            database_bytes: tally.as_ref().map(|tally| tally.database_bytes),
            log_bytes: tally.as_ref().map(|tally| tally.log_bytes),
            transactions: shared.store.transactions(),
        },
        places: vec![
            Places {
                kind: "payloads",
                all: strangers,
                taken: strangers.saturating_sub(shared.allowance.strangers.available_permits()),
            },
            Places { kind: "long_answers", all: RESULT_PLACES, taken: shared.result_places.taken() },
        ],
    }
}

fn tor_of(status: &TorStatus) -> Tor {
    let controlled = status.condition != Condition::Uncontrolled;
    let up = matches!(status.condition, Condition::Ready | Condition::Bootstrapping);
    Tor {
        name: status.name.clone(),
        up: controlled.then_some(up),
        ready: controlled.then_some(status.condition == Condition::Ready),
        bootstrap_percent: status.bootstrap.as_ref().filter(|_| up).map(|bootstrap| bootstrap.percent),
        restarts: status.started_by_perfd.then(|| status.starts.saturating_sub(1)),
        version: status.version.clone(),
        onion_published: status.onion.as_ref().map(|onion| onion.published),
    }
}

/// OpenMetrics where it is named, and named no later than plain text; the text format for all others.
///
/// # Errors
/// 406 if `Accept` names formats, and neither of these.
fn dialect(headers: &HeaderMap) -> Result<Dialect, ApiError> {
    let lines: Vec<_> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    if lines.iter().all(|line| line.trim().is_empty()) {
        return Ok(Dialect::Text);
    }
    let (mut text, mut open, mut rest) = (None, None, 0.0_f32);
    for range in lines.iter().flat_map(|line| line.split(',')) {
        let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.collect();
        let parameter = |name: &str| parameters.iter().find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        let Ok(quality) = parameter("q").map_or(Ok(1.0), str::parse::<f32>) else { continue };
        let best = |so_far: Option<f32>| Some(so_far.map_or(quality, |so_far| so_far.max(quality)));
        match (media.as_str(), parameter("version")) {
            ("application/openmetrics-text", None | Some("1.0.0")) => open = best(open),
            ("text/plain", None | Some("0.0.4")) => text = best(text),
            ("text/*" | "*/*", _) => rest = rest.max(quality),
            _ => {}
        }
    }
    let text = text.unwrap_or(rest);
    match open {
        Some(open) if open > 0.0 && open >= text => Ok(Dialect::OpenMetrics),
        _ if text > 0.0 => Ok(Dialect::Text),
        _ => {
            let reason = "metrics are given as text/plain (version 0.0.4) and application/openmetrics-text (1.0.0)";
            Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_understood() {
        let accepted = |accept: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            dialect(&headers).ok()
        };
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(accepted(prometheus), Some(Dialect::OpenMetrics));
        assert_eq!(accepted("application/openmetrics-text; version=1.0.0; charset=utf-8"), Some(Dialect::OpenMetrics));
        assert_eq!(accepted("application/openmetrics-text"), Some(Dialect::OpenMetrics));
        assert_eq!(accepted("application/openmetrics-text;version=0.0.1, text/plain;q=0.1"), Some(Dialect::Text));
        assert_eq!(accepted("application/openmetrics-text;q=0.1, text/plain;version=0.0.4;q=0.2"), Some(Dialect::Text));
        assert_eq!(accepted("text/html,application/xhtml+xml,*/*;q=0.8"), Some(Dialect::Text));
        assert_eq!(accepted(" "), Some(Dialect::Text));
        assert_eq!(accepted("application/json"), None);
        assert_eq!(accepted("application/openmetrics-text;version=2.0.0"), None);
        assert_eq!(accepted("text/plain;q=0"), None);
        assert_eq!(dialect(&HeaderMap::new()).ok(), Some(Dialect::Text));
    }
}
