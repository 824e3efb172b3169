//! `GET /`: what this server is, who runs it, how it is doing, and where the results are.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::Shared;
use super::health::{Health, look};
use crate::clock::UnixMicros;
use crate::config::units::format_size;
use crate::tor::{Condition, Tor, TorStatus};

/// How the page looks, on a phone and in the dark too.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8886; text-align: left; }
.number { text-align: right; white-space: nowrap; }
dt { font-family: ui-monospace, monospace; }
dd { margin: 0 0 .5rem 1.5rem; }
.ok { color: light-dark(#186a2c, #7bd88f); }
.warning { color: light-dark(#8a5300, #f2b84b); }
.failing { color: light-dark(#b3151d, #ff8a86); }
";

/// Nothing but that style is loaded or run, whatever might get into the page.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!("default-src 'none'; style-src 'sha256-{hash}'; frame-ancestors 'none'; base-uri 'none'");
    HeaderValue::try_from(policy).expect("base64 may stand in a header")
});

/// Answers `GET /`.
pub async fn start_page(State(shared): State<Shared>) -> Response<Body> {
    let tors: Vec<_> = shared.tors.iter().map(Tor::glance).collect();
    let mut response = Response::new(Body::from(render(&look(&shared).await, &tors)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    response
}

/// Answers `GET /robots.txt`: payloads and results are nothing for a search engine.
pub async fn robots() -> &'static str {
    "User-agent: *\nDisallow: /payload/\nDisallow: /urandom/\nDisallow: /results\nDisallow: /stats/\nDisallow: /events\n\
     Disallow: /pairs.json\nDisallow: /circuits.json\n"
}

fn render(health: &Health, tors: &[Arc<TorStatus>]) -> String {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    let source = escape(&health.source);
    let _ = write!(page, "<title>perfd {source}</title>\n<style>{STYLE}</style>\n<h1>perfd {source}</h1>\n");
    page += "<p>This server measures the performance of the Tor network: it gives out random data, and fetches it from \
             itself through Tor on a schedule. It runs perfd ";
    let _ = writeln!(page, "{} ({}).</p>", escape(health.version), escape(health.commit));
    if !health.contact.is_empty() {
        let _ = writeln!(page, "<p>It is run by {}.</p>", escape(&health.contact));
    }
    let status = health.status;
    let now = short(Some(health.now));
    let _ = writeln!(page, "<p>Its state is <strong class=\"{status}\">{status}</strong> at {now}.</p>");
    if !health.problems.is_empty() {
        page += "<ul>\n";
        for problem in &health.problems {
            let _ = writeln!(page, "<li>{}</li>", escape(problem));
        }
        page += "</ul>\n";
    }
    page += "<h2>Experiments</h2>\n<div class=\"scroll\"><table>\n<tr><th scope=\"col\">experiment\
             <th scope=\"col\" class=\"number\">size<th scope=\"col\">last success<th scope=\"col\">last result\
             <th scope=\"col\">outcome</tr>\n";
    for experiment in &health.experiments {
        let _ = writeln!(
            page,
            "<tr><td>{}<td class=\"number\">{}<td>{}<td>{}<td>{}</tr>",
            escape(&experiment.name),
            format_size(experiment.size_bytes),
            short(experiment.last_success),
            short(experiment.last_result),
            escape(experiment.last_outcome.as_deref().unwrap_or("")),
        );
    }
    page += "</table></div>\n";
    if !tors.is_empty() {
        page += "<h2>Tors</h2>\n<ul>\n";
        for tor in tors {
            let _ = writeln!(page, "<li>{}", escape(&line_of(tor)));
        }
        page += "</ul>\n";
    }
    page += "<h2>Results</h2>\n<dl>\n";
    for (path, what) in [
        ("/results.json?order=newest&amp;limit=20", "the latest twenty as JSON"),
        ("/results.ndjson", "all, as a JSON object a line"),
        ("/results.tpf", "all, as Torperf's key=value (<code>@type torperf 1.1</code>)"),
        ("/results.csv", "all, as CSV"),
        (
            "/schema/result.json",
            "the schema of the JSON; <code>/results/ID</code> gives one result with all that is known of it, \
             <code>/results/ID.txt</code> draws it; <code>/pairs.json?experiment=NAME</code> compares its tors",
        ),
        ("/stats/", "statistics: percentiles, distributions, failures, relays, Tor Metrics' and OnionPerf's figures"),
        ("/events", "results as they land, as server-sent events"),
        ("/annotations.json", "notes on results and times"),
        ("/results.har?limit=20", "the first twenty as an HTTP archive"),
        ("/circuits.json", "circuits that failed, or that no run used"),
        ("/openapi.json", "all of this for programs (OpenAPI 3.1)"),
        ("/health", "the state of this server as JSON; <code>/metrics</code> for Prometheus"),
        ("/tors", "the state of its tors, their guards and circuits as JSON"),
        ("/payload/51200", "so many random bytes, up to this server's limit"),
    ] {
        let _ = writeln!(page, "<dt><a href=\"{path}\">{path}</a><dd>{what}");
    }
    page += "<dt>POST /upload/51200<dd>takes so many bytes, up to the same limit, and says as JSON when they came\n\
             </dl>\n<p>The results can be filtered by <code>source</code>, <code>experiment</code>, <code>tor</code>, \
             <code>kind</code>, <code>server</code>, <code>size</code>, <code>outcome</code>, <code>tag</code>, <code>imported</code>, \
             <code>since</code> and <code>until</code>, such as \
             <a href=\"/results.csv?outcome=failed&amp;since=2026-01-01\">/results.csv?outcome=failed&amp;since=2026-01-01</a>.</p>\n\
             </html>\n";
    page
}

/// How a tor is doing, in a line.
fn line_of(tor: &TorStatus) -> String {
    let version = tor.version.as_ref().map_or(String::new(), |version| format!(", tor {version}"));
    let state = match (tor.condition, &tor.bootstrap) {
        (Condition::Uncontrolled, _) => "measured through, and not controlled".to_owned(),
        (Condition::Down, _) => "down".to_owned(),
        (Condition::NoControl, _) => "measured through, but not controlled".to_owned(),
        (Condition::Ready, _) => "up".to_owned(),
        (Condition::Bootstrapping, None) => "not ready".to_owned(),
        (Condition::Bootstrapping, Some(bootstrap)) => format!("not ready, bootstrapped {} %", bootstrap.percent),
    };
    format!("{}: {state}{version}", tor.name)
}

/// A moment to the second, for people.
fn short(moment: Option<UnixMicros>) -> String {
    let Some(moment) = moment else { return "none yet".to_owned() };
    let text = moment.to_string().replacen('T', " ", 1);
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds} UTC"))
}

/// Text as it may stand in HTML, in an element or an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, TorRun};

    #[test]
    fn text_from_outside_is_never_markup() {
        let hostile = "<script>alert('\"&')</script>";
        let health = Health {
            status: "ok",
            problems: vec![hostile.to_owned()],
            source: "s".to_owned(),
            instance: String::new(),
            version: "1",
            commit: "c",
            contact: hostile.to_owned(),
            now: UnixMicros(0),
            experiments: Vec::new(),
        };
        let tor = config::Tor {
            name: hostile.to_owned(),
            run: TorRun::Address { socks: ([127, 0, 0, 1], 9050).into(), control: None },
            drop_guards_every: None,
            drop_timeouts_every: None,
        };
        let page = render(&health, &[Tor::new(tor, None).glance()]);
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)").count(), 3);
        assert!(page.contains("&lt;/script&gt;: measured through, and not controlled\n"), "{page}");
    }
}
