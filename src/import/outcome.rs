//! How a run ended, as far as its file tells.

use crate::measurement::{Cause, Failure, Kind, Outcome, Phase, Steps};

/// What an outcome is read from.
pub(super) struct Signs<'a> {
    pub(super) error_code: Option<&'a str>,
    pub(super) did_time_out: bool,
    pub(super) kind: Kind,
    pub(super) steps: &'a Steps,
    pub(super) size: u64,
    pub(super) written: u64,
    pub(super) read: u64,
}

/// perfd's own ERRORCODE says it exactly. Of others, DIDTIMEOUT is a timeout; a run with DATACOMPLETE and all of its
/// bytes is complete, as Tor Metrics counts it, whatever else is said of it; and everything else has failed.
pub(super) fn outcome(signs: &Signs<'_>) -> Outcome {
    if let Some(outcome) = signs.error_code.and_then(own_error_code) {
        return outcome;
    }
    if signs.did_time_out {
        return Outcome::Timeout(signs.steps.pending());
    }
    let passed = match signs.kind {
        Kind::Download => signs.read,
        Kind::Upload => signs.written,
    };
    if signs.steps.data_complete.is_some() && passed >= signs.size {
        return Outcome::Complete;
    }
    let detail = match signs.error_code {
        Some(code) => code.to_owned(),
        None if signs.steps.data_complete.is_some() => format!("{passed} of {} bytes passed", signs.size),
        None => "it did not end, and its file does not say why".to_owned(),
    };
    let phase = signs.steps.pending();
    Outcome::Failed(Failure { phase, cause: Cause::Other, socks_code: None, http_status: None, detail })
}

/// `TIMEOUT/RESPONSE`, `CONNECT/REFUSED`, `RESPONSE/SOCKS_REPLY/F2`, `DATARESPONSE/HTTP_STATUS/503`.
fn own_error_code(code: &str) -> Option<Outcome> {
    let mut words = code.split('/');
    let (first, second) = (words.next()?, words.next()?);
    if first == "TIMEOUT" {
        return if words.next().is_none() { phase(second).map(Outcome::Timeout) } else { None };
    }
    let cause = Cause::ALL.into_iter().find(|(_, word)| is_upper(word, second))?.0;
    let detail = code.to_owned();
    let mut failure = Failure { phase: phase(first)?, cause, socks_code: None, http_status: None, detail };
    for word in words {
        // A SOCKS code has two digits, a status three.
        if word.len() == 2 && failure.socks_code.is_none() && failure.http_status.is_none() {
            failure.socks_code = Some(u8::from_str_radix(word, 16).ok()?);
        } else if failure.http_status.is_none() {
            failure.http_status = Some(word.parse().ok()?);
        } else {
            return None;
        }
    }
    Some(Outcome::Failed(failure))
}

/// Whether `text` is the word in upper case.
fn is_upper(word: &str, text: &str) -> bool {
    word.len() == text.len() && word.bytes().zip(text.bytes()).all(|(w, t)| w.to_ascii_uppercase() == t)
}

/// The step of Torperf's name.
fn phase(name: &str) -> Option<Phase> {
    Some(match name {
        "SOCKET" => Phase::Socket,
        "CONNECT" => Phase::Connect,
        "NEGOTIATE" => Phase::Negotiate,
        "REQUEST" => Phase::Request,
        "RESPONSE" => Phase::Response,
        "DATAREQUEST" => Phase::DataRequest,
        "DATARESPONSE" => Phase::DataResponse,
        "DATACOMPLETE" => Phase::DataComplete,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(phase: Phase, cause: Cause, socks_code: Option<u8>, http_status: Option<u16>, detail: &str) -> Outcome {
        Outcome::Failed(Failure { phase, cause, socks_code, http_status, detail: detail.to_owned() })
    }

    #[test]
    fn our_own_codes_are_read_exactly() {
        for (code, socks, status) in [
            ("CONNECT/REFUSED", None, None),
            ("RESPONSE/SOCKS_REPLY/F2", Some(0xf2), None),
            ("DATARESPONSE/HTTP_STATUS/503", None, Some(503)),
            ("DATARESPONSE/HTTP_STATUS/01/503", Some(1), Some(503)),
            ("DATACOMPLETE/OTHER", None, None),
        ] {
            let mut words = code.split('/');
            let phase = phase(words.next().unwrap()).unwrap();
            let cause = Cause::parse(&words.next().unwrap().to_lowercase()).unwrap();
            assert_eq!(own_error_code(code), Some(failed(phase, cause, socks, status, code)), "{code}");
        }
        assert_eq!(own_error_code("TIMEOUT/RESPONSE"), Some(Outcome::Timeout(Phase::Response)));
        for other in [
            "TOR/END/MISC",
            "TGEN/TIMEOUT",
            "TIMEOUT",
            "TIMEOUT/RESPONSE/X",
            "TIMEOUT/TOR",
            "CONNECT/refused",
            "CONNECT/REFUSED/",
            "CONNECT/REFUSED/XX",
            "CONNECT/REFUSED/01/200/1",
            "CONNECT",
            "NONE",
        ] {
            assert_eq!(own_error_code(other), None, "{other}");
        }
    }

    #[test]
    fn what_others_say_is_read_as_tor_metrics_counts_it() {
        let begun = Steps { socket: Some(1), ..Steps::default() };
        let whole = Steps {
            socket: Some(1),
            connect: Some(2),
            negotiate: Some(3),
            request: Some(4),
            response: Some(5),
            data_request: Some(6),
            data_response: Some(7),
            data_complete: Some(8),
            ..Steps::default()
        };
        let tell = |steps, error_code, did_time_out, kind, written, read| {
            outcome(&Signs { error_code, did_time_out, kind, steps, size: 100, written, read })
        };
        use Kind::{Download, Upload};
        assert_eq!(tell(&whole, None, false, Download, 9, 100), Outcome::Complete);
        assert_eq!(tell(&whole, None, false, Upload, 100, 9), Outcome::Complete);
        assert_eq!(tell(&whole, Some("NONE"), false, Download, 9, 120), Outcome::Complete);
        assert_eq!(tell(&begun, None, true, Download, 0, 0), Outcome::Timeout(Phase::Connect));
        assert_eq!(tell(&begun, Some("TOR/TIMEOUT"), true, Download, 0, 0), Outcome::Timeout(Phase::Connect));
        let short = failed(Phase::DataComplete, Cause::Other, None, None, "99 of 100 bytes passed");
        assert_eq!(tell(&whole, None, false, Download, 200, 99), short);
        let said = failed(Phase::Connect, Cause::Other, None, None, "TGEN/AUTH");
        assert_eq!(tell(&begun, Some("TGEN/AUTH"), false, Download, 0, 0), said);
        let silent = "it did not end, and its file does not say why";
        assert_eq!(
            tell(&begun, None, false, Download, 0, 500),
            failed(Phase::Connect, Cause::Other, None, None, silent)
        );
    }
}
