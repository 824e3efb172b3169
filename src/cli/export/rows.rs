//! All results in one file.

use futures_util::{StreamExt, stream};

use super::output::{Folder, Output};
use crate::cli::exit::{Exit, FAILED, OrExit, STORE};
use crate::export::json::ResultJson;
use crate::export::{csv, har, torperf};
use crate::measurement::ResultRow;
use crate::store::{Filter, Order, StoreError, StoreReader};

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
pub const PAGE: usize = 500;

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
    let rows = match *filter == Filter::default() {
        true => put_all(reader, form, &mut file).await?,
        false => put_some(reader, filter, form, &mut file).await?,
    };
    file.put(tail)?;
    file.finish()?;
    Ok(format!("{rows} results"))
}

/// Those that a filter lets through, which an index may find.
async fn put_some(reader: &StoreReader, filter: &Filter, form: Form, file: &mut Output) -> Result<usize, Exit> {
    let (mut after, mut rows) = (None, 0);
    loop {
        let page = reader.results_page(filter, after, Order::Oldest, PAGE).await.or_exit(STORE)?;
        file.put(rendered(form, &page.rows, rows == 0))?;
        rows += page.rows.len();
        let Some(next) = page.next else { return Ok(rows) };
        after = Some(next);
    }
}

/// All there are: parts of the store are read and rendered side by side, and written in their order.
async fn put_all(reader: &StoreReader, form: Form, file: &mut Output) -> Result<usize, Exit> {
    let Some((low, high)) = reader.revisions().await.or_exit(STORE)? else { return Ok(0) };
    let parts = (low..=high).step_by(PAGE).map(|low| (low, low.saturating_add(PAGE as i64 - 1).min(high)));
    let part = |revisions| {
        let reader = reader.clone();
        tokio::spawn(async move {
            let rows = match form {
                Form::Tpf => reader.results_with_keys(revisions).await?,
                _ => reader.results_within(&Filter::default(), revisions).await?,
            };
            // Which one is the first of all is not known here.
            Ok::<_, StoreError>((rendered(form, &rows, false), rows.len()))
        })
    };
    let mut parts = stream::iter(parts).map(part).buffered(workers() + 1);
    let mut rows = 0;
    while let Some(part) = parts.next().await {
        let (text, count) = part.or_exit(FAILED)?.or_exit(STORE)?;
        let first = rows == 0 && form == Form::Har;
        file.put(if first { text.strip_prefix(',').unwrap_or(&text) } else { &text })?;
        rows += count;
    }
    Ok(rows)
}

/// How many parts are read at a time.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

fn rendered(form: Form, rows: &[ResultRow], first: bool) -> String {
    let mut text = String::with_capacity(rows.len() * 1400);
    for (n, row) in rows.iter().enumerate() {
        put(&mut text, form, row, first && n == 0);
    }
    text
}

fn put(text: &mut String, form: Form, row: &ResultRow, first: bool) {
    match form {
        Form::Tpf => torperf::put_line_for_ever(text, row),
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
