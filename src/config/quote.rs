//! How a message shows what the file says: on one line, however odd (pure).

/// The text in quotes, with control characters escaped and what is overlong cut short.
pub(super) fn quoted(text: &str) -> String {
    let mut shown = String::from('"');
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST_SHOWN {
            shown.push('…');
            break;
        }
        match c {
            '\'' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown.push('"');
    shown
}

/// A key as it is written in TOML: bare where it may be.
pub(super) fn shown_key(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !key.is_empty() && key.len() <= LONGEST_SHOWN && key.bytes().all(bare) { key.to_owned() } else { quoted(key) }
}

/// In characters.
const LONGEST_SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_fits_one_line() {
        assert_eq!(quoted("it's"), r#""it's""#);
        assert_eq!(quoted("a\n\0\"\u{202e}é"), r#""a\n\0\"\u{202e}é""#);
        assert_eq!(quoted(&"x".repeat(81)), format!("\"{}…\"", "x".repeat(80)));
        assert_eq!((shown_key("max_payload"), shown_key("a b")), ("max_payload".to_owned(), r#""a b""#.to_owned()));
    }
}
