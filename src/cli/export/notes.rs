//! The notes on the results that are written, in a file beside them.

use super::output::Folder;
use super::rows::{Form, PAGE};
use crate::cli::exit::{Exit, OrExit, STORE};
use crate::export::annotations::{AnnotationJson, CSV_HEADER, csv_line};
use crate::store::{AnnotationFilter, Filter, Order, StoreReader};

/// Writes the notes about what `filter` lets through, in the order of revisions, if the form has them. Gives what was
/// written, for people.
pub async fn write(reader: &StoreReader, filter: &Filter, form: Form, folder: &Folder) -> Result<String, Exit> {
    let (name, head) = match form {
        Form::Json => ("annotations.ndjson", ""),
        Form::Csv => ("annotations.csv", CSV_HEADER),
        Form::Tpf | Form::Har => return Ok(String::new()),
    };
    let mut file = folder.create(name)?;
    file.put(head)?;
    let (filter, mut after, mut count) = (AnnotationFilter::from(filter), None, 0);
    loop {
        let page = reader.annotations(&filter, after, Order::Oldest, PAGE).await.or_exit(STORE)?;
        let lines = page.iter().map(AnnotationJson::from).map(|note| match form {
            Form::Csv => csv_line(&note),
            _ => serde_json::to_string(&note).unwrap_or_default() + "\n",
        });
        file.put(lines.collect::<String>())?;
        count += page.len();
        match page.last() {
            Some(last) => after = Some(last.revision),
            None => break,
        }
    }
    file.finish()?;
    Ok(format!(" and {count} notes"))
}
