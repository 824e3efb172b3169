//! How commands ask a running perfd.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use futures_util::StreamExt;
use reqwest::{Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::exit::{CONFIG, Exit, FAILED, OrExit, UNAVAILABLE, USAGE};
use super::output;
use crate::config::Config;
use crate::export::table;
use crate::service;

/// Why a service refuses is a line.
const LONGEST_REFUSAL: usize = 64 << 10;

/// What is read whole may have tens of thousands of rows.
const LONGEST_ANSWER: usize = 64 << 20;

/// Which service is asked.
#[derive(Args, Debug)]
pub(super) struct ServiceArgs {
    /// The service, such as http://127.0.0.1:8080; else the first address of the configuration
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The configuration that names the service's address
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Fetches a page of the service, whose path has these parts.
///
/// # Errors
/// If the service is not known or does not answer, or says that it won't: its reason is told.
pub(super) async fn get(
    service: &ServiceArgs,
    path: &[&str],
    query: &[(&'static str, String)],
) -> Result<Response, Exit> {
    let (server, url) = address(service, path)?;
    let mut request = client()?.get(url);
    if !query.is_empty() {
        request = request.query(query);
    }
    answer(&server, request).await
}

/// Sends something as JSON to a page of the service, with a token.
///
/// # Errors
/// Those of [`get`]; or if the token can't stand in a header.
pub(super) async fn post(
    service: &ServiceArgs,
    path: &[&str],
    token: &str,
    what: &impl Serialize,
) -> Result<Response, Exit> {
    let (server, url) = address(service, path)?;
    answer(&server, client()?.post(url).bearer_auth(token).json(what)).await
}

/// The service, and the page's address there.
fn address(service: &ServiceArgs, path: &[&str]) -> Result<(String, Url), Exit> {
    let server = match &service.server {
        Some(url) => url.clone(),
        None => {
            let config = Config::load(&service.config)
                .context("give --server URL, or the configuration of the service")
                .or_exit(CONFIG)?;
            format!("http://{}", service::reachable(config.server.listen[0]))
        }
    };
    let url = page(&server, path)
        .with_context(|| format!("--server {server}: give a URL such as http://127.0.0.1:8080"))
        .or_exit(USAGE)?;
    Ok((server, url))
}

fn client() -> Result<reqwest::Client, Exit> {
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60))
        .build()
        .or_exit(FAILED)
}

/// What the service answers, if it does not refuse.
async fn answer(server: &str, request: reqwest::RequestBuilder) -> Result<Response, Exit> {
    let response = request
        .send()
        .await
        .with_context(|| format!("{server} does not answer; is perfd running?"))
        .or_exit(UNAVAILABLE)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let code = match status {
        StatusCode::NOT_FOUND => FAILED,
        status if status.is_client_error() => USAGE,
        _ => UNAVAILABLE,
    };
    let answer = output::read_whole(response, LONGEST_REFUSAL).await.unwrap_or_default();
    let refusal = serde_json::from_slice::<Refusal>(&answer);
    let reason = refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error);
    Err(anyhow!("{server} refuses: {}", table::printable(&reason))).or_exit(code)
}

/// A page of the server, which may be given with a path of its own, as behind a reverse proxy.
fn page(server: &str, path: &[&str]) -> Option<Url> {
    let mut url = Url::parse(server).ok().filter(|url| url.scheme() == "http")?;
    url.path_segments_mut().ok()?.pop_if_empty().extend(path);
    Some(url)
}

/// Reads an answer that is JSON.
///
/// # Errors
/// If it is not what was expected, or breaks off.
pub(super) async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Exit> {
    let answer = output::read_whole(response, LONGEST_ANSWER).await.or_exit(UNAVAILABLE)?;
    serde_json::from_slice(&answer).context("the answer is not what a perfd gives").or_exit(UNAVAILABLE)
}

/// Prints an answer as it comes.
///
/// # Errors
/// If it breaks off, or can't be printed.
pub(super) async fn copy(response: Response) -> Result<(), Exit> {
    let mut pieces = response.bytes_stream();
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    while let Some(piece) = pieces.next().await {
        let mut piece = piece.context("the answer was cut off").or_exit(UNAVAILABLE)?;
        if terminal {
            piece = output::harmless(&String::from_utf8_lossy(&piece)).into();
        }
        if !output::print(piece)? {
            break;
        }
    }
    Ok(())
}
