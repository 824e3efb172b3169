//! Proving to tor that perfd may control it.
//!
//! The forms are those of Tor's control-spec: PROTOCOLINFO, AUTHCHALLENGE and AUTHENTICATE.

use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::cookie::{COOKIE_LENGTH, Cookie};
use super::driver::Commands;
use super::error::{ControlError, shown, shown_path};
use super::protocol_info::{ProtocolInfo, Version, protocol_info, unclear};
use super::reply::Reply;

/// Authenticates on a connection that is new: without anything if tor asks for nothing, with the password if
/// there is one and tor takes passwords, or else with the cookie, which tor must prove to know first if it can.
///
/// No file is sent that has not exactly 32 bytes, whatever tor names as its cookie.
///
/// # Errors
/// If tor does not take it, or it can't be done. tor closes the connection then.
pub async fn authenticate(commands: &Commands, password: Option<&str>) -> Result<Version, ControlError> {
    let info = protocol_info(&commands.ask("PROTOCOLINFO 1").await?)?;
    match choose(&info, password)? {
        Method::Null => drop(commands.ask("AUTHENTICATE").await?),
        Method::Password(password) => {
            let taken = commands.ask(&format!("AUTHENTICATE {}", quoted(password))).await;
            taken.map_err(|error| refusal(error, |text| ControlError::WrongPassword { text }))?;
        }
        Method::SafeCookie(path) => {
            let cookie = Cookie::read(path).await?;
            let key = prove(commands, path, &cookie).await?;
            present(commands, path, &key).await?;
        }
        Method::Cookie(path) => present(commands, path, Cookie::read(path).await?.bytes()).await?,
    }
    match info.version {
        Some(version) => Ok(version),
        None => {
            let reply = commands.ask("GETINFO version").await?;
            let version = reply.value("version");
            version.map(|version| Version(shown(version))).ok_or_else(|| unclear("GETINFO", "it has no version"))
        }
    }
}

/// How to authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method<'a> {
    Null,
    Password(&'a str),
    SafeCookie(&'a Path),
    Cookie(&'a Path),
}

fn choose<'a>(info: &'a ProtocolInfo, password: Option<&'a str>) -> Result<Method<'a>, ControlError> {
    let offers = |name: &str| info.methods.iter().any(|method| method == name);
    let cookie = || info.cookie_file.as_deref().ok_or_else(|| unclear("PROTOCOLINFO", "it names no COOKIEFILE"));
    match password {
        _ if offers("NULL") => Ok(Method::Null),
        Some(password) if offers("HASHEDPASSWORD") => Ok(Method::Password(password)),
        _ if offers("SAFECOOKIE") => cookie().map(Method::SafeCookie),
        _ if offers("COOKIE") => cookie().map(Method::Cookie),
        _ if offers("HASHEDPASSWORD") => Err(ControlError::NoPassword),
        _ => Err(ControlError::NoMethod { offered: shown(&info.methods.join(",")) }),
    }
}

/// A QuotedString of control-spec: in quotes, and a backslash before each quote and backslash.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Sends a cookie, or what proves that we know it.
async fn present(commands: &Commands, path: &Path, key: &[u8]) -> Result<(), ControlError> {
    let taken = commands.ask(&format!("AUTHENTICATE {}", hex(key))).await;
    let wrong = |text| ControlError::WrongCookie { path: shown_path(path), text };
    taken.map(drop).map_err(|error| refusal(error, wrong))
}

/// Lets tor prove that it knows the cookie, and returns what proves to it that we do.
async fn prove(commands: &Commands, path: &Path, cookie: &Cookie) -> Result<[u8; 32], ControlError> {
    let ours: [u8; 32] = rand::random();
    let reply = commands.ask(&format!("AUTHCHALLENGE SAFECOOKIE {}", hex(&ours))).await?;
    let (hash, theirs) = challenge(&reply).ok_or_else(|| {
        unclear("AUTHCHALLENGE", "it is not of the form AUTHCHALLENGE SERVERHASH=… SERVERNONCE=…, with 64 digits each")
    })?;
    let server = exchange(SERVER_KEY, cookie, &ours, &theirs);
    // In constant time.
    server.verify_slice(&hash).map_err(|_| ControlError::Impostor { path: shown_path(path) })?;
    Ok(exchange(CONTROLLER_KEY, cookie, &ours, &theirs).finalize().into_bytes().into())
}

const SERVER_KEY: &[u8] = b"Tor safe cookie authentication server-to-controller hash";
const CONTROLLER_KEY: &[u8] = b"Tor safe cookie authentication controller-to-server hash";

fn exchange(key: &[u8], cookie: &Cookie, ours: &[u8; 32], theirs: &[u8; 32]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(cookie.bytes());
    mac.update(ours);
    mac.update(theirs);
    mac
}

/// The server's hash and nonce.
fn challenge(reply: &Reply) -> Option<([u8; 32], [u8; 32])> {
    let line = reply.lines.iter().find_map(|line| line.strip_prefix("AUTHCHALLENGE "))?;
    let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    Some((from_hex(value("SERVERHASH")?)?, from_hex(value("SERVERNONCE")?)?))
}

fn refusal(error: ControlError, wrong: impl FnOnce(String) -> ControlError) -> ControlError {
    match error {
        ControlError::Refused { code, text, .. } => wrong(format!("{code} {text}")),
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; COOKIE_LENGTH]> {
    let mut bytes = [0; COOKIE_LENGTH];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
        *byte = u8::try_from(16 * digit(0)? + digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(lines: &[&str]) -> Reply {
        Reply { code: 250, lines: lines.iter().map(|line| (*line).to_owned()).collect() }
    }

    #[test]
    fn the_method_that_tells_least_is_chosen() {
        let path = Path::new("/c");
        let cases = [
            ("NULL,COOKIE,SAFECOOKIE,HASHEDPASSWORD", Some("pw"), Ok(Method::Null)),
            ("COOKIE,SAFECOOKIE,HASHEDPASSWORD", Some("pw"), Ok(Method::Password("pw"))),
            ("COOKIE,SAFECOOKIE,HASHEDPASSWORD", None, Ok(Method::SafeCookie(path))),
            ("COOKIE,SAFECOOKIE", Some("pw"), Ok(Method::SafeCookie(path))),
            ("COOKIE,NEW", None, Ok(Method::Cookie(path))),
            ("HASHEDPASSWORD", None, Err("tor asks for a password")),
            ("NEW,null", Some("pw"), Err("tor offers NEW,null on its control port")),
        ];
        for (methods, password, expected) in cases {
            let methods = methods.split(',').map(str::to_owned).collect();
            let info = ProtocolInfo { methods, cookie_file: Some(path.to_owned()), version: None };
            match (choose(&info, password), expected) {
                (Ok(method), Ok(expected)) => assert_eq!(method, expected),
                (Err(error), Err(expected)) => assert!(error.to_string().starts_with(expected), "{error}"),
                (chosen, _) => panic!("{info:?}: {chosen:?}"),
            }
        }
        let nowhere = ProtocolInfo { methods: vec!["COOKIE".to_owned()], ..ProtocolInfo::default() };
        assert!(matches!(choose(&nowhere, None), Err(ControlError::Unclear { .. })));
    }

    #[test]
    fn a_password_is_quoted() {
        for (password, expected) in [("", r#""""#), ("a b", r#""a b""#), (r#"a"\é"#, r#""a\"\\é""#)] {
            assert_eq!(quoted(password), expected);
        }
    }

    #[test]
    fn a_challenge_is_two_times_32_bytes_in_hexadecimal() {
        let (hash, nonce) = ("aB".repeat(32), "01".repeat(32));
        let line = format!("AUTHCHALLENGE SERVERHASH={hash} SERVERNONCE={nonce}");
        assert_eq!(challenge(&reply(&[&line])), Some(([0xab; 32], [1; 32])));
        assert_eq!(challenge(&reply(&[&line.replace("SERVERHASH", "NEW=1 SERVERHASH")])), Some(([0xab; 32], [1; 32])));
        for broken in ["", "AUTHCHALLENGE ", &line.replace("01", ""), &line.replace('B', "g"), &line.replace('B', "é")]
        {
            assert_eq!(challenge(&reply(&[broken])), None, "{broken}");
        }
    }

    #[test]
    fn the_keys_of_safecookie_are_those_of_another_implementation() {
        // Made with Python's hmac module.
        let cookie = Cookie::from_bytes(std::array::from_fn(|i| i as u8));
        let key = |of| hex(&exchange(of, &cookie, &[0x11; 32], &[0x22; 32]).finalize().into_bytes());
        assert_eq!(key(SERVER_KEY), "2AECBF4D284BEFDDBBACC3817B41959EDA061AC7E156DB0C734CB28AA5E903ED");
        assert_eq!(key(CONTROLLER_KEY), "EEA571786A3FD103B6AA1FFA46249C4C850C509D0C84C550ED9E41477511D2BA");
    }
}
