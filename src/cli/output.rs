//! What the commands say. That nobody reads it (a closed pipe) is no error: `perfd results | head` must
//! end well, and without a panic.

use std::fmt;
use std::io::{self, Write};

use anyhow::Context;
use futures_util::StreamExt;

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

/// Says something beside that on stderr. It may hold what others sent, so it must not steer the terminal.
pub fn note(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "perfd: {}", harmless(&what.to_string()));
}

/// Text whose control characters, but for line ends and tabs, are shown as question marks.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !"\n\t".contains(c) { '?' } else { c }).collect()
}

/// Rows of cells as lines, each column as wide as its widest cell. Cells are shown on one line.
pub fn columns(rows: &[Vec<String>]) -> String {
    let mut widths = vec![0; rows.iter().map(Vec::len).max().unwrap_or(0)];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let gap = if line.is_empty() { "" } else { "  " };
            line.push_str(&format!("{gap}{:width$}", cell.replace(['\n', '\t'], " ")));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Reads an answer of at most `most` bytes: who answers may be anybody.
///
/// # Errors
/// If it is longer, or breaks off.
pub async fn read_whole(response: reqwest::Response, most: usize) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.context("the answer was cut off")?;
        anyhow::ensure!(whole.len() + piece.len() <= most, "the answer is longer than {most} bytes");
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_sent_does_not_steer_the_terminal() {
        assert_eq!(harmless("a\x1b]0;x\x07\u{9b}2J\tb\nc"), "a?]0;x??2J\tb\nc");
    }
}
