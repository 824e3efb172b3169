//! Which tor publishes perfd's onion service for which runs (pure).

use std::collections::BTreeSet;

use super::{Config, Experiment, ServerChoice};

impl Config {
    /// The tor that publishes the onion service which runs of `experiment` through `tor` go to; `None` where
    /// they go to the public address, or nowhere, as there is none.
    pub fn publisher<'a>(&'a self, experiment: &'a Experiment, tor: &'a str) -> Option<&'a str> {
        let publisher = experiment.onion_tor.as_deref().unwrap_or(tor);
        let can_publish = self.tors.iter().any(|tor| tor.name == publisher && tor.has_control());
        match experiment.server {
            ServerChoice::Exit => None,
            ServerChoice::Onion => Some(publisher),
            ServerChoice::Auto => Some(publisher).filter(|_| self.public.is_none() && can_publish),
        }
    }

    /// The names of all tors that are to publish perfd's onion service.
    pub fn onion_publishers(&self) -> BTreeSet<&str> {
        let of = |experiment: &'_ Experiment| -> Vec<String> {
            let names = experiment.tors.iter().filter_map(|tor| self.publisher(experiment, tor));
            names.map(str::to_owned).collect()
        };
        let named: BTreeSet<String> = self.experiments.iter().flat_map(of).collect();
        self.tors.iter().map(|tor| tor.name.as_str()).filter(|name| named.contains(*name)).collect()
    }
}
