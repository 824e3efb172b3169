//! What can go wrong on a control port. No message holds a password, a cookie or a key.

use std::io;
use std::path::Path;
use std::time::Duration;

/// Why something could not be had from a control port. The messages name the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no connection.
    #[error("no connection to tor's control port {address}: {error}; {remedy}")]
    Unreachable {
        /// Where, as the configuration has it.
        address: String,
        /// What the system said.
        error: io::Error,
        /// What to do.
        remedy: String,
    },
    /// The connection did not come about in time.
    #[error("no connection to tor's control port {address} within {} s; is it the right machine and port, with no firewall between?", .within.as_secs_f64())]
    Unanswered {
        /// Where, as the configuration has it.
        address: String,
        /// How long was waited.
        within: Duration,
    },
    /// tor closed the connection.
    #[error("tor closed the control connection{}; its log should say why, if it still runs", if *.within_line { " in the middle of a line" } else { "" })]
    Closed {
        /// Whether the last line was not whole.
        within_line: bool,
    },
    /// The connection broke.
    #[error("the control connection broke: {0}; is tor still running?")]
    Broken(io::Error),
    /// What came is not the control protocol.
    #[error(
        "{line} came over the control connection, which is none of its protocol; is this the address of tor's ControlPort?"
    )]
    Malformed {
        /// The beginning of the line, quoted and escaped.
        line: String,
    },
    /// tor answered, and was not asked.
    #[error("{line} came over the control connection as a reply to nothing; perfd connects anew")]
    Unasked {
        /// The beginning of the line, quoted and escaped.
        line: String,
    },
    /// The connection has ended, which was reported where it is driven.
    #[error("{command} was not answered: the control connection has ended")]
    Ended {
        /// The command's first word.
        command: String,
    },
    /// tor did not answer in time. Whether it carries the command out is not known.
    #[error("tor did not answer {command} within {} s; it is overloaded or stuck: see its log, and restart it if it stays so", .within.as_secs_f64())]
    Stalled {
        /// The command's first word.
        command: String,
        /// How long was waited.
        within: Duration,
    },
    /// tor answered too much.
    #[error("tor's reply to {command} is longer than 16 MiB, or has a line of more than 1 MiB; it was thrown away")]
    TooLong {
        /// The command's first word.
        command: String,
    },
    /// tor did not do it.
    #[error("tor refused {command}: {code} {text}")]
    Refused {
        /// The command's first word.
        command: String,
        /// tor's code: 300 to 599.
        code: u16,
        /// What tor said, on one line. What stands in the command is left out of it if the command holds secrets.
        text: String,
    },
    /// The command would be more than one, or none.
    #[error(
        "{command} can't be sent: a command is one line that is not empty, without NUL, CR or LF, and does not begin with `+`"
    )]
    NotACommand {
        /// The command's first word.
        command: String,
    },
    /// tor's reply is not of the form that it should have.
    #[error("tor's reply to {command} can't be understood: {what}; is this a tor of version 0.4 or later?")]
    Unclear {
        /// The command's first word.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// tor takes a password, and perfd has none.
    #[error(
        "tor asks for a password on its control port: write it into a file, and name that as `control_password_file` beside `control` in perfd's configuration"
    )]
    NoPassword,
    /// tor offers nothing that perfd can do.
    #[error(
        "tor offers {offered} on its control port, and perfd can do NULL, HASHEDPASSWORD, SAFECOOKIE and COOKIE; set `CookieAuthentication 1` in its torrc"
    )]
    NoMethod {
        /// tor's METHODS.
        offered: String,
    },
    /// tor did not take the password.
    #[error(
        "tor did not take the password for its control port ({text}); it must be the one that HashedControlPassword in its torrc was made of (tor --hash-password)"
    )]
    WrongPassword {
        /// What tor said.
        text: String,
    },
    /// tor did not take the cookie.
    #[error(
        "tor did not take the cookie {path} ({text}); does another tor write the same file? Give each tor its own CookieAuthFile"
    )]
    WrongCookie {
        /// The file.
        path: String,
        /// What tor said.
        text: String,
    },
    /// What answers could not prove that it knows the cookie. Nothing of it was sent.
    #[error(
        "what answers on the control port does not know tor's cookie {path}: another program, or another tor that names the same file; perfd told it nothing"
    )]
    Impostor {
        /// The file.
        path: String,
    },
    /// The cookie can't be read.
    #[error("can't read tor's cookie {path}: {error}; {remedy}")]
    Cookie {
        /// The file.
        path: String,
        /// What the system said, or what is wrong with the file.
        error: String,
        /// Whose the file is, who we are, and what to do.
        remedy: String,
    },
}

/// The beginning of what a peer sent, quoted and on one line.
pub(super) fn quoted_bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..LONGEST_SHOWN).unwrap_or(bytes);
    format!("\"{}{}\"", shown.escape_ascii(), if bytes.len() > LONGEST_SHOWN { "…" } else { "" })
}

/// The beginning of a text that a peer sent, on one line.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if i == LONGEST_TEXT => {
                shown.push('…');
                break;
            }
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// A path that a peer named, on one line.
pub(super) fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy())
}

/// In bytes.
const LONGEST_SHOWN: usize = 80;
/// In characters.
const LONGEST_TEXT: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_said_fits_one_line() {
        assert_eq!(quoted_bytes(b"a\n\x1b\xff\""), r#""a\n\x1b\xff\"""#);
        assert_eq!(quoted_bytes(&[b'x'; 80]), format!("\"{}\"", "x".repeat(80)));
        assert_eq!(quoted_bytes(&[b'x'; 81]), format!("\"{}…\"", "x".repeat(80)));
        assert_eq!(shown("a \"b\" 'c' \\\n\u{1b}\u{202e}é"), r#"a "b" 'c' \\n\u{1b}\u{202e}é"#);
        assert_eq!(shown(&"é".repeat(300)), "é".repeat(300));
        assert_eq!(shown(&"é".repeat(301)), format!("{}…", "é".repeat(300)));
    }
}
