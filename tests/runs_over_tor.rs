//! Every kind of run over a private network of real tor processes.

#[path = "common/mod.rs"]
mod common;
#[path = "common/peers.rs"]
mod peers;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/web.rs"]
mod web;

use std::time::Duration;

use perfd::measurement::{Kind, Measurement, Request};
use perfd::testnet::{self, Options, TestNet};
use runs::{run, summary};
use web::{Server, config};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_real_tor_carries_every_kind_of_run() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let owner = Some(std::process::id());
    let options = Options { dir: folder.path().join("net"), tor_dir: Some(tor_dir), deadline: 2 * MINUTE, owner };
    let net = testnet::up(options, |_| {}).await.unwrap();
    let server = Server::start(config("")).await;

    for (kind, route) in [(Kind::Download, "payload"), (Kind::Upload, "upload")] {
        for optimistic in [false, true] {
            for size in [51_200, 51_200, 1 << 20, 5 << 20] {
                let measurement = measure(&net, &server, |r| {
                    (r.kind, r.optimistic, r.size) = (kind, optimistic, Some(size));
                    r.path = format!("/{route}/{size}");
                })
                .await;
                assert_eq!(summary(&measurement), "complete isolated verified", "{measurement:?}");
                let (sent, granted) = (measurement.steps.data_request, measurement.steps.response);
                // Across three relays nothing is granted before the request is written.
                assert_eq!(sent < granted, optimistic, "{measurement:?}");
                assert_eq!(measurement.server.is_some(), kind == Kind::Upload);
                assert!(measurement.curve.len() > 1 || kind == Kind::Upload, "it comes in many cells: {measurement:?}");
            }
        }
    }

    // A port where nothing listens, and an address that no onion service has.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let onion = format!("{}.onion", "a".repeat(56));
    for (host, port, code) in [("127.0.0.1", closed, "01"), (onion.as_str(), 80, "f6")] {
        for (kind, optimistic) in [(Kind::Download, false), (Kind::Download, true), (Kind::Upload, true)] {
            let measurement = measure(&net, &server, |r| {
                (r.kind, r.optimistic, r.size) = (kind, optimistic, Some(51_200));
                (r.host, r.port) = (host.to_owned(), port);
            })
            .await;
            let expected = format!("failed response socks_reply {code} isolated");
            assert_eq!(summary(&measurement), expected, "{kind:?} optimistic {optimistic}: {measurement:?}");
        }
    }
    testnet::down(&net.dir).await.unwrap();
}

async fn measure(net: &TestNet, server: &Server, change: impl FnOnce(&mut Request)) -> Measurement {
    let mut request = runs::request(net.socks);
    (request.host, request.port) = (server.address.ip().to_string(), server.address.port());
    request.payload_seed = Some(server.secret.seed(&request.id));
    request.timeout = MINUTE;
    change(&mut request);
    let entry = server.in_flight.enter(request.id.clone());
    let measurement = run(&request).await;
    drop(entry);
    measurement
}
