//! How OnionPerf's `visualize` names what went wrong. Its other figures are quantities, percentiles and distributions as
//! everybody's; docs/statistics.md says which.

use super::End;
use crate::measurement::Phase;

/// The error code of an end, as key=value has it but for the numbers of the SOCKS reply or HTTP status:
/// `TIMEOUT/RESPONSE`, `CONNECT/REFUSED`. `None` of a complete run.
pub fn error_code(end: End) -> Option<String> {
    // Torperf's step names are ours in capitals without the underscore.
    let step = |phase: Phase| phase.as_str().replace('_', "").to_ascii_uppercase();
    match end {
        End::Complete => None,
        End::Timeout(phase) => Some(format!("TIMEOUT/{}", step(phase))),
        End::Failed(phase, cause) => Some(format!("{}/{}", step(phase), cause.as_str().to_ascii_uppercase())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::Cause;

    #[test]
    fn error_codes_are_those_of_key_value() {
        for (end, code) in [
            (End::Complete, None),
            (End::Timeout(Phase::DataResponse), Some("TIMEOUT/DATARESPONSE")),
            (End::Failed(Phase::Connect, Cause::Refused), Some("CONNECT/REFUSED")),
            (End::Failed(Phase::Response, Cause::SocksReply), Some("RESPONSE/SOCKS_REPLY")),
        ] {
            assert_eq!(error_code(end).as_deref(), code);
        }
    }
}
