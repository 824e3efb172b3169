//! The pages for people and monitors: the start page, /health and /robots.txt.

#[path = "common/web.rs"]
mod web;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use perfd::config::{Config, PublicAddress};
use serde_json::json;
use sha2::{Digest, Sha256};
use web::{Client, Server, add, config, fill, incomplete, new_result};

#[tokio::test]
async fn the_start_page_shows_hostile_values_as_text() {
    let mut config = config("");
    config.contact = "<script>alert(1)</script> \" onload='x' & </style>".to_owned();
    let server = Server::start(config).await;
    let page = server.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().contains(
        "It is run by &lt;script&gt;alert(1)&lt;/script&gt; &quot; onload=&#39;x&#39; &amp; &lt;/style&gt;."
    ));
    assert!(!page.text().contains("<script"));
    assert!(page.body.len() < 8000, "it is a small page: {}", page.body.len());
}

#[tokio::test]
async fn nothing_but_the_pages_own_style_may_be_used() {
    let server = Server::start(config("")).await;
    let page = server.get("/").await;
    let (_, from_style) = page.text().split_once("<style>").unwrap();
    let (style, _) = from_style.split_once("</style>").unwrap();
    let hash = STANDARD.encode(Sha256::digest(style));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with(&format!("default-src 'none'; style-src 'sha256-{hash}';")), "{policy}");
    for other in ["/health", "/robots.txt", "/nowhere"] {
        let policy = server.get(other).await.header("content-security-policy").unwrap().to_owned();
        assert_eq!(policy, "default-src 'none'; frame-ancestors 'none'");
    }
    assert!(server.get("/robots.txt").await.text().contains("Disallow: /payload/\n"));
}

fn with_public_address() -> Config {
    let public = Some(PublicAddress { host: "192.0.2.1".to_owned(), port: 80 });
    Config { public, ..config("") }
}

#[tokio::test]
async fn health_tells_what_an_operator_should_look_at() {
    let server = Server::start(config("")).await;
    let health = server.get("/health").await.json();
    assert_eq!((&health["status"], &health["source"]), (&json!("warning"), &json!("test")));
    let problem = health["problems"][0].as_str().unwrap();
    assert!(problem.contains("can't measure: no public host is configured; set host in"), "{problem}");

    let server = Server::start(with_public_address()).await;
    let health = server.get("/health").await.json();
    assert_eq!((&health["status"], &health["problems"]), (&json!("ok"), &json!([])));
    assert_eq!(health["instance"], server.secret.instance_name());
    assert_eq!(health["experiments"][0]["last_outcome"], json!(null));

    // A new server, since a look at the store is good for a while.
    let server = Server::start(with_public_address()).await;
    add(&server.store, vec![incomplete(new_result(1, 0), true)]).await;
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("warning")));
    assert_eq!(health.json()["problems"], json!(["experiment 50kib has had no success yet"]));
    assert_eq!(health.json()["experiments"][0]["last_outcome"], "timeout");
    assert!(server.get("/").await.text().contains("has had no success yet"));
}

#[tokio::test]
async fn a_store_that_can_not_be_read_is_failing_and_payloads_go_on() {
    let server = Server::start(with_public_address()).await;
    server.database().execute_batch("DROP TABLE result").unwrap();
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("failing")));
    assert!(health.json()["problems"][0].as_str().unwrap().starts_with("the store cannot be read"));
    assert!(server.get("/").await.text().contains("<strong class=\"failing\">failing</strong>"));
    for results in ["/results.csv", "/results/00000000000000000000000000000001"] {
        let reply = server.get(results).await;
        assert_eq!(reply.status, 503);
        assert!(reply.reason().starts_with("the store cannot be read"), "{}", reply.reason());
    }
    assert_eq!(server.get("/payload/51200").await.body.len(), 51_200);
}

#[tokio::test]
async fn a_flood_of_questions_for_health_harms_nobody() {
    let server = Server::start(config("")).await;
    fill(&server.store, 36).await;
    let before = server.get("/health").await.json()["status"].clone();
    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = Client::connect(server.address).await;
        client.send("GET /health HTTP/1.1\r\nHost: test\r\n\r\n".repeat(5)).await;
        clients.push(client);
    }
    assert_eq!(server.get("/results.ndjson").await.text().lines().count(), 36);
    assert_eq!(server.get("/payload/51200").await.body.len(), 51_200);
    add(&server.store, vec![new_result(100, 100)]).await;
    for client in &mut clients {
        for _ in 0..5 {
            let reply = client.reply().await;
            assert_eq!((reply.status, &reply.json()["status"]), (200, &before));
        }
    }
}
