//! What a tor says of its trouble, without what must not be published (pure): the log has it whole, `/tors` and the
//! store don't.

use std::net::{IpAddr, SocketAddr};

/// Parameters of pluggable transports that tell a bridge, or a way to it.
const SECRETS: [&str; 5] = ["cert=", "url=", "front=", "fronts=", "password="];

/// The text without addresses other than this machine's own, fingerprints, and bridges' parameters: tor names the
/// bridge that it can't reach.
pub(super) fn redacted(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        if let Some(secret) = SECRETS.iter().find(|secret| word.starts_with(**secret)) {
            return format!("{secret}(not shown)");
        }
        // What stands around an address, as in `(192.0.2.1:443),` or `"192.0.2.1:443".`; a bracket may be IPv6's own.
        let begin = word.find(|c: char| c.is_ascii_hexdigit() || c == '[' || c == ':').unwrap_or(0);
        let end = word.rfind(|c: char| c.is_ascii_hexdigit() || c == ']' || c == ':').map_or(word.len(), |at| at + 1);
        let Some(core) = word.get(begin..end) else { return word.to_owned() };
        if is_foreign_address(core) || is_foreign_address(core.trim_end_matches(':')) {
            return [word.get(..begin), Some("(address)"), word.get(end..)].into_iter().flatten().collect();
        }
        let is_fingerprint = |part: &&str| part.len() == 40;
        match word.split(|c: char| !c.is_ascii_hexdigit()).find(is_fingerprint) {
            Some(fingerprint) => word.replace(fingerprint, "(fingerprint)"),
            None => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn is_foreign_address(text: &str) -> bool {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = text.parse().map(|address: SocketAddr| address.ip()).or_else(|_| bare.parse::<IpAddr>());
    // tor's versions look like addresses too, of a network where nobody is.
    let is_version = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.octets().first() == Some(&0));
    address.is_ok_and(|address| !address.is_loopback() && !address.is_unspecified() && !is_version(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_tells_where_a_bridge_is() {
        let cases = [
            (
                "unable to connect OR connection (handshaking (proxy)) with 192.0.2.1:443 ID=<none> RSA_ID=2B280B23E1107BB62ABFC40DDCC8824814F80A72 (\"general SOCKS server failure\")",
                "unable to connect OR connection (handshaking (proxy)) with (address) ID=<none> RSA_ID=(fingerprint) (\"general SOCKS server failure\")",
            ),
            (
                "Bridge line 'obfs4 [2001:db8::1]:443 cert=abc+/x iat-mode=0'",
                "Bridge line 'obfs4 (address) cert=(not shown) iat-mode=0'",
            ),
            ("Bridge 2001:db8::1 failed", "Bridge (address) failed"),
            ("we tried (192.0.2.1:443), twice: 192.0.2.1.", "we tried ((address)), twice: (address)."),
            ("no route to 192.0.2.1: gone", "no route to (address) gone"),
            (
                "$2B280B23E1107BB62ABFC40DDCC8824814F80A72~Nick at 127.0.0.1:9001",
                "$(fingerprint)~Nick at 127.0.0.1:9001",
            ),
            ("no progress for 3 s at 14 % (handshake: Handshaking with a relay); it is started again", ""),
            ("pid 12, tor 0.4.9.8, at 00:00 it: ended — “so”", ""),
            ("", ""),
        ];
        for (said, shown) in cases {
            assert_eq!(redacted(said), if shown.is_empty() { said } else { shown });
        }
    }
}
