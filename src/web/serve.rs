//! Connections: accepted up to a number, each with a deadline for its head and for standing still.
//!
//! `axum::serve` knows no limits, so a few idle or slow strangers could hold its sockets for ever; hence
//! this loop over hyper's connection, with the router inside.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, info, warn};

use super::error::ApiError;
use super::payload::run_of;
use super::stall::{Exemption, StallGuard};
use crate::config::Server;
use crate::payload::in_flight::InFlight;

/// A client has so long to send a request's head, and as long between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// No connection lasts longer, however little at a time is taken, but for perfd's own runs.
const LONGEST: Duration = Duration::from_secs(3600);

/// At the end of a connection's or the service's time, answers under way have so long to be finished.
const FAREWELL: Duration = Duration::from_secs(2);

/// Connections of one listener beyond the limit that are still taken, to serve perfd's own runs and tell others why not.
pub const CROWD: usize = 64;

/// A request's head may be so large, and a response is handed to the system in portions of about this
/// size. Strangers can make perfd hold it once for every connection.
const BUFFER: usize = 64 * 1024;

/// After an error of `accept` (no file descriptors, mostly) so long is waited before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server grants its clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at a time, over all listeners.
    pub connections: Arc<Semaphore>,
    /// A client that takes nothing for so long is cut off.
    pub stall_timeout: Duration,
    /// A client has so long to send a request's head, and as long between two requests.
    pub head_timeout: Duration,
    /// The runs whose requests are served however crowded it is.
    pub in_flight: InFlight,
    /// Whether all clients come from a tor of this machine, as those of an onion service do: nobody can tell one
    /// from another, so they count as one, and not as this machine.
    pub behind_tor: bool,
}

impl Limits {
    /// What the configuration grants.
    pub fn new(server: &Server, in_flight: InFlight) -> Self {
        Limits {
            connections: Arc::new(Semaphore::new(server.max_connections)),
            stall_timeout: server.stall_timeout,
            head_timeout: HEAD_TIMEOUT,
            in_flight,
            behind_tor: false,
        }
    }

    /// The same for a listener that takes the connections of an onion service.
    pub fn behind_tor(self) -> Self {
        Limits { behind_tor: true, ..self }
    }

    /// Whom a connection counts for.
    fn peer(&self, address: SocketAddr) -> IpAddr {
        if self.behind_tor { Ipv6Addr::UNSPECIFIED.into() } else { network_of(address.ip()) }
    }
}

/// Serves `router` on `listener` until `shutdown`, and ends with the last connection, soon after it.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: CancellationToken) {
    let mut crowd = Crowd::default();
    let mut connections = JoinSet::new();
    let mut refusing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !std::mem::replace(&mut refusing, true) {
                    warn!(%error, "can't accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if std::mem::take(&mut refusing) {
            info!("connections are accepted again");
        }
        let place = match Arc::clone(&limits.connections).try_acquire_owned() {
            Ok(permit) => Place::Granted(permit),
            Err(_) if crowd.makes_room() => Place::Crowded(Arc::default()),
            Err(_) => continue,
        };
        let crowded = place.crowded();
        let task = connections.spawn(connection(stream, peer, place, router.clone(), limits.clone(), shutdown.clone()));
        crowd.0.extend(crowded.map(|own_run| Crowded { task, peer: limits.peer(peer), own_run }));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Who a request comes from: an IPv4 address, the network of an IPv6 one, or `::` for the onion service's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(pub IpAddr);

/// Says when a connection is to end: an answer that would go on for ever ends with it, in good order.
#[derive(Clone, Debug)]
pub struct Ending(pub CancellationToken);

/// An IPv6 client has a whole /64 to itself.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Waits until the connection must end: at the service's end, or when it has lasted too long.
async fn end_of_time(exemption: &Exemption, shutdown: &CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LONGEST) => {}
        }
        if !exemption.holds() {
            return;
        }
    }
}

/// A connection's place among those that may be open.
enum Place {
    /// Within the limit.
    Granted(#[expect(dead_code, reason = "held, and given back with the connection")] OwnedSemaphorePermit),
    /// Beyond it: only perfd's own runs are served, and whether this is one is noted here.
    Crowded(Arc<AtomicBool>),
}

impl Place {
    fn crowded(&self) -> Option<Arc<AtomicBool>> {
        match self {
            Place::Granted(_) => None,
            Place::Crowded(own_run) => Some(Arc::clone(own_run)),
        }
    }
}

/// The connections beyond the limit, the oldest first.
#[derive(Default)]
struct Crowd(VecDeque<Crowded>);

struct Crowded {
    task: AbortHandle,
    peer: IpAddr,
    own_run: Arc<AtomicBool>,
}

impl Crowd {
    /// Makes room for one more: if it is full, a stranger goes, the oldest of the peer that has most of them
    /// here. So strangers who fill it and say nothing keep no run out, whose request comes within a round
    /// trip; and neither does one who comes again and again, unless from many addresses.
    fn makes_room(&mut self) -> bool {
        self.0.retain(|crowded| !crowded.task.is_finished());
        if self.0.len() < CROWD {
            return true;
        }
        let strangers = || self.0.iter().enumerate().filter(|(_, c)| !c.own_run.load(Ordering::Relaxed));
        let mut counts = HashMap::new();
        strangers().for_each(|(_, c)| *counts.entry(c.peer).or_insert(0) += 1);
        let oldest_of_most = strangers().rev().max_by_key(|(_, c)| counts[&c.peer]).map(|(index, _)| index);
        let ended = oldest_of_most.and_then(|index| self.0.remove(index)).map(|crowded| crowded.task.abort());
        ended.is_some()
    }
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
    let exemption = Exemption::default();
    let stream = StallGuard::new(stream, limits.stall_timeout, exemption.clone());
    let ending = Ending(CancellationToken::new());
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(exemption.clone());
        request.extensions_mut().insert(Peer(limits.peer(peer)));
        request.extensions_mut().insert(ending.clone());
        let mut router = router.clone();
        let own_run = run_of(request.headers()).is_ok_and(|run| run.is_some_and(|id| limits.in_flight.contains(&id)));
        if own_run && let Place::Crowded(noted) = &place {
            noted.store(true, Ordering::Relaxed);
        }
        // A monitor that asks how perfd is must not hear of a crowd instead.
        let crowded_out = matches!(place, Place::Crowded(_)) && !own_run && request.uri().path() != "/health";
        async move {
            if crowded_out {
                return Ok::<Response<Body>, Infallible>(ApiError::busy("too many connections").close());
            }
            router.call(request).await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = end_of_time(&exemption, &shutdown) => {
            ending.0.cancel();
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
