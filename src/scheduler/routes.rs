//! Through which tor to which server an experiment's runs go.

use std::net::SocketAddr;

use rand::seq::SliceRandom;

use super::Experimenter;
use crate::config::PublicAddress;
use crate::measurement::ServerKind;
use crate::slot::SlotReason;
use crate::tor::Tor;

/// A way to measure.
#[derive(Clone)]
pub struct Route {
    /// The tor that is measured through.
    pub tor: Tor,
    /// What is measured.
    pub server: Server,
}

/// Where perfd's own server is reached.
#[derive(Clone)]
pub enum Server {
    /// At its public address.
    Public(PublicAddress),
    /// As the onion service that this tor publishes.
    Onion(Tor),
    /// Nowhere: there is no public address, and no tor that could publish a service.
    Nowhere,
}

/// A route on which something can be measured now.
pub(super) struct Ready {
    pub route: Route,
    pub socks: SocketAddr,
    pub host: String,
    pub port: u16,
    pub server: ServerKind,
}

/// The port at which the onion service answers.
const ONION_PORT: u16 = 80;

impl Route {
    /// The tor that publishes the onion service, if it is one.
    pub(super) fn service(&self) -> Option<Tor> {
        match &self.server {
            Server::Onion(tor) => Some(tor.clone()),
            Server::Public(_) | Server::Nowhere => None,
        }
    }

    /// This route, if it is open now; else why it is not.
    fn ready(&self) -> Result<Ready, SlotReason> {
        let (host, port, server) = match &self.server {
            Server::Public(public) => (public.host.clone(), public.port, ServerKind::Exit),
            Server::Onion(service) => {
                let host = service.onion_host().ok_or(SlotReason::OnionUnpublished)?;
                let kind = if service.is_single_hop() { ServerKind::SingleOnion } else { ServerKind::Onion };
                (host, ONION_PORT, kind)
            }
            Server::Nowhere => return Err(SlotReason::NoPublicHost),
        };
        let socks = self.tor.socks().ok_or(SlotReason::TorDown)?;
        Ok(Ready { route: self.clone(), socks, host, port, server })
    }
}

impl Experimenter {
    /// The routes that are open now, in an order drawn anew: where tors are compared, none is always first; and
    /// why the others are not, if there are any. If none is open, the reason why.
    pub(super) fn ready_routes(&self) -> Result<(Vec<Ready>, Option<SlotReason>), SlotReason> {
        let mut ready = Vec::new();
        let mut reason = None;
        for route in &self.routes {
            match route.ready() {
                Ok(open) => ready.push(open),
                Err(closed) => {
                    reason.get_or_insert(closed);
                }
            }
        }
        if ready.is_empty() {
            return Err(reason.unwrap_or(SlotReason::TorDown));
        }
        ready.shuffle(&mut rand::rng());
        Ok((ready, reason))
    }
}
