//! `GET /`: what this server is, who runs it, how it is doing, and where the results are.

use std::fmt::Write;

use axum::extract::State;
use axum::response::Html;

use super::Shared;
use super::health::{Health, look};
use crate::config::units::format_size;

/// Answers `GET /`.
pub async fn start_page(State(shared): State<Shared>) -> Html<String> {
    Html(render(&look(&shared).await))
}

/// Answers `GET /robots.txt`: payloads and results are nothing for a search engine.
pub async fn robots() -> &'static str {
    "User-agent: *\nDisallow: /payload/\nDisallow: /urandom/\nDisallow: /results\n"
}

fn render(health: &Health) -> String {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    let source = escape(&health.source);
    let _ = write!(page, "<title>perfd {source}</title>\n<h1>perfd {source}</h1>\n");
    page += "<p>This server measures the performance of the Tor network: it gives out random data, and fetches it from \
             itself through Tor on a schedule. It runs perfd ";
    let _ = writeln!(page, "{} ({}).</p>", escape(health.version), escape(health.commit));
    if !health.contact.is_empty() {
        let _ = writeln!(page, "<p>It is run by {}.</p>", escape(&health.contact));
    }
    let _ = writeln!(page, "<p>Its state is <strong>{}</strong> at {}.</p>", health.status, health.now);
    if !health.problems.is_empty() {
        page += "<ul>\n";
        for problem in &health.problems {
            let _ = writeln!(page, "<li>{}</li>", escape(problem));
        }
        page += "</ul>\n";
    }
    page += "<h2>Experiments</h2>\n<table border=\"1\" cellpadding=\"4\">\n";
    page += "<tr><th scope=\"col\">experiment<th scope=\"col\">size<th scope=\"col\">last success<th scope=\"col\">last result<th scope=\"col\">outcome</tr>\n";
    let or_none = |moment: Option<crate::clock::UnixMicros>| moment.map_or("none yet".to_owned(), |m| m.to_string());
    for experiment in &health.experiments {
        let _ = writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            escape(&experiment.name),
            format_size(experiment.size_bytes),
            or_none(experiment.last_success),
            or_none(experiment.last_result),
            escape(experiment.last_outcome.as_deref().unwrap_or("")),
        );
    }
    page += "</table>\n<h2>Results</h2>\n<ul>\n";
    for (path, what) in [
        ("/results.json?order=newest&amp;limit=20", "the latest twenty as JSON"),
        ("/results.ndjson", "all, as a JSON object a line"),
        ("/results.tpf", "all, as Torperf's key=value (<code>@type torperf 1.1</code>)"),
        ("/results.csv", "all, as CSV"),
        ("/schema/result.json", "the schema of the JSON"),
        ("/health", "the state of this server as JSON"),
    ] {
        let _ = writeln!(page, "<li><a href=\"{path}\">{path}</a>: {what}</li>");
    }
    page += "</ul>\n</html>\n";
    page
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
    use crate::clock::UnixMicros;

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
        let page = render(&health);
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)").count(), 2);
    }
}
