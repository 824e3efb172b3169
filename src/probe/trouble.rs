//! What went wrong in a run: the many errors of the system, of SOCKS and of HTTP, made into our few causes.

use std::error::Error as _;
use std::io;

use super::socks::Handshake;
use crate::measurement::{Cause, Failure, Phase, socks_reply_meaning};

/// What went wrong, before the phase is known: that is the first step which the run has not reached.
pub struct Trouble {
    pub cause: Cause,
    pub socks_code: Option<u8>,
    pub http_status: Option<u16>,
    pub detail: String,
}

impl Trouble {
    /// Trouble of this cause.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Trouble { cause, socks_code: None, http_status: None, detail: detail.into() }
    }

    /// The server answered with another status than 200.
    pub fn http_status(status: u16) -> Self {
        let http_status = Some(status);
        Trouble { http_status, ..Trouble::new(Cause::HttpStatus, format!("the server answered {status}")) }
    }

    /// What tokio-socks made of a handshake, with what the proxy said in it.
    pub fn socks(error: tokio_socks::Error, said: &Handshake) -> Self {
        use tokio_socks::Error as E;
        match (error, said.reply_code) {
            // Even where the reply was cut short after it, the code says why.
            (_, Some(code)) if code != 0 => Trouble {
                socks_code: Some(code),
                ..Trouble::new(
                    Cause::SocksReply,
                    format!("the proxy answered {code:#04x}: {}", socks_reply_meaning(code)),
                )
            },
            (E::Io(error), _) => error.into(),
            (E::NoAcceptableAuthMethods | E::UnknownAuthMethod, None) => {
                Trouble::new(Cause::SocksMethod, "the proxy takes neither no authentication nor a user name")
            }
            (E::PasswordAuthFailure(code), None) => {
                Trouble::new(Cause::SocksAuth, format!("the proxy refused the user name (status {code})"))
            }
            (error, _) => Trouble::new(Cause::SocksMalformed, format!("the proxy does not speak SOCKS 5: {error}")),
        }
    }

    /// The failure of a run that was waiting for this step.
    pub fn at(self, phase: Phase) -> Failure {
        let Trouble { cause, socks_code, http_status, detail } = self;
        Failure { phase, cause, socks_code, http_status, detail }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as K;
        let cause = match error.kind() {
            K::ConnectionRefused => Cause::Refused,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => Cause::Unreachable,
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => Cause::Reset,
            K::UnexpectedEof => Cause::Closed,
            _ => Cause::Io,
        };
        Trouble::new(cause, error.to_string())
    }
}

impl From<hyper::Error> for Trouble {
    fn from(error: hyper::Error) -> Self {
        if let Some(io) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            // What is no system's error is hyper's own verdict on chunks or trailers.
            return match (io.raw_os_error(), io.kind()) {
                (Some(code), _) => io::Error::from_raw_os_error(code).into(),
                (None, io::ErrorKind::UnexpectedEof) => Trouble::new(Cause::Closed, "the connection was closed"),
                (None, _) => malformed(&error),
            };
        }
        if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            return Trouble::new(Cause::Closed, "the connection was closed");
        }
        malformed(&error)
    }
}

fn malformed(error: &hyper::Error) -> Trouble {
    let why = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    Trouble::new(Cause::HttpMalformed, format!("the server does not speak HTTP/1.1: {why}"))
}
