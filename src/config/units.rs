//! Sizes and durations as people write them: `"50 KiB"`, `"5 min"` (pure).
//!
//! Only binary units of size are read, because Torperf's "50 KiB" and a "50 KB" differ by 1,200
//! bytes and a measurement must not be a guess about which was meant.

use std::time::Duration;

use super::quote::quoted;

/// A size or a duration that can't be read; displayed as what is wrong, a semicolon, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// The longest duration that is read: a hundred years, which no clock of ours overflows on.
pub const LONGEST: Duration = Duration::from_secs(36_500 * DAY / 1000);

/// Reads a size in bytes: a whole number with `B`, `KiB`, `MiB` or `GiB`, the space optional; without a unit it is bytes.
///
/// # Errors
///
/// Anything else, decimal units among it, and what is more than 2^64 - 1 bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (digits, unit) = split(text);
    check_number(text, digits, r#"a size such as "50 KiB" or "5 MiB""#)?;
    let shown = quoted(text);
    let factor = match unit {
        "" => 1,
        _ => match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => *factor,
            None => return Err(UnitError(wrong_size_unit(&shown, digits, unit))),
        },
    };
    let too_large = || UnitError(format!("{shown} is too large; write a size such as \"50 KiB\" or \"5 MiB\""));
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(too_large)
}

/// Reads a duration: a whole number with `ms`, `s`, `min` (or `m`), `h` or `d`, the space optional; `0` needs no unit.
///
/// # Errors
///
/// Anything else, a number without a unit among it, and what is longer than [`LONGEST`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (digits, unit) = split(text);
    check_number(text, digits, r#"a duration such as "295 s" or "5 min""#)?;
    let shown = quoted(text);
    let factor = match unit {
        "" if digits.bytes().all(|b| b == b'0') => 1,
        "" => {
            return Err(UnitError(format!(
                "{shown} has no unit; write ms, s, min, h or d after it, such as \"5 min\""
            )));
        }
        "m" => MINUTE,
        _ => match DURATION_UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => *factor,
            None => {
                let text = format!("{shown} has no unit that perfd knows; write ms, s, min, h or d, such as \"5 min\"");
                return Err(UnitError(text));
            }
        },
    };
    let millis = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(Duration::from_millis);
    let too_long = || UnitError(format!("{shown} is too long; write at most \"{}\"", format_duration(LONGEST)));
    millis.filter(|d| *d <= LONGEST).ok_or_else(too_long)
}

/// Writes a size in the largest unit that divides it: `50 KiB`, `1025 B`; [`parse_size`] reads it back.
pub fn format_size(bytes: u64) -> String {
    in_largest_unit(bytes, SIZE_UNITS).unwrap_or_else(|| "0 B".to_owned())
}

/// Writes a duration in the largest unit that divides it: `5 min`, `295 s`; [`parse_duration`] reads it back.
///
/// What is no whole number of milliseconds is written in seconds with decimals, which is for reading only.
pub fn format_duration(duration: Duration) -> String {
    match u64::try_from(duration.as_millis()) {
        Ok(millis) if duration.subsec_nanos().is_multiple_of(1_000_000) => {
            in_largest_unit(millis, DURATION_UNITS).unwrap_or_else(|| "0 s".to_owned())
        }
        _ => {
            let decimals = format!("{:09}", duration.subsec_nanos());
            format!("{}.{} s", duration.as_secs(), decimals.trim_end_matches('0')).replace(". s", " s")
        }
    }
}

/// Largest first.
const SIZE_UNITS: &[(&str, u64)] = &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

const MINUTE: u64 = 60 * 1000;
const DAY: u64 = 24 * 60 * MINUTE;

/// In milliseconds, largest first.
const DURATION_UNITS: &[(&str, u64)] = &[("d", DAY), ("h", 60 * MINUTE), ("min", MINUTE), ("s", 1000), ("ms", 1)];

/// The number's digits and what follows them.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim_matches(' ');
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim_start_matches(' '))
}

fn check_number(text: &str, digits: &str, write: &str) -> Result<(), UnitError> {
    let rest = text.trim_matches(' ').get(digits.len()..).unwrap_or("");
    let shown = quoted(text);
    if digits.is_empty() {
        return Err(UnitError(format!("{shown} does not begin with a whole number; write {write}")));
    }
    if rest.starts_with(['.', ',', '_']) {
        return Err(UnitError(format!("{shown} is no whole number of a unit; write {write}")));
    }
    Ok(())
}

fn wrong_size_unit(shown: &str, digits: &str, unit: &str) -> String {
    let binary = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => {
            return format!("{shown} has no unit that perfd knows; write B, KiB, MiB or GiB, such as \"50 KiB\"");
        }
    };
    let digits: String = digits.chars().take(20).collect();
    format!("{shown} is not in a binary unit; write \"{digits} {binary}\" (1 KiB is 1024 B, 1 MiB is 1024 KiB)")
}

/// Nothing for 0, which every unit divides.
fn in_largest_unit(n: u64, units: &[(&str, u64)]) -> Option<String> {
    let (name, factor) = units.iter().find(|(_, factor)| n != 0 && n.is_multiple_of(*factor))?;
    Some(format!("{} {name}", n / factor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases = [("100 B", 100), ("50 KiB", 51_200), ("5 MiB", 5_242_880), ("1GiB", 1 << 30), ("7", 7), ("0", 0)];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        let cases = [
            ("295 s", 295_000),
            ("5 min", 300_000),
            ("5m", 300_000),
            ("1 h", 3_600_000),
            ("100 ms", 100),
            ("1 d", 86_400_000),
            ("0", 0),
            (" 2  s ", 2000),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_would_be() {
        let cases = [
            ("50 KB", r#""50 KB" is not in a binary unit; write "50 KiB" (1 KiB is 1024 B, 1 MiB is 1024 KiB)"#),
            ("5mb", r#""5mb" is not in a binary unit; write "5 MiB" (1 KiB is 1024 B, 1 MiB is 1024 KiB)"#),
            ("5 TiB", r#""5 TiB" has no unit that perfd knows; write B, KiB, MiB or GiB, such as "50 KiB""#),
            ("1.5 MiB", r#""1.5 MiB" is no whole number of a unit; write a size such as "50 KiB" or "5 MiB""#),
            ("-1 B", r#""-1 B" does not begin with a whole number; write a size such as "50 KiB" or "5 MiB""#),
            ("", r#""" does not begin with a whole number; write a size such as "50 KiB" or "5 MiB""#),
            (
                "99999999999999999999 B",
                r#""99999999999999999999 B" is too large; write a size such as "50 KiB" or "5 MiB""#,
            ),
            ("17179869184 GiB", r#""17179869184 GiB" is too large; write a size such as "50 KiB" or "5 MiB""#),
        ];
        for (text, error) in cases {
            assert_eq!(parse_size(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn what_is_no_duration_says_what_would_be() {
        let cases = [
            ("295", r#""295" has no unit; write ms, s, min, h or d after it, such as "5 min""#),
            ("5 sec", r#""5 sec" has no unit that perfd knows; write ms, s, min, h or d, such as "5 min""#),
            ("s", r#""s" does not begin with a whole number; write a duration such as "295 s" or "5 min""#),
            ("36501 d", r#""36501 d" is too long; write at most "36500 d""#),
            ("18446744073709551615 d", r#""18446744073709551615 d" is too long; write at most "36500 d""#),
        ];
        for (text, error) in cases {
            assert_eq!(parse_duration(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn the_largest_unit_that_divides_is_written() {
        let sizes = [(0, "0 B"), (1025, "1025 B"), (51_200, "50 KiB"), (1 << 30, "1 GiB")];
        for (bytes, text) in sizes {
            assert_eq!(format_size(bytes), text);
        }
        let durations = [
            (0, "0 s"),
            (1, "1 ms"),
            (295_000, "295 s"),
            (300_000, "5 min"),
            (86_400_000, "1 d"),
            (5_400_000, "90 min"),
        ];
        for (millis, text) in durations {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(format_duration(Duration::from_micros(1_500)), "0.0015 s");
        assert_eq!(format_duration(Duration::MAX), "18446744073709551615.999999999 s");
        assert_eq!(format_duration(Duration::from_secs(u64::MAX)), "18446744073709551615 s");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>(), shaped in "[0-9]{0,30} ?[a-zA-Zµ]{0,3}") {
            for text in [&text, &shaped] {
                let _ = (parse_size(text), parse_duration(text));
            }
        }

        #[test]
        fn what_is_written_is_read_back(bytes in any::<u64>(), millis in 0..=LONGEST.as_millis() as u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            let _ = format_duration(Duration::new(bytes, (millis % 1_000_000_000) as u32));
        }
    }
}
