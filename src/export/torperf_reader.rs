//! A strict reader of Torperf's format for tests, written from the format's description alone: it
//! shares nothing with the writer.

use std::collections::HashMap;
use std::net::IpAddr;

/// One line, its values by key.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Times in milliseconds, cut; 0 where a step was not reached.
    pub millis: HashMap<String, i128>,
    /// Numbers that fit an int32.
    pub numbers: HashMap<String, u64>,
    /// Decimal fractions.
    pub doubles: HashMap<String, f64>,
    /// BUILDTIMES in seconds.
    pub build_times: Vec<f64>,
    /// Everything else, the reader's unknown keys included.
    pub texts: HashMap<String, String>,
}

/// Reads a whole file, or says what is wrong with it.
pub fn read(file: &str) -> Result<Vec<Parsed>, String> {
    let body = file.strip_suffix('\n').ok_or("no line end at the end")?;
    let mut lines = body.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let annotation = lines.next().unwrap_or_default();
    check_annotation(annotation)?;
    let mut parsed = Vec::new();
    for line in lines {
        if line.starts_with('@') {
            check_annotation(line)?;
        } else {
            parsed.push(read_line(line).map_err(|why| format!("{why}: {line}"))?);
        }
    }
    Ok(parsed)
}

fn check_annotation(line: &str) -> Result<(), String> {
    let minor = line.strip_prefix("@type torperf 1.").ok_or("wrong annotation")?;
    let number = !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit());
    if number { Ok(()) } else { Err("wrong annotation".to_owned()) }
}

fn read_line(line: &str) -> Result<Parsed, String> {
    const TIMES: [&str; 9] = [
        "START",
        "SOCKET",
        "CONNECT",
        "NEGOTIATE",
        "REQUEST",
        "RESPONSE",
        "DATAREQUEST",
        "DATARESPONSE",
        "DATACOMPLETE",
    ];
    let mut parsed = Parsed::default();
    let mut seen = Vec::new();
    for pair in line.split(' ') {
        let (key, value) = pair.split_once('=').ok_or("a word without =")?;
        if key.is_empty() || value.is_empty() || value.contains('=') || pair.chars().any(char::is_control) {
            return Err(format!("bad pair {pair:?}"));
        }
        if seen.contains(&key) {
            return Err(format!("{key} twice"));
        }
        seen.push(key);
        let percent = key.strip_prefix("DATAPERC").map(|n| n.parse::<u8>().is_ok_and(|n| n <= 100));
        let partial = key.strip_prefix("PARTIAL").map(|n| n.parse::<i32>().is_ok_and(|n| n >= 0));
        if percent == Some(false) || partial == Some(false) {
            return Err(format!("bad key {key}"));
        }
        let of_circuit = matches!(key, "LAUNCH" | "USED_AT");
        if TIMES.contains(&key) || of_circuit || percent.is_some() || partial.is_some() {
            parsed.millis.insert(key.to_owned(), timestamp(value)?);
        } else if matches!(key, "FILESIZE" | "WRITEBYTES" | "READBYTES" | "TIMEOUT" | "CIRC_ID" | "USED_BY") {
            parsed.numbers.insert(key.to_owned(), int32(value)?);
        } else if key == "DIDTIMEOUT" {
            let flag = matches!(value, "0" | "1");
            parsed.numbers.insert(key.to_owned(), int32(value).ok().filter(|_| flag).ok_or("bad DIDTIMEOUT")?);
        } else if key == "QUANTILE" {
            parsed.doubles.insert(key.to_owned(), fraction(value)?);
        } else if key == "BUILDTIMES" {
            parsed.build_times = value.split(',').map(fraction).collect::<Result<_, _>>()?;
        } else {
            if key == "PATH" && !value.split(',').all(is_fingerprint) {
                return Err(format!("bad path {value:?}"));
            }
            if key.starts_with("ENDPOINT") {
                check_endpoint(value)?;
            }
            parsed.texts.insert(key.to_owned(), value.to_owned());
        }
    }
    for key in TIMES.iter().chain(&["SOURCE", "FILESIZE", "WRITEBYTES", "READBYTES"]) {
        if !seen.contains(key) {
            return Err(format!("{key} is missing"));
        }
    }
    Ok(parsed)
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn timestamp(text: &str) -> Result<i128, String> {
    let bad = || format!("bad time {text:?}");
    let (whole, decimals) = text.split_once('.').ok_or_else(bad)?;
    if !digits(whole) || !digits(decimals) {
        return Err(bad());
    }
    let millis = format!("{decimals:0<3}")[..3].parse::<i128>().map_err(|_| bad())?;
    Ok(whole.parse::<i64>().map_err(|_| bad())? as i128 * 1_000 + millis)
}

fn fraction(text: &str) -> Result<f64, String> {
    let decimal = text.split_once('.').is_some_and(|(whole, decimals)| digits(whole) && digits(decimals));
    decimal.then(|| text.parse().ok()).flatten().ok_or_else(|| format!("bad fraction {text:?}"))
}

fn is_fingerprint(text: &str) -> bool {
    let hex = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    text.strip_prefix('$').is_some_and(hex)
}

fn int32(text: &str) -> Result<u64, String> {
    let number = digits(text).then(|| text.parse::<i32>().ok()).flatten();
    number.map(|number| number as u64).ok_or_else(|| format!("bad number {text:?}"))
}

/// `host:ip:port`; an IPv6 host and address have colons of their own.
fn check_endpoint(text: &str) -> Result<(), String> {
    let bad = || format!("bad endpoint {text:?}");
    let (host_and_ip, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let middle = host_and_ip.len() / 2;
    let twice = host_and_ip.is_char_boundary(middle)
        && host_and_ip[middle..].strip_prefix(':') == Some(&host_and_ip[..middle])
        && host_and_ip[..middle].parse::<IpAddr>().is_ok();
    let named = host_and_ip.split_once(':').is_some_and(|(host, ip)| !host.is_empty() && ip.parse::<IpAddr>().is_ok());
    if port.parse::<u16>().is_ok() && (twice || named) { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "SOURCE=s FILESIZE=1 START=1.5 SOCKET=1.5 CONNECT=0.0 NEGOTIATE=0.0 REQUEST=0.0 RESPONSE=0.0 \
        DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0 DIDTIMEOUT=1";

    #[test]
    fn good_files_are_read() {
        for file in [
            "@type torperf 1.1\n".to_owned(),
            format!("@type torperf 1.1\n{GOOD}\n{GOOD}\n"),
            format!("@type torperf 1.0\r\n{GOOD}\r\n@type torperf 1.1\r\n{GOOD}\r\n"),
            format!("@type torperf 1.1\n{GOOD} UNKNOWN=x ENDPOINTLOCAL=h:127.0.0.1:1 DATAPERC100=2.25\n"),
            format!("@type torperf 1.1\n{GOOD} LAUNCH=1.5 BUILDTIMES=0.5,1.25 QUANTILE=0.8 TIMEOUT=1 CIRC_ID=0\n"),
            format!("@type torperf 1.1\n{GOOD} PATH=${0},${0}\n", "0123456789abcdefABCD".repeat(2)),
        ] {
            read(&file).unwrap();
        }
    }

    #[test]
    fn malformed_lines_are_rejected() {
        for (from, to) in [
            ("FILESIZE=1", "FILESIZE="),
            ("FILESIZE=1", "FILESIZE=1=2"),
            ("FILESIZE=1", "FILESIZE=1 FILESIZE=1"),
            ("FILESIZE=1", " FILESIZE=1"),
            ("FILESIZE=1", "FILESIZE=2147483648"),
            ("FILESIZE=1", "FILESIZE=-1"),
            ("FILESIZE=1", "FILESIZE=1 \tX=1"),
            ("FILESIZE=1 ", ""),
            ("FILESIZE=1", "FILESIZE"),
            ("SOURCE=s", " SOURCE=s"),
            ("SOURCE=s", "SOURCE=\u{7f}"),
            ("START=1.5", "START=0"),
            ("START=1.5", "START=1493397365"),
            ("START=1.5", "START=1.4e9"),
            ("START=1.5", "START=-1.5"),
            ("START=1.5", "START=1.5.0"),
            ("START=1.5", "START=1."),
            ("START=1.5", "START=.5"),
            ("SOCKET=1.5 ", ""),
            ("DIDTIMEOUT=1", "DIDTIMEOUT=2"),
            ("DIDTIMEOUT=1", "DIDTIMEOUT=1 "),
            ("DIDTIMEOUT=1", "DATAPERC101=1.0"),
            ("DIDTIMEOUT=1", "PARTIALx=1.0"),
            ("DIDTIMEOUT=1", "PARTIAL10240=1"),
            ("DIDTIMEOUT=1", "ENDPOINTLOCAL=localhost:9050"),
            ("DIDTIMEOUT=1", "ENDPOINTLOCAL=:127.0.0.1:9050"),
            ("DIDTIMEOUT=1", "LAUNCH=1"),
            ("DIDTIMEOUT=1", "USED_AT=-1.5"),
            ("DIDTIMEOUT=1", "BUILDTIMES=1"),
            ("DIDTIMEOUT=1", "BUILDTIMES=1.0,"),
            ("DIDTIMEOUT=1", "QUANTILE=1e-7"),
            ("DIDTIMEOUT=1", "CIRC_ID=2147483648"),
            ("DIDTIMEOUT=1", "PATH=$ABCD"),
            ("DIDTIMEOUT=1", "PATH=$0123456789abcdefABCD0123456789abcdefABCD~nickname"),
            ("DIDTIMEOUT=1", "DIDTIMEOUT=1\n"),
            ("DIDTIMEOUT=1", "DIDTIMEOUT=1\n@x"),
        ] {
            let line = GOOD.replacen(from, to, 1);
            assert_ne!(line, GOOD);
            assert!(read(&format!("@type torperf 1.1\n{line}\n")).is_err(), "{line}");
        }
        for annotation in
            ["", "@type torperf 2.0\n", "@type torperf 1.1 x\n", " @type torperf 1.1\n", "@type torperf 1.1"]
        {
            assert!(read(annotation).is_err(), "{annotation:?}");
        }
    }
}
