//! An answer: a table with named columns, as JSON, CSV or text (no I/O).

use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::export::csv;

/// A value in a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Not known, or too few samples to say.
    Null,
    /// A name.
    Text(Arc<str>),
    /// How many.
    Count(u64),
    /// A figure; it is written with at most six decimals.
    Number(f64),
    /// Whether it is so.
    Flag(bool),
}

/// A line of a table, with a cell for each of its columns.
pub type Row = Vec<Cell>;

/// Named columns, and rows of as many cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Which statistic it is.
    pub statistic: &'static str,
    /// The names of the columns.
    pub columns: Vec<&'static str>,
    /// Earliest first, where they go by time.
    pub rows: Vec<Row>,
    /// Why there are no rows.
    pub note: Option<String>,
}

impl Table {
    /// As one JSON object: `statistic`, `rows`, an object each, a line each, and where there are none `note`, the reason.
    pub fn json(&self) -> String {
        let mut text = format!("{{\"statistic\":\"{}\",\"rows\":[", self.statistic);
        for (at, row) in self.rows.iter().enumerate() {
            text.push_str(if at == 0 { "\n" } else { ",\n" });
            let named = Named { columns: &self.columns, row };
            text.push_str(&serde_json::to_string(&named).unwrap_or_default());
        }
        text.push_str("\n]");
        if let Some(note) = &self.note {
            text.push_str(&format!(",\"note\":{}", serde_json::Value::from(note.as_str())));
        }
        text.push_str("}\n");
        text
    }

    /// As comma-separated values with a header; what is not known is empty.
    pub fn csv(&self) -> String {
        let mut text = self.columns.join(",");
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(Cell::csv).collect();
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }
}

/// Rows of texts for people, the names of the columns first; numbers are rounded, and what is not known is `-`.
pub fn for_people(columns: &[&str], rows: &[Row]) -> Vec<Vec<String>> {
    let cell = |cell: &Cell| match cell {
        Cell::Null => "-".to_owned(),
        Cell::Number(number) if number.abs() < 10.0 => format!("{number:.3}"),
        Cell::Number(number) => format!("{number:.1}"),
        other => other.text(),
    };
    let header = columns.iter().map(|name| name.to_uppercase()).collect();
    std::iter::once(header).chain(rows.iter().map(|row| row.iter().map(cell).collect())).collect()
}

impl Cell {
    /// A name.
    pub fn name(text: &str) -> Cell {
        Cell::Text(text.into())
    }

    fn csv(&self) -> String {
        match self {
            Cell::Text(text) => csv::quoted(text),
            other => other.text(),
        }
    }

    fn text(&self) -> String {
        match self {
            Cell::Null => String::new(),
            Cell::Text(text) => text.to_string(),
            Cell::Count(count) => count.to_string(),
            Cell::Number(number) => rounded(*number).to_string(),
            Cell::Flag(flag) => flag.to_string(),
        }
    }
}

impl From<Option<f64>> for Cell {
    fn from(number: Option<f64>) -> Self {
        number.filter(|number| number.is_finite()).map_or(Cell::Null, Cell::Number)
    }
}

impl From<Option<i64>> for Cell {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Cell::Null, |number| match u64::try_from(number) {
            Ok(count) => Cell::Count(count),
            Err(_) => Cell::Number(number as f64),
        })
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Cell::Null => serializer.serialize_none(),
            Cell::Text(text) => serializer.serialize_str(text),
            Cell::Count(count) => serializer.serialize_u64(*count),
            Cell::Number(number) => serializer.serialize_f64(rounded(*number)),
            Cell::Flag(flag) => serializer.serialize_bool(*flag),
        }
    }
}

/// Without the noise that computing leaves behind the sixth decimal.
fn rounded(number: f64) -> f64 {
    // A larger one has few decimals that are right, and would lose digits in being multiplied.
    if number.abs() < 1e9 { (number * 1e6).round() / 1e6 } else { number }
}

/// A row as an object.
struct Named<'a> {
    columns: &'a [&'static str],
    row: &'a Row,
}

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (name, cell) in self.columns.iter().zip(self.row) {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_noise() {
        let numbers = [1_491.677_500_000_000_2, 0.1 + 0.2, 1.0 / 3.0, -2.5, 1e-9, 1e300];
        let row = numbers.map(Cell::Number).to_vec();
        let table =
            Table { statistic: "summary", columns: vec!["a", "b", "c", "d", "e", "f"], rows: vec![row], note: None };
        assert_eq!(
            table.json(),
            "{\"statistic\":\"summary\",\"rows\":[\n\
             {\"a\":1491.6775,\"b\":0.3,\"c\":0.333333,\"d\":-2.5,\"e\":0.0,\"f\":1e+300}\n]}\n"
        );
        assert!(table.csv().ends_with(&format!("\n1491.6775,0.3,0.333333,-2.5,0,{}\n", 1e300)), "{}", table.csv());
    }

    #[test]
    fn a_table_is_given_in_three_forms() {
        let row = vec![
            Cell::name("a,\"b"),
            Cell::Count(3),
            Cell::Number(1234.56),
            Cell::Null,
            Cell::Flag(true),
            Cell::Number(0.25),
        ];
        let columns = vec!["source", "samples", "mean", "p99", "exact", "coverage"];
        let table = Table { statistic: "summary", columns, rows: vec![row], note: None };
        assert_eq!(
            table.json(),
            "{\"statistic\":\"summary\",\"rows\":[\n{\"source\":\"a,\\\"b\",\"samples\":3,\"mean\":1234.56,\
             \"p99\":null,\"exact\":true,\"coverage\":0.25}\n]}\n"
        );
        let csv = "source,samples,mean,p99,exact,coverage\n\"a,\"\"b\",3,1234.56,,true,0.25\n";
        assert_eq!(table.csv(), csv);
        assert_eq!(for_people(&table.columns, &table.rows)[1], ["a,\"b", "3", "1234.6", "-", "true", "0.250"]);
    }
}
