//! To which server an experiment's runs go, and which tor publishes perfd's onion service (pure).

use std::collections::BTreeSet;

use super::{Config, Experiment, PublicAddress, ServerChoice};

/// Where perfd's own server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerOf<'a> {
    /// At its public address.
    Public(&'a PublicAddress),
    /// As the onion service that the tor of this name publishes.
    Onion(&'a str),
    /// Nowhere: there is no public address, and no tor that could publish a service, or may.
    Nowhere,
}

impl Config {
    /// The server that runs of `experiment` through `tor` go to.
    pub fn server_of<'a>(&'a self, experiment: &'a Experiment, tor: &'a str) -> ServerOf<'a> {
        let publisher = experiment.onion_tor.as_deref().unwrap_or(tor);
        let can_publish = self.tors.iter().any(|tor| tor.name == publisher && tor.has_control());
        match (experiment.server, &self.public) {
            (ServerChoice::Onion, _) => ServerOf::Onion(publisher),
            (ServerChoice::Auto | ServerChoice::Exit, Some(public)) => ServerOf::Public(public),
            (ServerChoice::Auto, None) if can_publish => ServerOf::Onion(publisher),
            (ServerChoice::Auto | ServerChoice::Exit, None) => ServerOf::Nowhere,
        }
    }

    /// What an experiment lacks that can't measure anything as it is, and what to do, in a sentence; `None` if it
    /// can, through one of its tors at least.
    pub fn fault_of_experiment(&self, experiment: &Experiment) -> Option<String> {
        let nowhere = |tor: &String| self.server_of(experiment, tor) == ServerOf::Nowhere;
        experiment.tors.iter().all(nowhere).then(|| Self::fault_of_nowhere(experiment))
    }

    /// The same for those of its tors through which there is no server to reach.
    pub fn fault_of_nowhere(experiment: &Experiment) -> String {
        let onion = match experiment.server {
            ServerChoice::Exit => "server = \"auto\" or \"onion\" in the experiment",
            ServerChoice::Auto | ServerChoice::Onion => "control in the section [[tor]], for an onion service",
        };
        format!("no public host is configured; set host in the section [public], or {onion}")
    }

    /// The names of all tors that are to publish perfd's onion service.
    pub fn onion_publishers(&self) -> BTreeSet<&str> {
        let of = |experiment: &'_ Experiment| -> Vec<String> {
            let servers = experiment.tors.iter().map(|tor| self.server_of(experiment, tor));
            let names = servers.filter_map(|server| match server {
                ServerOf::Onion(name) => Some(name.to_owned()),
                ServerOf::Public(_) | ServerOf::Nowhere => None,
            });
            names.collect()
        };
        let named: BTreeSet<String> = self.experiments.iter().flat_map(of).collect();
        self.tors.iter().map(|tor| tor.name.as_str()).filter(|name| named.contains(*name)).collect()
    }
}
