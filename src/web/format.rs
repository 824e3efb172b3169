//! Which format a client wants: by the file ending, else by `Accept`.
//!
//! `text/plain` is Torperf's key=value. One result is also to be had as a text for people, by the ending `.txt`
//! alone.

use axum::http::{HeaderMap, StatusCode, header};

use super::error::ApiError;

/// A format that results are given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object with all results.
    Json,
    /// A JSON object a line.
    Ndjson,
    /// Torperf's key=value.
    Torperf,
    /// Comma-separated values.
    Csv,
    /// An HTTP archive.
    Har,
}

/// Each format with its file ending, its content type, and the media types by which it is asked for.
const FORMATS: [(Format, &str, &str, &[&str]); 5] = [
    (Format::Json, "json", "application/json", &["application/json", "application/*", "*/*", "text/html"]),
    (
        Format::Ndjson,
        "ndjson",
        "application/x-ndjson",
        &["application/x-ndjson", "application/ndjson", "application/jsonl"],
    ),
    (Format::Torperf, "tpf", "text/plain; charset=utf-8", &["text/plain", "text/*"]),
    (Format::Csv, "csv", "text/csv; charset=utf-8", &["text/csv"]),
    // It has no media type of its own.
    (Format::Har, "har", "application/json", &[]),
];

impl Format {
    /// The format of a file ending, without its dot.
    pub fn of_ending(ending: &str) -> Option<Format> {
        FORMATS.iter().find(|(_, e, ..)| *e == ending).map(|(format, ..)| *format)
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        FORMATS[self as usize].2
    }

    /// The format that `Accept` prefers; JSON where it is missing.
    ///
    /// # Errors
    /// 406 if it names formats, and none of these.
    pub fn accepted(headers: &HeaderMap) -> Result<Format, ApiError> {
        let lines: Vec<_> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        // An empty value is as good as none.
        if lines.iter().all(|line| line.trim().is_empty()) {
            return Ok(Format::Json);
        }
        let wanted = lines.iter().flat_map(|line| line.split(',')).filter_map(media_range);
        // The first of the most wanted; max_by keeps the last of equals, hence the reversal.
        let ranges: Vec<_> = wanted.collect();
        let best = ranges.iter().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
        best.map(|(format, _)| *format).ok_or_else(|| {
            let reason =
                "results are given as application/json, application/x-ndjson, text/plain (Torperf) and text/csv";
            ApiError::new(StatusCode::NOT_ACCEPTABLE, reason)
        })
    }
}

/// The format and quality of one media range, if it is one of ours and not refused.
fn media_range(range: &str) -> Option<(Format, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok())?;
    let (format, ..) = FORMATS.iter().find(|(.., media_types)| media_types.contains(&media.as_str()))?;
    (quality > 0.0).then_some((*format, quality))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_understood() {
        let accepted = |accept: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            Format::accepted(&headers).ok()
        };
        assert_eq!(accepted("text/csv"), Some(Format::Csv));
        assert_eq!(accepted("text/plain;q=0.5, application/x-ndjson;q=0.9"), Some(Format::Ndjson));
        assert_eq!(accepted("text/csv, text/plain"), Some(Format::Csv), "the first of equals");
        assert_eq!(accepted("text/html,application/xhtml+xml,*/*;q=0.8"), Some(Format::Json));
        assert_eq!(accepted(" "), Some(Format::Json));
        assert_eq!(accepted("image/png"), None);
        assert_eq!(accepted("application/json;q=0"), None);
        assert_eq!(Format::accepted(&HeaderMap::new()).ok(), Some(Format::Json));
    }

    #[test]
    fn endings_and_formats_match() {
        for (format, ending, content_type, _) in FORMATS {
            assert_eq!((Format::of_ending(ending), format.content_type()), (Some(format), content_type));
        }
    }
}
