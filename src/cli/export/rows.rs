//! All results in one file.

use super::output::Folder;
use crate::cli::exit::{Exit, OrExit, STORE};
use crate::export::json::ResultJson;
use crate::export::{csv, har, torperf};
use crate::measurement::ResultRow;
use crate::store::{Filter, Order, StoreReader};

/// How the file looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Torperf's key=value.
    Tpf,
    /// A JSON object a line.
    Json,
    /// Comma-separated values.
    Csv,
    /// An HTTP archive.
    Har,
}

/// Results in one read of the store.
pub const PAGE: usize = 1000;

/// Writes what `filter` lets through, in the order of revisions. Gives what was written, for people.
pub async fn write(reader: &StoreReader, filter: &Filter, form: Form, folder: &Folder) -> Result<String, Exit> {
    let (name, head, tail) = match form {
        Form::Tpf => ("results.tpf", torperf::HEADER.to_owned(), ""),
        Form::Json => ("results.ndjson", String::new(), ""),
        Form::Csv => ("results.csv", csv::header(), ""),
        Form::Har => ("results.har", har::HEAD.to_owned(), har::TAIL),
    };
    let mut file = folder.create(name)?;
    file.put(head)?;
    let (mut after, mut rows) = (None, 0_u64);
    loop {
        let page = reader.results_page(filter, after, Order::Oldest, PAGE).await.or_exit(STORE)?;
        let mut text = String::new();
        for row in &page.rows {
            put(&mut text, form, row, rows == 0);
            rows += 1;
        }
        file.put(text)?;
        let Some(next) = page.next else { break };
        after = Some(next);
    }
    file.put(tail)?;
    file.finish()?;
    Ok(format!("{rows} results"))
}

fn put(text: &mut String, form: Form, row: &ResultRow, first: bool) {
    match form {
        Form::Tpf => *text += &torperf::line_for_ever(row),
        Form::Csv => *text += &csv::line(row),
        Form::Json => {
            *text += &serde_json::to_string(&ResultJson::from(row)).unwrap_or_default();
            text.push('\n');
        }
        Form::Har => {
            *text += if first { "\n" } else { ",\n" };
            *text += &har::entry(row);
        }
    }
}
