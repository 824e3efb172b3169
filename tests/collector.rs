//! `/collector/`, as CollecTor and other mirrors ask it.

#[path = "common/web.rs"]
mod web;

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use perfd::clock::UnixMicros;
use perfd::config::Collector;
use perfd::store::{Listed, PublishedDay, PublishedFile};
use sha2::{Digest, Sha256};
use web::{Client, Server, config};

/// 2026-11-23T00:02:03.5Z
const MADE: UnixMicros = UnixMicros(1_795_392_123_500_000);

const DATE: &str = "Mon, 23 Nov 2026 00:02:03 GMT";

fn file(name: &str, body: &[u8], deflated: bool) -> PublishedFile {
    let sha256 = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let listed = Listed { name: name.to_owned(), modified: MADE, size: body.len() as u64, sha256 };
    let stored = match deflated {
        true => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        false => body.to_vec(),
    };
    PublishedFile { listed, deflated, body: stored }
}

/// Large enough to come in several pieces.
fn lines() -> Vec<u8> {
    (0..20_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
}

async fn with_a_day() -> Server {
    let server = Server::start(config("")).await;
    let files = vec![
        file("test-51200-2026-11-22.tpf", &lines(), true),
        file("2026-11-22.onionperf.analysis.json.xz", b"\xfd7zXZ", false),
    ];
    assert!(server.store.publish(PublishedDay { day: 20_779, settled: MADE, files }).await.unwrap());
    server
}

#[tokio::test]
async fn the_listing_has_a_line_for_each_file() {
    let server = with_a_day().await;
    let listing = server.get("/collector/").await;
    assert_eq!((listing.status, listing.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(listing.header("content-encoding"), None);
    for name in ["test-51200-2026-11-22.tpf", "2026-11-22.onionperf.analysis.json.xz"] {
        let link = format!("<a href=\"{name}\">");
        assert_eq!(listing.text().lines().filter(|line| line.contains(&link)).count(), 1, "{}", listing.text());
    }
    let index = server.get("/collector/index.xml").await;
    assert_eq!((index.status, index.header("content-type")), (200, Some("application/xml")));
    assert!(index.text().contains(&format!("<size>{}</size>", lines().len())), "{}", index.text());
    assert!(index.text().contains(" last_modified=\"2026-11-23 00:02:03\" "), "{}", index.text());
    for page in [listing, index] {
        let tag = page.header("etag").unwrap().to_owned();
        let path = if page.text().starts_with("<?xml") { "/collector/index.xml" } else { "/collector/" };
        assert_eq!(server.get_with(path, &format!("If-None-Match: {tag}\r\n")).await.status, 304);
        assert_eq!(server.get_with(path, "If-None-Match: \"other\"\r\n").await.status, 200);
    }
}

#[tokio::test]
async fn a_file_comes_whole_or_not_again() {
    let server = with_a_day().await;
    let path = "/collector/test-51200-2026-11-22.tpf";
    let whole = server.get_with(path, "Accept-Encoding: gzip, deflate\r\n").await;
    assert_eq!((whole.status, &whole.body), (200, &lines()));
    let length = lines().len().to_string();
    let digest: String = Sha256::digest(lines()).iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{digest}\"");
    for (name, value) in [
        ("content-length", Some(length.as_str())),
        ("content-encoding", None),
        ("content-type", Some("text/plain; charset=utf-8")),
        ("last-modified", Some(DATE)),
        ("etag", Some(tag.as_str())),
    ] {
        assert_eq!(whole.header(name), value, "{name}");
    }
    for (condition, status) in [
        (format!("If-None-Match: {tag}"), 304),
        (format!("If-None-Match: \"a\", W/{tag}"), 304),
        ("If-None-Match: *".to_owned(), 304),
        ("If-None-Match: \"a\"".to_owned(), 200),
        (format!("If-Modified-Since: {DATE}"), 304),
        ("If-Modified-Since: Mon, 23 Nov 2026 00:02:02 GMT".to_owned(), 200),
        ("If-Modified-Since: yesterday".to_owned(), 200),
        // The tag says more than the date.
        (format!("If-None-Match: \"a\"\r\nIf-Modified-Since: {DATE}"), 200),
    ] {
        let reply = server.get_with(path, &format!("{condition}\r\n")).await;
        assert_eq!(reply.status, status, "{condition}");
        assert_eq!((reply.header("etag"), reply.header("last-modified")), (Some(tag.as_str()), Some(DATE)));
        assert_eq!(reply.body.is_empty(), status == 304);
    }
    let mut client = Client::connect(server.address).await;
    client.send(format!("HEAD {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")).await;
    let head = client.rest().await;
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains(&format!("\r\ncontent-length: {length}\r\n")), "{head}");
    assert!(head.contains(&format!("\r\netag: {tag}\r\n")), "{head}");

    let xz = server.get("/collector/2026-11-22.onionperf.analysis.json.xz").await;
    assert_eq!((xz.body.as_slice(), xz.header("content-type")), (&b"\xfd7zXZ"[..], Some("application/x-xz")));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let server = with_a_day().await;
    for path in ["/collector/test-51200-2026-11-23.tpf", "/collector/a/b", "/collector/..%2f"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!reply.reason().is_empty());
    }
}

#[tokio::test]
async fn the_configuration_says_where() {
    let mut elsewhere = config("");
    elsewhere.collector = Collector { path: Some("/a/b/".to_owned()) };
    let server = Server::start(elsewhere).await;
    assert_eq!(server.get("/a/b/").await.status, 200);
    assert_eq!(server.get("/a/b/index.xml").await.status, 200);
    assert_eq!(server.get("/collector/").await.status, 404);

    let mut nowhere = config("");
    nowhere.collector = Collector { path: None };
    let server = Server::start(nowhere).await;
    assert_eq!(server.get("/collector/").await.status, 404);
}
