//! Connections: accepted up to a number, each with a deadline for its head and for standing still.
//!
//! `axum::serve` knows no limits, so a few idle or slow strangers could hold its sockets for ever; hence
//! this loop over hyper's connection, with the router inside.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, warn};

use super::error::ApiError;
use super::payload::run_of;
use crate::payload::in_flight::InFlight;

/// A client has so long to send a request's head, and as long between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// At the end of the service, answers under way have so long to be finished.
const FAREWELL: Duration = Duration::from_secs(2);

/// Connections beyond the limit that are still taken, to serve perfd's own runs and tell others why not.
const CROWD: usize = 64;

/// A response is handed to the system in portions of about this size, the last piece of a payload
/// beyond it, so that a connection has at most 192 KiB in flight. Twice as much is no faster, and half
/// of it neither.
const WRITE_BUFFER: usize = 128 * 1024;

/// After an error of `accept` (no file descriptors, mostly) so long is waited before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server grants its clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at a time, over all listeners.
    pub connections: Arc<Semaphore>,
    /// A client that takes nothing for so long is cut off.
    pub stall_timeout: Duration,
    /// The runs whose requests are served however crowded it is.
    pub in_flight: InFlight,
}

/// Serves `router` on `listener` until `shutdown`, and ends with the last connection, soon after it.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: CancellationToken) {
    let crowd = Arc::new(Semaphore::new(CROWD));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = match Arc::clone(&limits.connections).try_acquire_owned() {
            Ok(permit) => Place { _permit: permit, crowded: false },
            Err(_) => match Arc::clone(&crowd).try_acquire_owned() {
                Ok(permit) => Place { _permit: permit, crowded: true },
                Err(_) => continue,
            },
        };
        connections.spawn(connection(stream, peer, place, router.clone(), limits.clone(), shutdown.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A connection's place among those that may be open.
struct Place {
    _permit: OwnedSemaphorePermit,
    /// Beyond the limit: only perfd's own runs are served.
    crowded: bool,
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.stall_timeout));
    let service = service_fn(|request: Request<Incoming>| {
        let mut router = router.clone();
        let own_run = run_of(request.headers()).is_ok_and(|run| run.is_some_and(|id| limits.in_flight.contains(&id)));
        let crowded_out = place.crowded && !own_run;
        async move {
            if crowded_out {
                return Ok::<Response<Body>, Infallible>(ApiError::busy("too many connections").close());
            }
            router.call(request).await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(WRITE_BUFFER)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(FAREWELL, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection ended early");
    }
}
