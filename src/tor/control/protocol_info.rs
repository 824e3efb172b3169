//! What tor says of itself before anything else: its reply to PROTOCOLINFO (control-spec 3.21; no I/O).

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::error::{ControlError, shown};
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

/// A reply that is not of the form that it should have.
pub(super) fn unclear(command: &'static str, what: &str) -> ControlError {
    ControlError::Unclear { command, what: what.to_owned() }
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
