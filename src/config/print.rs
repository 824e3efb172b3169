//! The configuration as perfd understood it: as TOML, and as the JSON kept with each measurement (pure).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::units::{format_duration, format_size};
use super::{Config, Experiment};

impl Config {
    /// The whole configuration as TOML, defaults included; [`Config::parse`] makes the same of it.
    ///
    /// What a file can't say is not kept: a path that is not UTF-8, parts of a millisecond.
    pub fn to_toml(&self) -> String {
        self.to_string()
    }

    /// What was in force for a run of `experiment`; equal settings give equal text, keys in alphabetical order.
    ///
    /// `tor` and `public` are null where the configuration has none such. Times are whole milliseconds.
    pub fn in_force(&self, experiment: &Experiment) -> Value {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        // Written in alphabetical order, the text stays the same if serde_json comes to keep the order of insertion.
        json!({
            "experiment": {
                "every_ms": millis(experiment.every),
                "jitter_ms": millis(experiment.jitter),
                "name": experiment.name,
                "offset_ms": millis(experiment.offset),
                "size_bytes": experiment.size,
                "timeout_ms": millis(experiment.timeout),
                "tor": experiment.tors.first(),
            },
            "public": self.public.as_ref().map(|public| json!({ "host": public.host, "port": public.port })),
            "source": self.source,
            "tor": self.tors.iter().find(|tor| experiment.tors.contains(&tor.name)).map(|tor| {
                json!({ "name": tor.name, "socks": tor.socks().map(|socks| socks.to_string()) })
            }),
        })
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

        let file = self.log.file.as_deref().unwrap_or(Path::new(""));
        writeln!(f, "\n[log]\nfile = {}", path(file))?;
        writeln!(f, "format = {}", string(self.log.format.as_str()))?;
        writeln!(f, "level = {}", string(self.log.level.as_str()))?;
        writeln!(f, "keep_days = {}", self.log.keep_days)?;

        for tor in &self.tors {
            writeln!(
                f,
                "\n[[tor]]\nname = {}\nsocks = {}",
                string(&tor.name),
                string(&tor.socks().map(|socks| socks.to_string()).unwrap_or_default())
            )?;
        }
        for experiment in &self.experiments {
            writeln!(
                f,
                "\n[[experiment]]\nname = {}\ntor = {}",
                string(&experiment.name),
                string(experiment.tors.first().map_or("", |tor| tor))
            )?;
            writeln!(f, "size = {}", size(experiment.size))?;
            writeln!(f, "every = {}", duration(experiment.every))?;
            writeln!(f, "offset = {}", duration(experiment.offset))?;
            writeln!(f, "timeout = {}", duration(experiment.timeout))?;
            writeln!(f, "jitter = {}", duration(experiment.jitter))?;
        }
        Ok(())
    }
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
