//! The names of the files of finished days, and the listings of them that Tor's CollecTor and other mirrors read.
//!
//! CollecTor takes a listing line by line: each link on a line of its own, its `href` the only attribute, in double
//! quotes and lower case, the file's name alone.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::torperf::int32;
use crate::clock::UnixMicros;
use crate::store::Listed;

/// A day in microseconds.
const DAY: i64 = 86_400_000_000;

/// The UTC day that this moment lies in, counted from 1970-01-01.
pub fn day_of(moment: UnixMicros) -> i64 {
    moment.0.div_euclid(DAY)
}

/// The first moment of a day.
pub fn start_of(day: i64) -> UnixMicros {
    UnixMicros(day.saturating_mul(DAY))
}

/// The day as `YYYY-MM-DD`.
pub fn date(day: i64) -> String {
    let moment = start_of(day).to_string();
    moment.split_once('T').map_or(moment.clone(), |(date, _)| date.to_owned())
}

/// The name of a file of Torperf's key=value.
pub fn torperf_name(source: &str, size: u64, day: i64) -> String {
    format!("{source}-{}-{}.tpf", int32(size), date(day))
}

/// The name of a file of OnionPerf's analysis.
pub fn onionperf_name(day: i64) -> String {
    format!("{}.onionperf.analysis.json.xz", date(day))
}

/// The files as a page.
pub fn html(source: &str, files: &[Listed]) -> String {
    let mut page = String::with_capacity(512 + files.len() * 160);
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Finished days of {source}</title>\n\
         <h1>Finished days of {source}</h1>\n<p>UTC days. A day comes here when it is over and all of its runs have settled; \
         then its files never change. The same list with sizes \
         and digests for programs:\n<a href=\"index.xml\">index.xml</a></p>\n<ul>\n"
    );
    for Listed { name, modified, size, .. } in files {
        let _ = writeln!(page, "<li><a href=\"{name}\">{name}</a> {size} bytes, {} UTC", seconds(*modified));
    }
    page + "</ul>\n</html>\n"
}

/// The files as `index.xml`.
///
/// The attributes are OnionPerf's, `sha256` in Base64 among them. The same stands in elements, for readers that look
/// for those, and there `sha256` is hexadecimal, as `sha256sum` writes it.
pub fn xml(files: &[Listed]) -> String {
    let mut text = String::with_capacity(64 + files.len() * 420);
    text += "<?xml version='1.0' encoding='UTF-8'?>\n<files>\n";
    for Listed { name, modified, size, sha256 } in files {
        let (modified, digest) = (seconds(*modified), STANDARD.encode(bytes(sha256)));
        let _ = write!(
            text,
            "  <file name=\"{name}\" size=\"{size}\" last_modified=\"{modified}\" sha256=\"{digest}\">\n    \
             <name>{name}</name>\n    <size>{size}</size>\n    <last_modified>{modified}</last_modified>\n    \
             <sha256>{sha256}</sha256>\n  </file>\n"
        );
    }
    text + "</files>\n"
}

/// `2026-11-22 10:00:00`.
fn seconds(moment: UnixMicros) -> String {
    let text = moment.to_string().replacen('T', " ", 1);
    text.split_once('.').map_or(text.clone(), |(seconds, _)| seconds.to_owned())
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Listed {
        let sha256 = "0f".repeat(32);
        Listed { name: name.to_owned(), modified: UnixMicros(1_795_341_600_123_456), size: 7, sha256 }
    }

    #[test]
    fn names_are_those_that_collector_looks_for() {
        let day = day_of(UnixMicros(1_795_341_600_000_000));
        assert_eq!(torperf_name("op-test", 51_200, day), "op-test-51200-2026-11-22.tpf");
        assert_eq!(onionperf_name(day), "2026-11-22.onionperf.analysis.json.xz");
        assert_eq!((day_of(UnixMicros(-1)), date(-1)), (-1, "1969-12-31".to_owned()));
        assert_eq!(day_of(start_of(day + 1)), day + 1);
        assert_eq!(day_of(UnixMicros(start_of(day + 1).0 - 1)), day);
    }

    #[test]
    fn every_link_has_a_line_of_its_own() {
        let names = ["a-1-2026-11-22.tpf", "2026-11-22.onionperf.analysis.json.xz"];
        let page = html("a", &names.map(file));
        for name in names {
            let link = format!("<a href=\"{name}\">");
            let lines: Vec<_> = page.lines().filter(|line| line.contains(&link)).collect();
            assert_eq!(lines.len(), 1, "{page}");
            assert_eq!(lines[0].matches("<a ").count(), 1);
        }
        assert_eq!(page.matches("href").count(), 3);
    }

    #[test]
    fn index_xml_is_onionperfs() {
        let digest = "0f".repeat(32);
        assert_eq!(
            xml(&[file("x.tpf")]),
            format!(
                "<?xml version='1.0' encoding='UTF-8'?>\n<files>\n  <file name=\"x.tpf\" size=\"7\" \
                 last_modified=\"2026-11-22 10:00:00\" sha256=\"Dw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8=\">\n    \
                 <name>x.tpf</name>\n    <size>7</size>\n    <last_modified>2026-11-22 10:00:00</last_modified>\n    \
                 <sha256>{digest}</sha256>\n  </file>\n</files>\n"
            )
        );
    }
}
