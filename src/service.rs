//! The running service: the scheduler, the server and the store, started in order and ended in order.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::{Clock, UnixMicros};
use crate::collector::Publisher;
use crate::config::{Config, Experiment, ServerOf};
use crate::payload::Secret;
use crate::payload::in_flight::InFlight;
use crate::probe::Prober;
use crate::scheduler::{Board, Experimenter, Means, Route, Server};
use crate::store::{Store, StoreHealth};
use crate::tor::{Tor, Tors, supervise_all};
use crate::version;
use crate::web::serve::{Limits, serve};
use crate::web::{Parts, Shared, router};

/// At the end, the experiments and the server have so long to come to rest.
const FAREWELL: Duration = Duration::from_secs(4);

/// And a store that can't be written has so long to get well.
const LAST_TRY: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How a running service is steered: a handle that can be cloned.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// Ends it.
    pub shutdown: CancellationToken,
    /// Has the tors that perfd starts read their torrcs anew, lines from files included.
    pub reload: Arc<Notify>,
}

/// Binds a listening socket; an IPv6 one takes no IPv4 connections, so that both can have one port.
///
/// # Errors
/// What the system says, with the address.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(StdListener::from(socket))
    };
    bind().map_err(|e: io::Error| io::Error::new(e.kind(), format!("can't listen on {address}: {e}")))
}

/// Measures and serves until `controls.shutdown`, then ends within a few seconds with everything committed. While
/// the store can't be written, what waits for it is logged instead.
///
/// # Errors
/// If the service can't be started, or a part of it ends before its time. Failed runs are no errors.
pub async fn run(
    config: Arc<Config>,
    listeners: Vec<StdListener>,
    store: Store,
    secret: Secret,
    controls: Controls,
) -> Result<()> {
    let Controls { shutdown, reload } = controls;
    let listeners: Vec<TcpListener> =
        listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>().context("can't use the sockets")?;
    let (prober, measuring) = Prober::start().context("can't start the measuring thread")?;
    let means = Means {
        clock: Clock::System,
        store: store.clone(),
        prober,
        secret: secret.clone(),
        in_flight: InFlight::default(),
        board: Board::default(),
    };

    // The onion service has a listener of its own, so that its clients, who all come from this machine, are not
    // taken for this machine's.
    let onion = match config.onion_publishers().is_empty() {
        true => None,
        false => Some(TcpListener::from_std(bind((Ipv4Addr::LOCALHOST, 0).into())?).context("can't use the socket")?),
    };
    let target = onion.as_ref().map(TcpListener::local_addr).transpose()?;
    let tors = Tors::new(&config, target);
    let experimenters = experimenters(&config, &tors, &means)?;
    let mut parts = JoinSet::new();
    let limits = Limits::new(&config.server, means.in_flight.clone());
    let parts_of_server = Parts {
        config: Arc::clone(&config),
        store: store.clone(),
        tors: tors.clone(),
        board: means.board.clone(),
        secret,
        in_flight: means.in_flight.clone(),
    };
    let shared = Shared::new(parts_of_server);
    let router = router(shared);
    for listener in listeners {
        let address = listener.local_addr().map_or_else(|e| e.to_string(), |address| address.to_string());
        info!(%address, version = version::LONG, "listening");
        let served = serve(listener, router.clone(), limits.clone(), shutdown.clone());
        parts.spawn(async {
            served.await;
            Ok(())
        });
    }

    if let Some(listener) = onion {
        let served = serve(listener, router, limits.behind_tor(), shutdown.clone());
        parts.spawn(async {
            served.await;
            Ok(())
        });
    }
    let mut threads = vec![measuring];
    if tors.iter().next().is_some() {
        let (looked_after, thread) =
            supervise_all(&tors, &store, &shutdown).context("can't start the control thread")?;
        threads.push(thread);
        parts.spawn(async { Ok(looked_after.await??) });
    }

    let reloading = reload_when_told(tors.clone(), reload, shutdown.clone());
    parts.spawn(async {
        reloading.await;
        Ok(())
    });

    if let Some(publisher) = Publisher::new(&config, store.clone(), Clock::System) {
        let published = publisher.run(shutdown.clone());
        parts.spawn(async {
            published.await;
            Ok(())
        });
    }

    for experiment in &config.experiments {
        if let Some(fault) = config.fault_of_experiment(experiment) {
            warn!(experiment = experiment.name, "every slot is skipped: {fault}");
        }
    }
    drop(means);
    let mut outcome = tokio::select! {
        biased;
        unfinished = store.abort_unfinished(UnixMicros::now()) => unfinished.map_err(anyhow::Error::from),
        () = shutdown.cancelled() => Ok(0),
    }
    .map(|unfinished| {
        if unfinished > 0 {
            warn!(slots = unfinished, "perfd died in the middle of these slots; they are aborted");
        }
        for experimenter in experimenters {
            let shutdown = shutdown.clone();
            parts.spawn(async { experimenter.run(shutdown).await.map_err(anyhow::Error::from) });
        }
    });
    if outcome.is_err() {
        shutdown.cancel();
    }

    tokio::select! {
        // First: told to end, a part may have ended by now, and rightly so.
        biased;
        () = shutdown.cancelled() => info!("ending"),
        ended = parts.join_next() => {
            outcome = Err(match ended {
                Some(Ok(Err(e))) => e,
                Some(Err(e)) => anyhow!("a part of the service panicked: {e}"),
                _ => anyhow!("a part of the service ended before its time"),
            });
            shutdown.cancel();
        }
    }
    let rested = tokio::select! {
        rested = join_all(&mut parts, FAREWELL) => rested,
        // What is left waits for the store.
        () = given_up(store.health()) => true,
    };
    if !rested {
        error!("not everything came to rest in time");
    }
    // Who still waits for a store that can't be written is let go by this, and logs what is lost.
    let closed = store.close(LAST_TRY).await;
    join_all(&mut parts, LAST_TRY).await;
    parts.shutdown().await;
    if let Err(e) = closed {
        outcome = outcome.and(Err(e.into()));
    }
    let join = || threads.into_iter().for_each(|thread| drop(thread.join()));
    if tokio::time::timeout(FAREWELL, tokio::task::spawn_blocking(join)).await.is_err() {
        error!("the measuring thread, or that of the tors, did not end in time");
    }
    if outcome.is_ok() {
        info!("ended");
    }
    outcome
}

async fn reload_when_told(tors: Tors, reload: Arc<Notify>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = reload.notified() => tors.iter().for_each(Tor::reload),
        }
    }
}

/// Waits until the store can't be written, and has had its time to get well.
async fn given_up(mut health: watch::Receiver<StoreHealth>) {
    if health.wait_for(|health| matches!(health, StoreHealth::Failing { .. })).await.is_err() {
        // The writer is gone, and fails no more.
        return std::future::pending().await;
    }
    tokio::time::sleep(LAST_TRY).await;
}

/// Where to reach a server that listens on this address from the same machine.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(a) if a.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, a.port()).into(),
        SocketAddr::V6(a) if a.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, a.port()).into(),
        other => other,
    }
}

fn experimenters(config: &Config, tors: &Tors, means: &Means) -> Result<Vec<Experimenter>> {
    let tor = |name: &str| tors.get(name).cloned().with_context(|| format!("there is no tor {name}"));
    let route = |experiment: &Experiment, name: &String| {
        let server = match config.server_of(experiment, name) {
            ServerOf::Onion(publisher) => Server::Onion(tor(publisher)?),
            ServerOf::Public(public) => Server::Public(public.clone()),
            ServerOf::Nowhere => Server::Nowhere,
        };
        Ok(Route { tor: tor(name)?, server })
    };
    let experimenter = |experiment: &Experiment| {
        Ok(Experimenter {
            routes: experiment.tors.iter().map(|tor| route(experiment, tor)).collect::<Result<_>>()?,
            source: config.source.clone(),
            configuration: config.in_force(experiment).to_string(),
            experiment: experiment.clone(),
            means: means.clone(),
        })
    };
    config.experiments.iter().map(experimenter).collect()
}

/// Waits until all parts have ended, for so long; whether they have.
async fn join_all(parts: &mut JoinSet<Result<()>>, patience: Duration) -> bool {
    let all = async {
        while let Some(ended) = parts.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!("{error:#}"),
                Err(error) => error!(%error, "a part of the service panicked"),
            }
        }
    };
    tokio::time::timeout(patience, all).await.is_ok()
}
