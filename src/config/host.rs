//! What may stand as `public.host` (pure).

use std::net::IpAddr;

use super::quote::quoted;

/// Says what is wrong with a host and what to write; nothing where it is a host name or an IP address.
pub(super) fn fault_of_host(host: &str) -> Option<String> {
    let fault = fault(host)?;
    let bare = bare(host);
    let remedy = if self::fault(bare).is_none() {
        format!("write {} alone", quoted(bare))
    } else if !host.is_ascii() {
        "write its ASCII form, which begins with xn--".to_owned()
    } else {
        r#"write a host name such as "perf.example.org", or an IP address"#.to_owned()
    };
    let port = if fault == PORT { ", and the port as public.port" } else { "" };
    Some(format!("{} {fault}; {remedy}{port}", quoted(host)))
}

const PORT: &str = "contains a port";

fn fault(host: &str) -> Option<&'static str> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.is_unspecified().then_some("is no address that others can reach");
    }
    let last_label = host.rsplit('.').next().unwrap_or("");
    let faults = [
        (host.contains(|c: char| c.is_whitespace() || c.is_control()), "contains spaces or control characters"),
        (host.contains("://"), "contains a scheme"),
        (host.contains(['/', '?', '#']), "contains a path"),
        (host.contains('@'), "contains a user name"),
        (host.contains(['[', ']']), "contains brackets"),
        (host.contains(':'), PORT),
        (!host.is_ascii(), "contains letters outside ASCII"),
        (host.len() > 253, "is longer than 253 bytes"),
        (!host.split('.').all(is_label), "is neither a host name nor an IP address"),
        // A URL whose host ends in a number is an IPv4 address or nothing.
        (last_label.bytes().all(|b| b.is_ascii_digit()), "is neither a host name nor an IP address"),
    ];
    faults.into_iter().find(|(wrong, _)| *wrong).map(|(_, fault)| fault)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What is left of a URL, or of a host and port, when all but the host is taken away.
fn bare(host: &str) -> &str {
    let host = host.trim();
    let host = host.split_once("://").map_or(host, |(_, after)| after);
    let host = host.split(['/', '?', '#']).next().unwrap_or("");
    let host = host.rsplit('@').next().unwrap_or("");
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or(""),
        None => match host.split_once(':') {
            Some((name, port)) if !port.contains(':') => name,
            _ => host,
        },
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_and_addresses_are_fine() {
        for host in
            ["perf.example.org", "localhost", "192.0.2.7", "2001:db8::7", "127.0.0.1", "xn--bcher-kva.example", "4a"]
        {
            assert_eq!(fault_of_host(host), None, "{host}");
        }
    }

    #[test]
    fn all_else_says_what_to_write() {
        let cases = [
            ("https://perf.example.org/", r#"contains a scheme; write "perf.example.org" alone"#),
            ("perf.example.org/x", r#"contains a path; write "perf.example.org" alone"#),
            ("me@perf.example.org", r#"contains a user name; write "perf.example.org" alone"#),
            ("[2001:db8::7]", r#"contains brackets; write "2001:db8::7" alone"#),
            ("perf.example.org:80", r#"contains a port; write "perf.example.org" alone, and the port as public.port"#),
            (" perf.example.org", r#"contains spaces or control characters; write "perf.example.org" alone"#),
            ("example.org.", r#"is neither a host name nor an IP address; write "example.org" alone"#),
            ("bücher.example", r#"contains letters outside ASCII; write its ASCII form, which begins with xn--"#),
            ("0.0.0.0", "is no address that others can reach; "),
            ("256.1.1.1", "is neither a host name nor an IP address; "),
            ("-a.example", "is neither a host name nor an IP address; "),
            ("a..example", "is neither a host name nor an IP address; "),
            ("a_b.example", "is neither a host name nor an IP address; "),
        ];
        for (host, fault) in cases {
            let whole = format!("{} {fault}", quoted(host));
            let generic = r#"write a host name such as "perf.example.org", or an IP address"#;
            let whole = if fault.ends_with("; ") { whole + generic } else { whole };
            assert_eq!(fault_of_host(host), Some(whole));
        }
        assert!(fault_of_host(&format!("{}org", "abcd.".repeat(51))).unwrap().contains("longer than 253 bytes"));
        assert!(fault_of_host(&format!("{}.org", "a".repeat(64))).is_some());
    }

    proptest! {
        #[test]
        fn what_passes_makes_a_url(host in "[a-zA-Z0-9.:/@\\[\\]_ -]{1,20}") {
            if fault_of_host(&host).is_none() {
                let url = if host.contains(':') { format!("http://[{host}]:80/") } else { format!("http://{host}:80/") };
                prop_assert!(reqwest::Url::parse(&url).is_ok(), "{}", url);
            }
        }
    }
}
