//! What the commands say. That nobody reads it (a closed pipe) is no error: `perfd results | head` must
//! end well, and without a panic.

use std::fmt;
use std::io::{self, Write};

use anyhow::Context;

use super::exit::{Exit, FAILED, OrExit};

/// Prints what was asked for on stdout, at once. Gives whether somebody reads on.
///
/// # Errors
/// If it can't be written, as on a full disk.
pub fn print(text: impl AsRef<[u8]>) -> Result<bool, Exit> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("can't print").or_exit(FAILED),
    }
}

/// Prints a line that nothing depends on: what can't be written is lost.
pub fn line(what: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{what}");
}

/// Says something beside that on stderr.
pub fn note(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "perfd: {what}");
}
