//! A file a UTC day.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use anyhow::Context;

use super::ExportArgs;
use super::output::Folder;
use super::rows::PAGE;
use crate::cli::exit::{Exit, FAILED, OrExit, STORE};
use crate::cli::output::note;
use crate::clock::UnixMicros;
use crate::collector::{DayFiles, FinishedDay, SETTLE, bytes_of};
use crate::config::Config;
use crate::export::collector::{date, day_of, html, start_of, xml};
use crate::export::onionperf::measurement_ip;
use crate::measurement::Kind;
use crate::store::{Filter, Listed, Order, Publishable, PublishedFile, StoreReader};

/// The files of finished days. What was published stays as it is; what has settled since is made now.
pub async fn collector(
    reader: &StoreReader,
    config: Option<&Config>,
    args: &ExportArgs,
    folder: &Folder,
) -> Result<String, Exit> {
    let wanted = |day: i64| {
        args.since.is_none_or(|since| start_of(day) >= since) && args.until.is_none_or(|until| start_of(day) < until)
    };
    let mut listed: Vec<Listed> = Vec::new();
    let mut after = String::new();
    loop {
        let page = reader.published_after(&after).await.or_exit(STORE)?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.name);
        for file in page {
            if !published_on(&file).is_some_and(wanted) {
                continue;
            }
            let file = reader.published_file(&file.name).await.or_exit(STORE)?;
            if let Some(file) = file {
                listed.push(put_file(folder, file)?);
            }
        }
    }
    let source = match config {
        Some(config) => Some(config.source.clone()),
        None => last_source(reader).await?,
    };
    let but = config.iter().flat_map(|config| &config.experiments).filter(|experiment| !experiment.publish);
    let but: Vec<String> = but.map(|experiment| experiment.name.clone()).collect();
    let mut left_out = Vec::new();
    if let Some(source) = &source {
        let mut since = args.since.unwrap_or(UnixMicros(i64::MIN));
        while let Some(start) = reader.first_start(source, since).await.or_exit(STORE)? {
            let day = day_of(start);
            since = start_of(day + 1);
            if !wanted(day) || reader.is_published(day).await.or_exit(STORE)? {
                continue;
            }
            if !args.include_today && !has_settled(reader, day).await? {
                left_out.push(date(day));
                continue;
            }
            let (which, ip) = (
                Publishable { source: source.clone(), since: start_of(day), until: since, but: but.clone() },
                ip(config),
            );
            for file in make(reader, &which, &ip, day).await?.published.files {
                listed.push(put_file(folder, file)?);
            }
        }
    }
    if !left_out.is_empty() {
        note(format_args!(
            "left out, since not all of it is there yet: {} (--include-today takes it as it is)",
            left_out.join(", ")
        ));
    }
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    put_text(folder, "index.xml", &xml(&listed))?;
    put_text(folder, "index.html", &html(source.as_deref().unwrap_or("nobody"), &listed))?;
    Ok(files(listed.len()))
}

/// OnionPerf's analysis of every day and source.
pub async fn onionperf(
    reader: &StoreReader,
    config: Option<&Config>,
    filter: &Filter,
    folder: &Folder,
) -> Result<String, Exit> {
    let mut written = 0;
    let mut since = filter.since.unwrap_or(UnixMicros(i64::MIN));
    while let Some(start) = reader.next_start(since).await.or_exit(STORE)? {
        if filter.until.is_some_and(|until| start >= until) {
            break;
        }
        let day = day_of(start);
        let until = filter.until.map_or(start_of(day + 1), |until| until.min(start_of(day + 1)));
        let of_day = Filter { since: Some(start), until: Some(until), kind: Some(Kind::Download), ..filter.clone() };
        since = start_of(day + 1);
        let mut sources: BTreeMap<String, DayFiles> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = reader.results_page(&of_day, after, Order::Oldest, PAGE).await.or_exit(STORE)?;
            for row in &page.rows {
                let files = match sources.get_mut(&row.source) {
                    Some(files) => files,
                    None => {
                        let files = DayFiles::new(&row.source, &ip(config), day).or_exit(FAILED)?;
                        sources.entry(row.source.clone()).or_insert(files)
                    }
                };
                files.add(std::slice::from_ref(row)).or_exit(FAILED)?;
            }
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        for (source, files) in sources {
            let folder = folder.sub(&folder_name(&source))?;
            for file in finish(files)?.published.files.into_iter().filter(|file| file.listed.name.ends_with(".xz")) {
                put_file(&folder, file)?;
                written += 1;
            }
        }
    }
    Ok(files(written))
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// Whether the day is over, and none of its slots is running.
async fn has_settled(reader: &StoreReader, day: i64) -> Result<bool, Exit> {
    let (since, until, now) = (start_of(day), start_of(day + 1), UnixMicros::now());
    let last_end = reader.last_end(since, until).await.or_exit(STORE)?;
    let running = reader.running_before(until).await.or_exit(STORE)?;
    Ok(now >= until.plus(SETTLE) && last_end.is_none_or(|end| now >= end.plus(SETTLE)) && !running)
}

async fn make(reader: &StoreReader, which: &Publishable, ip: &str, day: i64) -> Result<FinishedDay, Exit> {
    let mut files = DayFiles::new(&which.source, ip, day).or_exit(FAILED)?;
    let mut after = None;
    loop {
        let rows = reader.publishable_page(which, after.take(), PAGE).await.or_exit(STORE)?;
        files.add(&rows).or_exit(FAILED)?;
        match rows.last() {
            Some(last) if rows.len() == PAGE => after = Some((last.measurement.start, last.measurement.id.clone())),
            _ => return finish(files),
        }
    }
}

fn finish(mut files: DayFiles) -> Result<FinishedDay, Exit> {
    while !files.finish_some().or_exit(FAILED)? {}
    files.into_finished(UnixMicros::now()).or_exit(FAILED)
}

async fn last_source(reader: &StoreReader) -> Result<Option<String>, Exit> {
    // What was imported is somebody else's.
    let own = Filter { imported: Some(false), ..Filter::default() };
    let page = reader.results_page(&own, None, Order::Newest, 1).await.or_exit(STORE)?;
    Ok(page.rows.into_iter().next().map(|row| row.source))
}

/// The name of a source's folder. A source that was imported may be anything, `../..` and `/etc` too: all but letters,
/// digits and hyphens are percent-escaped, and so other sources have other names.
fn folder_name(source: &str) -> String {
    if source.is_empty() {
        return "%".to_owned();
    }
    source.bytes().fold(String::with_capacity(source.len()), |mut name, byte| {
        match byte.is_ascii_alphanumeric() || byte == b'-' {
            true => name.push(char::from(byte)),
            false => {
                let _ = write!(name, "%{byte:02X}");
            }
        }
        name
    })
}

/// The day of a published file, by its name.
fn published_on(file: &Listed) -> Option<i64> {
    let name = file.name.strip_suffix(".tpf").or(file.name.strip_suffix(".onionperf.analysis.json.xz"))?;
    let date = name.get(name.len().checked_sub(10)?..)?;
    UnixMicros::parse(date).map(day_of)
}

fn ip(config: Option<&Config>) -> String {
    measurement_ip(config.and_then(|config| config.public.as_ref()).map(|public| public.host.as_str()))
}

fn put_file(folder: &Folder, file: PublishedFile) -> Result<Listed, Exit> {
    let listed = file.listed.clone();
    let mut output = folder.create(&listed.name)?;
    io::copy(&mut bytes_of(file), &mut output)
        .with_context(|| format!("can't write {}", listed.name))
        .or_exit(FAILED)?;
    output.finish()?;
    Ok(listed)
}

fn put_text(folder: &Folder, name: &str, text: &str) -> Result<(), Exit> {
    let mut output = folder.create(name)?;
    output.put(text)?;
    output.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_one_plain_name() {
        for (source, name) in [
            ("op-nl2", "op-nl2"),
            ("../../etc", "%2E%2E%2F%2E%2E%2Fetc"),
            ("/tmp/abs", "%2Ftmp%2Fabs"),
            ("..", "%2E%2E"),
            (".", "%2E"),
            ("a%2Fb", "a%252Fb"),
            ("é", "%C3%A9"),
            ("", "%"),
        ] {
            assert_eq!(folder_name(source), name, "{source}");
        }
    }
}
