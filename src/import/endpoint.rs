//! Torperf's `host:ip:port`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::text::name;

/// One end of a connection, as ENDPOINTLOCAL, ENDPOINTPROXY and ENDPOINTREMOTE name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name, or its address again; escapes that perfd writes are undone.
    pub host: String,
    /// Its address; 0.0.0.0 where the name was resolved elsewhere, as a server's is beyond Tor.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    /// Reads `host:ip:port`; an IPv6 host and address have colons of their own.
    pub fn parse(text: &str) -> Option<Self> {
        let (host_and_ip, port) = text.rsplit_once(':')?;
        let (host, ip) = named(host_and_ip).or_else(|| twice(host_and_ip))?;
        // A colon within the name is escaped here alone.
        Some(Endpoint { host: name(&host.replace("%3A", ":")), ip, port: port.parse().ok()? })
    }

    /// Address and port, where the address is known.
    pub fn address(&self) -> Option<SocketAddr> {
        (self.ip != IpAddr::V4(Ipv4Addr::UNSPECIFIED)).then(|| SocketAddr::new(self.ip, self.port))
    }
}

fn named(text: &str) -> Option<(&str, IpAddr)> {
    let (host, ip) = text.split_once(':').filter(|(host, _)| !host.is_empty())?;
    Some((host, ip.parse().ok()?))
}

/// An address without a name stands twice.
fn twice(text: &str) -> Option<(&str, IpAddr)> {
    let (host, ip) = text.split_at_checked(text.len() / 2)?;
    (ip.strip_prefix(':') == Some(host)).then(|| Some((host, host.parse().ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_apart() {
        for (text, expected) in [
            ("localhost:127.0.0.1:9050", Some(("localhost", "127.0.0.1:9050"))),
            ("localhost:::1:9050", Some(("localhost", "[::1]:9050"))),
            ("192.0.2.1:192.0.2.1:80", Some(("192.0.2.1", "192.0.2.1:80"))),
            ("2001:db8::1:2001:db8::1:9050", Some(("2001:db8::1", "[2001:db8::1]:9050"))),
            ("a%3Ab:192.0.2.1:80", Some(("a:b", "192.0.2.1:80"))),
            ("localhost:9050", None),
            (":127.0.0.1:9050", None),
            ("a:127.0.0.1:99999", None),
            ("", None),
        ] {
            let endpoint = Endpoint::parse(text);
            let found = endpoint.as_ref().and_then(|end| Some((end.host.as_str(), end.address()?.to_string())));
            assert_eq!(found, expected.map(|(host, address)| (host, address.to_owned())), "{text}");
        }
        assert_eq!(Endpoint::parse("example.org:0.0.0.0:80").unwrap().address(), None);
    }
}
