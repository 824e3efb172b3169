//! The parts of a value: numbers, times, lists, endpoints, escaped names.

use std::net::IpAddr;

/// Digits alone that fit an int32.
pub(super) fn int32(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse::<i32>().ok()).flatten();
    number.and_then(|number| u64::try_from(number).ok())
}

/// Decimal seconds with exactly one `.` and digits on both sides, as microseconds; what is finer is cut.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    let (seconds, whole) = leading_digits(text.as_bytes());
    let decimals = text.as_bytes().get(whole..)?.strip_prefix(b".")?;
    let (first_six, finer) = decimals.split_at(decimals.len().min(6));
    let (micros, length) = leading_digits(first_six);
    let scale = [0, 100_000, 10_000, 1_000, 100, 10, 1].get(length)?;
    let well_formed = (1..=18).contains(&whole) && *scale > 0 && length == first_six.len();
    if !well_formed || !finer.iter().all(u8::is_ascii_digit) {
        return None;
    }
    seconds.checked_mul(1_000_000)?.checked_add(micros * scale)
}

/// The number that a text begins with, and how many digits that are; of more than 18 the number is wrong.
fn leading_digits(text: &[u8]) -> (i64, usize) {
    let (mut number, mut length) = (0i64, 0);
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        number = number.wrapping_mul(10).wrapping_add(i64::from(digit));
        length += 1;
    }
    (number, length)
}

/// A comma list of `$` and 40 hexadecimal digits.
pub(super) fn is_path(text: &str) -> bool {
    let fingerprint = |hop: &str| {
        let digits = hop.strip_prefix('$').unwrap_or_default();
        digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    text.split(',').all(fingerprint)
}

/// The port of `host:ip:port`; an IPv6 host and address have colons of their own.
pub(super) fn endpoint_port(text: &str) -> Option<u16> {
    let (host_and_ip, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
    let (host, ip) = host_and_ip.split_once(':')?;
    let named = || !host.is_empty() && ip.parse::<IpAddr>().is_ok();
    let twice = || {
        let (host, ip) = host_and_ip.split_at_checked(host_and_ip.len() / 2)?;
        (ip.strip_prefix(':') == Some(host) && host.parse::<IpAddr>().is_ok()).then_some(())
    };
    (named() || twice().is_some()).then_some(port)
}

/// Whether the host of `host:ip:port` is an onion service.
pub(super) fn is_onion(endpoint: &str) -> bool {
    endpoint.split_once(':').is_some_and(|(host, _)| host.ends_with(".onion"))
}

/// The name that perfd escaped so, or the text itself where perfd would not have written it.
pub(super) fn name(value: &str) -> String {
    unescaped(value).unwrap_or_else(|| value.to_owned())
}

/// Undoes percent escapes of exactly those bytes that perfd escapes.
fn unescaped(value: &str) -> Option<String> {
    if !value.contains('%') {
        return None;
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let upper_hex = |b: &u8| b.is_ascii_digit() || (b'A'..=b'F').contains(b);
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| upper_hex(&b)))?;
        let escaped = u8::from_str_radix(digits, 16).ok()?;
        if (b'!'..=b'~').contains(&escaped) && !b"=%".contains(&escaped) {
            return None;
        }
        bytes.push(escaped);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_decimal_seconds_cut_to_the_microsecond() {
        for (text, micros) in [
            ("0.0", 0),
            ("1.5", 1_500_000),
            ("1493397365.93", 1_493_397_365_930_000),
            ("1.1234569", 1_123_456),
            ("0.000001", 1),
            ("9223372036854.775807", i64::MAX),
        ] {
            assert_eq!(timestamp(text), Some(micros), "{text}");
        }
        for bad in
            ["", ".", "0", "1.", ".5", "1.4e9", "-1.5", "+1.5", "1.5.0", "1,5", "9223372036854.775808", "1.1234567x"]
        {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
        assert_eq!(timestamp(&format!("{}.0", "9".repeat(30))), None);
    }

    #[test]
    fn endpoints_have_a_host_an_address_and_a_port() {
        for (text, port) in [
            ("localhost:127.0.0.1:9050", Some(9050)),
            ("NULL:0.0.0.0:0", Some(0)),
            ("2001:db8::1:2001:db8::1:9050", Some(9050)),
            ("::1:::1:1", Some(1)),
            ("a.onion:0.0.0.0:80", Some(80)),
            ("localhost:9050", None),
            (":127.0.0.1:9050", None),
            ("h:127.0.0.1:65536", None),
            ("h:127.0.0.1:+1", None),
            ("h:127.0.0.1:", None),
            ("h:127.0.0:1", None),
        ] {
            assert_eq!(endpoint_port(text), port, "{text}");
        }
    }

    #[test]
    fn only_what_perfd_escapes_is_undone() {
        for (value, meant) in [
            ("a%20b", "a b"),
            ("%C3%A9", "é"),
            ("%25", "%"),
            ("a%2fb", "a%2fb"),
            ("%41", "%41"),
            ("%FF", "%FF"),
            ("%2", "%2"),
        ] {
            assert_eq!(name(value), meant, "{value}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_taken_without_a_panic(text in any::<String>()) {
            let _ = (int32(&text), timestamp(&text), is_path(&text), endpoint_port(&text), name(&text));
        }
    }
}
