//! What was in force for a run, as the JSON that is kept with it and shown to everybody (pure).

use std::time::Duration;

use serde_json::{Value, json};

use super::{Config, ControlAddress, Experiment, StartedTor, Tor, TorRun};

impl Config {
    /// What was in force for a run of `experiment`; equal settings give equal text, keys in alphabetical order.
    ///
    /// `tor` is the tor measured through, or a list where there are several; it, `onion_tor` and `public` are null
    /// where the configuration has none such. Times are whole milliseconds. Passwords and the addresses of bridges
    /// are left out.
    pub fn in_force(&self, experiment: &Experiment) -> Value {
        let known = |name: &String| self.tors.iter().find(|tor| tor.name == *name).map(of_tor);
        let tors: Vec<Value> = experiment.tors.iter().filter_map(known).collect();
        // Written in alphabetical order, the text stays the same if serde_json comes to keep the order of insertion.
        json!({
            "experiment": {
                "every_ms": millis(experiment.every),
                "isolation": experiment.isolation.as_str(),
                "jitter_ms": millis(experiment.jitter),
                "kind": experiment.kind.as_str(),
                "name": experiment.name,
                "offset_ms": millis(experiment.offset),
                "onion_tor": experiment.onion_tor,
                "optimistic": experiment.optimistic,
                "publish": experiment.publish,
                "requests": experiment.requests,
                "server": experiment.server.as_str(),
                "size_bytes": experiment.size,
                "timeout_ms": millis(experiment.timeout),
                "tor": one_or_list(&experiment.tors),
            },
            "onion_tor": experiment.onion_tor.as_ref().and_then(known),
            "public": self.public.as_ref().map(|public| json!({ "host": public.host, "port": public.port })),
            "source": self.source,
            "tor": one_or_list(&tors),
        })
    }
}

fn of_tor(tor: &Tor) -> Value {
    let drop_guards_every = tor.drop_guards_every.map(millis);
    let drop_timeouts_every = tor.drop_timeouts_every.map(millis);
    match &tor.run {
        TorRun::Address { socks, control } => json!({
            "control": control.as_ref().map(|control| match &control.address {
                ControlAddress::Tcp(address) => address.to_string(),
                ControlAddress::Unix(path) => format!("unix:{}", path.to_string_lossy()),
            }),
            "drop_guards_every_ms": drop_guards_every,
            "drop_timeouts_every_ms": drop_timeouts_every,
            "name": tor.name,
            "run": "address",
            "socks": socks.to_string(),
        }),
        TorRun::Started(started) => {
            let StartedTor { binary, data, torrc, torrc_file, authorities, single_hop, .. } = started;
            json!({
                "authorities": authorities,
                "binary": binary.to_string_lossy(),
                "bootstrap_timeout_ms": millis(started.bootstrap_timeout),
                "data": data.to_string_lossy(),
                "drop_guards_every_ms": drop_guards_every,
                "drop_timeouts_every_ms": drop_timeouts_every,
                "guards": started.guards.as_ref()
                    .map(|guards| json!({ "choice": guards.choice.as_str(), "count": guards.count })),
                "name": tor.name,
                "run": "started",
                "single_hop": single_hop,
                "torrc": torrc.iter().filter_map(|line| without_secrets(line)).collect::<Vec<_>>(),
                "torrc_file": torrc_file.as_ref().map(|file| file.to_string_lossy()),
            })
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn one_or_list<T: serde::Serialize>(items: &[T]) -> Value {
    match items {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    }
}

/// A line of a torrc without what must not be published: of a bridge the transport is left, and of a comment, which
/// may be a bridge that was taken out, nothing.
fn without_secrets(line: &str) -> Option<String> {
    const SECRETS: [&str; 5] =
        ["bridge", "httpproxyauthenticator", "httpsproxyauthenticator", "socks5proxypassword", "socks5proxyusername"];
    let line = line.split('#').next().unwrap_or_default().trim_end();
    if line.is_empty() {
        return None;
    }
    let (keyword, value) = line.trim().split_once([' ', '\t']).unwrap_or((line, ""));
    // tor completes what is cut short.
    let written = keyword.to_ascii_lowercase();
    let whole = matches!(written.as_str(), "httpproxy" | "httpsproxy");
    if whole || !SECRETS.iter().any(|secret| secret.starts_with(&written)) {
        return Some(line.to_owned());
    }
    let is_name = |word: &&str| word.starts_with(|c: char| c.is_ascii_alphabetic()) && !word.contains([':', '.']);
    Some(match value.split_whitespace().next().filter(|word| written == "bridge" && is_name(word)) {
        Some(transport) => format!("{keyword} {transport} (not shown)"),
        None => format!("{keyword} (not shown)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_gives_a_secret_away() {
        let cases = [
            ("UseBridges 1", "UseBridges 1"),
            ("UseEntryGuards 0", "UseEntryGuards 0"),
            ("Bridge 192.0.2.1:443 AAAA", "Bridge (not shown)"),
            ("Bridge [2001:db8::1]:443", "Bridge (not shown)"),
            ("bridge\tobfs4 192.0.2.1:443 AAAA cert=x", "bridge obfs4 (not shown)"),
            ("Bridg obfs4 192.0.2.1:443", "Bridg (not shown)"),
            ("Bridge", "Bridge (not shown)"),
            ("Socks5ProxyPassword geheim", "Socks5ProxyPassword (not shown)"),
            (" Socks5ProxyP geheim", "Socks5ProxyP (not shown)"),
            ("HTTPSProxyAuthenticator a:b", "HTTPSProxyAuthenticator (not shown)"),
            ("HTTPSProxy 192.0.2.1:80", "HTTPSProxy 192.0.2.1:80"),
            ("UseBridges 1 # Bridge 192.0.2.1:443", "UseBridges 1"),
        ];
        for (line, shown) in cases {
            assert_eq!(without_secrets(line).as_deref(), Some(shown));
        }
        for comment in ["", "# Bridge 192.0.2.1:443 AAAA", "  #Bridge 192.0.2.1:443"] {
            assert_eq!(without_secrets(comment), None);
        }
    }
}
