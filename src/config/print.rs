//! The configuration as perfd understood it, as TOML (pure).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::units::{format_duration, format_size};
use super::{Config, Control, ControlAddress, Experiment, StartedTor, Tor, TorRun};

impl Config {
    /// The whole configuration as TOML, defaults included; [`Config::parse`] makes the same of it.
    ///
    /// What a file can't say is not kept: a path that is not UTF-8, parts of a millisecond.
    pub fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source = {}", string(&self.source))?;
        writeln!(f, "contact = {}", string(&self.contact))?;

        let listen: Vec<_> = self.server.listen.iter().map(|address| string(&address.to_string())).collect();
        writeln!(f, "\n[server]\nlisten = [{}]", listen.join(", "))?;
        writeln!(f, "max_payload = {}", size(self.server.max_payload))?;
        writeln!(f, "max_connections = {}", self.server.max_connections)?;
        writeln!(f, "max_payloads = {}", self.server.max_payloads)?;
        writeln!(f, "stall_timeout = {}", duration(self.server.stall_timeout))?;

        let (host, port) = self.public.as_ref().map_or(("", 80), |public| (public.host.as_str(), public.port));
        writeln!(f, "\n[public]\nhost = {}\nport = {port}", string(host))?;

        let user = self.run_as.as_ref().map_or("", |run_as| run_as.user.as_str());
        let group = self.run_as.as_ref().and_then(|run_as| run_as.group.as_deref()).unwrap_or("");
        writeln!(f, "\n[privileges]\nuser = {}\ngroup = {}", string(user), string(group))?;

        writeln!(f, "\n[store]\npath = {}", path(&self.store))?;

        writeln!(f, "\n[collector]\npath = {}", string(self.collector.path.as_deref().unwrap_or("")))?;

        let file = self.log.file.as_deref().unwrap_or(Path::new(""));
        writeln!(f, "\n[log]\nfile = {}", path(file))?;
        writeln!(f, "format = {}", string(self.log.format.as_str()))?;
        writeln!(f, "level = {}", string(self.log.level.as_str()))?;
        writeln!(f, "keep_days = {}", self.log.keep_days)?;

        self.tors.iter().try_for_each(|t| tor(f, t))?;
        self.experiments.iter().try_for_each(|e| experiment(f, e))
    }
}

fn tor(f: &mut fmt::Formatter<'_>, tor: &Tor) -> fmt::Result {
    writeln!(f, "\n[[tor]]\nname = {}", string(&tor.name))?;
    match &tor.run {
        TorRun::Address { socks, control } => {
            writeln!(f, "socks = {}", string(&socks.to_string()))?;
            if let Some(Control { address, password_file }) = control {
                match address {
                    ControlAddress::Tcp(address) => writeln!(f, "control = {}", string(&address.to_string()))?,
                    ControlAddress::Unix(socket) => {
                        writeln!(f, "control = {}", string(&format!("unix:{}", socket.to_string_lossy())))?;
                    }
                }
                if let Some(file) = password_file {
                    writeln!(f, "control_password_file = {}", path(file))?;
                }
            }
        }
        TorRun::Started(started) => self::started(f, started)?,
    }
    for (key, every) in [("drop_guards_every", tor.drop_guards_every), ("drop_timeouts_every", tor.drop_timeouts_every)]
    {
        if let Some(every) = every {
            writeln!(f, "{key} = {}", duration(every))?;
        }
    }
    Ok(())
}

fn started(f: &mut fmt::Formatter<'_>, tor: &StartedTor) -> fmt::Result {
    writeln!(f, "binary = {}\ndata = {}", path(&tor.binary), path(&tor.data))?;
    if !tor.torrc.is_empty() {
        writeln!(f, "torrc = {}", list(&tor.torrc))?;
    }
    if let Some(file) = &tor.torrc_file {
        writeln!(f, "torrc_file = {}", path(file))?;
    }
    if !tor.authorities.is_empty() {
        writeln!(f, "authorities = {}", list(&tor.authorities))?;
    }
    writeln!(f, "single_hop = {}\nbootstrap_timeout = {}", tor.single_hop, duration(tor.bootstrap_timeout))?;
    if let Some(guards) = &tor.guards {
        writeln!(f, "guards = {}\nguard_count = {}", string(guards.choice.as_str()), guards.count)?;
    }
    Ok(())
}

fn experiment(f: &mut fmt::Formatter<'_>, experiment: &Experiment) -> fmt::Result {
    writeln!(f, "\n[[experiment]]\nname = {}", string(&experiment.name))?;
    match experiment.tors.as_slice() {
        [tor] => writeln!(f, "tor = {}", string(tor))?,
        tors => writeln!(f, "tor = {}", list(tors))?,
    }
    writeln!(f, "kind = {}", string(experiment.kind.as_str()))?;
    writeln!(f, "server = {}", string(experiment.server.as_str()))?;
    if let Some(tor) = &experiment.onion_tor {
        writeln!(f, "onion_tor = {}", string(tor))?;
    }
    writeln!(f, "optimistic = {}\npublish = {}", experiment.optimistic, experiment.publish)?;
    writeln!(f, "requests = {}", experiment.requests)?;
    writeln!(f, "isolation = {}", string(experiment.isolation.as_str()))?;
    writeln!(f, "size = {}", size(experiment.size))?;
    writeln!(f, "every = {}", duration(experiment.every))?;
    writeln!(f, "offset = {}", duration(experiment.offset))?;
    writeln!(f, "timeout = {}", duration(experiment.timeout))?;
    writeln!(f, "jitter = {}", duration(experiment.jitter))
}

fn list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| string(item)).collect();
    format!("[{}]", items.join(", "))
}

fn string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn size(bytes: u64) -> String {
    string(&format_size(bytes))
}

fn duration(duration: Duration) -> String {
    string(&format_duration(duration))
}

fn path(path: &Path) -> String {
    string(&path.to_string_lossy())
}
