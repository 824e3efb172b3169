//! A table for people: what never varies is said once above it, and long names take two lines (no I/O).

use super::table::{Cell, Row, for_people};

/// Columns that name what the others are figures of.
const NAMES: [&str; 8] = ["period", "source", "experiment", "server", "size", "tor", "quantity", "unit"];

/// So many digits of a fingerprint are shown, as many as tell relays apart.
const DIGITS: usize = 8;

/// A heading, which may be empty, and the rows below it, the names of the columns first.
pub fn compact(columns: &[&str], rows: &[Row]) -> (String, Vec<Vec<String>>) {
    let constant = |at: usize| {
        let first = rows.first()?.get(at)?;
        rows.iter().all(|row| row.get(at) == Some(first)).then_some(first)
    };
    let mut heading = Vec::new();
    let mut kept = Vec::new();
    for (at, name) in columns.iter().enumerate() {
        match constant(at) {
            Some(Cell::Null) if NAMES.contains(name) => {}
            Some(Cell::Flag(true)) if *name == "exact" => {}
            Some(Cell::Flag(false)) if *name == "exact" => heading.push("not exact".to_owned()),
            Some(value) if NAMES.contains(name) => heading.push(format!("{name} {}", shown(value))),
            _ => kept.push(at),
        }
    }
    let names: Vec<&str> = kept.iter().filter_map(|at| columns.get(*at).copied()).collect();
    let cell = |row: &Row, at: usize| match row.get(at) {
        Some(Cell::Text(text)) if columns.get(at) == Some(&"fingerprint") => {
            Cell::name(&text.chars().take(DIGITS).collect::<String>())
        }
        other => other.cloned().unwrap_or(Cell::Null),
    };
    let cells: Vec<Row> = rows.iter().map(|row| kept.iter().map(|at| cell(row, *at)).collect()).collect();
    let mut lines = for_people(&names, &cells);
    if let Some(header) = lines.first_mut() {
        let (above, below): (Vec<_>, Vec<_>) = header.iter().map(|name| in_two(name)).unzip();
        *header = below;
        if above.iter().any(|part| !part.is_empty()) {
            lines.insert(0, above);
        }
    }
    (heading.join(", "), lines)
}

fn shown(value: &Cell) -> String {
    for_people(&[], &[vec![value.clone()]]).pop().and_then(|mut row| row.pop()).unwrap_or_default()
}

/// A long name of several words, its last word below the others.
fn in_two(name: &str) -> (String, String) {
    match name.rsplit_once('_') {
        Some((above, below)) if name.len() > DIGITS => (above.to_owned(), below.to_owned()),
        _ => (String::new(), name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_varies_is_said_once() {
        let row = |runs: u64, fingerprint: &str| {
            let names = [Cell::Null, Cell::name("a"), Cell::name("ms"), Cell::name(fingerprint)];
            names.into_iter().chain([Cell::Count(runs), Cell::Number(0.5), Cell::Flag(true)]).collect::<Row>()
        };
        let columns = ["period", "source", "unit", "fingerprint", "runs", "slow_share", "exact"];
        let rows = [row(1, &"A".repeat(40)), row(1, &"B".repeat(40))];
        let (heading, lines) = compact(&columns, &rows);
        assert_eq!(heading, "source a, unit ms");
        assert_eq!(
            lines,
            [
                ["", "", "SLOW"],
                ["FINGERPRINT", "RUNS", "SHARE"],
                ["AAAAAAAA", "1", "0.500"],
                ["BBBBBBBB", "1", "0.500"]
            ]
        );
        let mut other = rows[1].clone();
        (other[1], other[6]) = (Cell::name("b"), Cell::Flag(false));
        let (heading, lines) = compact(&columns, &[rows[0].clone(), other.clone()]);
        assert_eq!(
            (heading.as_str(), lines[1].join(" ")),
            ("unit ms", "SOURCE FINGERPRINT RUNS SHARE EXACT".to_owned())
        );
        assert_eq!(compact(&columns, &[other]).0, "source b, unit ms, not exact");
    }
}
