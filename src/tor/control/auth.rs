//! Proving to tor that perfd may control it.
//!
//! The forms are those of Tor's control-spec: PROTOCOLINFO, AUTHCHALLENGE and AUTHENTICATE.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::cookie::{COOKIE_LENGTH, Cookie};
use super::driver::Commands;
use super::error::{ControlError, shown, shown_path};
use super::reply::Reply;

/// tor's version, as it says it: `0.4.9.11`, maybe with more after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What tor says of itself before anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtocolInfo {
    /// tor's METHODS.
    pub methods: Vec<String>,
    /// Where tor keeps its cookie.
    pub cookie_file: Option<PathBuf>,
    /// tor's version.
    pub version: Option<Version>,
}

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

/// Reads tor's reply to `PROTOCOLINFO 1`. What is unknown in it is passed over.
///
/// # Errors
/// If it has no methods, a broken string, or is of another version.
pub fn protocol_info(reply: &Reply) -> Result<ProtocolInfo, ControlError> {
    let mut info = ProtocolInfo::default();
    for line in &reply.lines {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "PROTOCOLINFO" if rest != "1" => {
                return Err(unclear("PROTOCOLINFO", &format!("its version is {}, not 1", shown(rest))));
            }
            "AUTH" => {
                for (key, value) in arguments(rest)? {
                    match key {
                        "METHODS" => {
                            let methods = String::from_utf8_lossy(&value);
                            info.methods = methods.split(',').map(str::to_owned).collect();
                        }
                        "COOKIEFILE" => info.cookie_file = Some(PathBuf::from(OsString::from_vec(value))),
                        _ => {}
                    }
                }
            }
            "VERSION" => {
                let version = arguments(rest)?.into_iter().find(|(key, _)| *key == "Tor");
                info.version = version.map(|(_, value)| Version(shown(&String::from_utf8_lossy(&value))));
            }
            _ => {}
        }
    }
    if info.methods.is_empty() {
        return Err(unclear("PROTOCOLINFO", "it names no METHODS"));
    }
    Ok(info)
}

/// `KEY=VALUE` and `KEY="VALUE"`, with spaces between. What has no `=` is passed over.
fn arguments(mut text: &str) -> Result<Vec<(&str, Vec<u8>)>, ControlError> {
    let mut arguments = Vec::new();
    loop {
        text = text.trim_start_matches(' ');
        if text.is_empty() {
            return Ok(arguments);
        }
        let end = text.find([' ', '=']).unwrap_or(text.len());
        let (key, rest) = text.split_at(end);
        let Some(value) = rest.strip_prefix('=') else {
            text = rest;
            continue;
        };
        match value.strip_prefix('"') {
            Some(inside) => {
                let (value, rest) = unquoted(inside).ok_or_else(|| {
                    unclear("PROTOCOLINFO", &format!("the quotes of {} do not close or close too early", shown(key)))
                })?;
                arguments.push((key, value));
                text = rest;
            }
            None => {
                let (value, rest) = value.split_at(value.find(' ').unwrap_or(value.len()));
                arguments.push((key, value.as_bytes().to_vec()));
                text = rest;
            }
        }
    }
}

/// The bytes that a string stands for, given from after its opening quote, and what follows the closing one:
/// nothing, or a space. Escapes are C's: `\n`, `\t`, `\r`, up to three octal digits, and any other character for
/// itself.
fn unquoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut value = Vec::new();
    let mut bytes = text.bytes().enumerate().peekable();
    loop {
        match bytes.next()? {
            (at, b'"') => {
                let rest = text.get(at + 1..)?;
                return (rest.is_empty() || rest.starts_with(' ')).then_some((value, rest));
            }
            (_, b'\\') => match bytes.next()?.1 {
                b'n' => value.push(b'\n'),
                b't' => value.push(b'\t'),
                b'r' => value.push(b'\r'),
                first @ b'0'..=b'7' => {
                    let mut code = u32::from(first - b'0');
                    for _ in 0..2 {
                        let Some((_, digit)) = bytes.next_if(|(_, byte)| (b'0'..=b'7').contains(byte)) else { break };
                        code = 8 * code + u32::from(digit - b'0');
                    }
                    value.push(u8::try_from(code).ok()?);
                }
                other => value.push(other),
            },
            (_, byte) => value.push(byte),
        }
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

fn unclear(command: &'static str, what: &str) -> ControlError {
    ControlError::Unclear { command, what: what.to_owned() }
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
    use proptest::prelude::*;

    fn reply(lines: &[&str]) -> Reply {
        Reply { code: 250, lines: lines.iter().map(|line| (*line).to_owned()).collect() }
    }

    #[test]
    fn protocol_info_is_read() {
        let info = |methods: &[&str], cookie: Option<&[u8]>, version: Option<&str>| ProtocolInfo {
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            cookie_file: cookie.map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))),
            version: version.map(|version| Version(version.to_owned())),
        };
        let cases: [(&[&str], ProtocolInfo); 5] = [
            (
                &[
                    "PROTOCOLINFO 1",
                    "AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE=\"/run/tor/control.authcookie\"",
                    "VERSION Tor=\"0.4.9.11\"",
                    "OK",
                ],
                info(&["COOKIE", "SAFECOOKIE"], Some(b"/run/tor/control.authcookie"), Some("0.4.9.11")),
            ),
            (
                &[r#"AUTH METHODS=COOKIE COOKIEFILE="/a b/\"\\\303\251\0x\t\n\q""#],
                info(&["COOKIE"], Some(b"/a b/\"\\\xc3\xa9\0x\t\nq"), None),
            ),
            (&["AUTH METHODS=NULL", "VERSION Tor=\"1\" NEW=\"x y\" word"], info(&["NULL"], None, Some("1"))),
            (&["NEWLINE x=\"", "AUTH  NEW COOKIEFILE=/a METHODS=NEW"], info(&["NEW"], Some(b"/a"), None)),
            (&["AUTH METHODS=NULL", "VERSION Other=1"], info(&["NULL"], None, None)),
        ];
        for (lines, expected) in cases {
            assert_eq!(protocol_info(&reply(lines)).unwrap(), expected);
        }
    }

    #[test]
    fn protocol_info_that_is_none_is_refused() {
        let cases: [(&[&str], &str); 7] = [
            (&["OK"], "it names no METHODS"),
            (&["PROTOCOLINFO 2", "AUTH METHODS=NULL"], "its version is 2, not 1"),
            (&["PROTOCOLINFO"], "its version is , not 1"),
            (&[r#"AUTH METHODS=COOKIE COOKIEFILE="/a"#], "the quotes of COOKIEFILE do not close or close too early"),
            (&[r#"AUTH METHODS=COOKIE COOKIEFILE="/a\""#], "the quotes of COOKIEFILE do not close or close too early"),
            (&[r#"AUTH METHODS=COOKIE COOKIEFILE="/a"b"#], "the quotes of COOKIEFILE do not close or close too early"),
            (&[r#"AUTH METHODS=COOKIE COOKIEFILE="\777""#], "the quotes of COOKIEFILE do not close or close too early"),
        ];
        for (lines, expected) in cases {
            match protocol_info(&reply(lines)) {
                Err(ControlError::Unclear { command: "PROTOCOLINFO", what }) => assert_eq!(what, expected),
                other => panic!("{lines:?}: {other:?}"),
            }
        }
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

    proptest! {
        #[test]
        fn a_path_is_read_as_tor_escapes_it(path in prop::collection::vec(any::<u8>(), 0..30)) {
            let escaped: String = path.iter().map(|byte| match byte {
                b'"' | b'\\' | b'\'' => format!("\\{}", char::from(*byte)),
                b'\n' => "\\n".to_owned(),
                b'\t' => "\\t".to_owned(),
                b'\r' => "\\r".to_owned(),
                32..127 => char::from(*byte).to_string(),
                _ => format!("\\{byte:03o}"),
            }).collect();
            let line = format!("AUTH METHODS=COOKIE COOKIEFILE=\"{escaped}\" MORE=1");
            let info = protocol_info(&reply(&[&line])).unwrap();
            prop_assert_eq!(info.cookie_file, Some(PathBuf::from(OsString::from_vec(path))));
        }

        #[test]
        fn no_protocol_info_is_too_strange(line in "(AUTH |VERSION |PROTOCOLINFO )?([A-Z]{0,3}=?|METHODS=|\"|\\\\|[0-9]{1,4}| |\\PC){0,20}") {
            let info = protocol_info(&reply(&[&line]));
            prop_assert!(info.is_err() || !info.unwrap().methods.is_empty());
        }
    }
}
