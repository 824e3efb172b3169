//! Why an answer has no rows.

use std::collections::BTreeSet;

use rusqlite::Result;

use super::question::{Question, Statistic};
use crate::store::{Filter, Reading, Series};

/// So many names are listed, at most.
const MOST_NAMES: usize = 20;

/// What to say of an answer without rows.
pub(super) fn reason(reading: &Reading<'_>, question: &Question) -> Result<String> {
    let all: Vec<Series> = reading.series(&Filter::default())?.into_iter().map(|known| known.series).collect();
    let filter = &question.filter;
    if all.is_empty() {
        return Ok("there are no results yet".to_owned());
    }
    type Name = fn(&Series) -> &str;
    let asked: [(&str, &Option<String>, Name); 3] = [
        ("source", &filter.source, |series| &series.source),
        ("experiment", &filter.experiment, |series| &series.experiment),
        ("tor", &filter.tor, |series| &series.tor),
    ];
    for (what, asked, name) in asked {
        if let Some(asked) = asked
            && !all.iter().any(|series| name(series) == asked)
        {
            return Ok(format!(
                "there is no result of the {what} {asked:?}; there are {}",
                names(all.iter().map(name))
            ));
        }
    }
    if question.statistic == Statistic::Paired {
        let of_it = all.iter().filter(|series| Some(&*series.experiment) == filter.experiment.as_deref());
        let tors: BTreeSet<&str> = of_it.map(|series| &*series.tor).collect();
        return Ok(match tors.len() {
            0 | 1 => format!("that experiment compares no tors: all its results are of {}", names(tors.into_iter())),
            _ => "no slot of that time has results of several tors".to_owned(),
        });
    }
    Ok("there is no result of that time that the filters let through and that tells of this".to_owned())
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    let more = if names.len() > MOST_NAMES { ", …" } else { "" };
    names.into_iter().take(MOST_NAMES).collect::<Vec<_>>().join(", ") + more
}
