//! `perfd annotate`, which writes a note, and `perfd annotations`, which lists them.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use nix::unistd::{User, getuid};
use serde::Deserialize;

use super::ask::{self, ServiceArgs};
use super::exit::{Exit, FAILED, OrExit, USAGE};
use super::opened::with_store;
use super::output;
use super::results::run_name;
use crate::annotation::{About, Annotation, Draft, LONGEST_NAME, Subject};
use crate::clock::UnixMicros;
use crate::export::annotations::AnnotationJson;
use crate::measurement::RunId;
use crate::store::{Store, StoreError};

/// What the environment calls the token.
const TOKEN_VARIABLE: &str = "PERFD_TOKEN";

/// A token's file is read so far.
const LONGEST_FILE: u64 = 1 << 10;

/// Lines of the list, where no limit is given.
const ROWS: usize = 20;

/// A note is shown so far in the list, in characters.
const SHOWN: usize = 80;

/// Write a note on a result, or on a time
///
/// It is asked of a running perfd with a token (`perfd token add`), which is taken from the environment variable
/// PERFD_TOKEN or from a file: a command line can be seen by others. With --store it is written into the store
/// itself, also beside a running perfd. Notes are kept for ever; one that was wrong is replaced by another.
#[derive(Args, Debug)]
pub struct AnnotateArgs {
    /// The run that it is about: its name, or the beginning of it (six digits or more)
    #[arg(value_parser = run_name,
          conflicts_with_all = ["since", "until", "source", "experiment", "tor"])]
    run: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
    /// Write into this store, without a service and a token
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    store: Option<PathBuf>,
    /// The token's file, in place of PERFD_TOKEN
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    token_file: Option<PathBuf>,
    /// Or the time that it is about, which begins at this moment (2026-11-22T10:00:00Z, 2026-11-22 or seconds since 1970)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// And ends with this one; without, the note is about the moment alone, and touches only runs that were under way
    #[arg(long, value_name = "TIME", requires = "since")]
    until: Option<String>,
    /// Of that time: only results of this source
    #[arg(long)]
    source: Option<String>,
    /// Only results of this experiment
    #[arg(long)]
    experiment: Option<String>,
    /// Only results through this tor
    #[arg(long)]
    tor: Option<String>,
    /// The note
    #[arg(long, value_name = "TEXT")]
    note: String,
    /// A tag, of a-z, 0-9 and -; may be given again
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// The number of a note that this one takes the place of
    #[arg(long, value_name = "ID")]
    replaces: Option<i64>,
}

/// List notes on results
///
/// The list shows the latest, the other formats all that the filters let through (up to 1000), oldest first.
#[derive(Args, Debug)]
pub struct AnnotationsArgs {
    /// Only those that touch this run: its name, or the beginning of it
    #[arg(value_parser = run_name)]
    run: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
    /// How to print them
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    format: ListFormat,
    /// Only those with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only those about this source, or about all
    #[arg(long)]
    source: Option<String>,
    /// Only those about this experiment, or about all
    #[arg(long)]
    experiment: Option<String>,
    /// Only those about this tor, or about all
    #[arg(long)]
    tor: Option<String>,
    /// Only those about a time that reaches to this moment
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only those about a time that begins before this moment
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// How notes are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// For people
    Table,
    /// One JSON object with all of them
    Json,
    /// Comma-separated values
    Csv,
}

#[derive(Deserialize)]
struct Many {
    annotations: Vec<AnnotationJson>,
}

/// Writes a note.
pub fn annotate(args: AnnotateArgs) -> Result<(), Exit> {
    let AnnotateArgs { run, service, store, token_file, since, until, source, experiment, tor, note, tags, replaces } =
        args;
    if run.is_none() && since.is_none() {
        let remedy = "name a RUN, or give --since TIME, with --until TIME for more than a moment";
        return Err(anyhow!("a note is about a run or a time; {remedy}")).or_exit(USAGE);
    }
    let draft = Draft { run, since, until, source, experiment, tor, note, tags, replaces };
    let subject = draft.check().map_err(|reason| anyhow!(reason)).or_exit(USAGE)?;
    let id = match store {
        Some(path) => {
            let author = user();
            with_store(&path, async |store| write(store, draft, subject, author).await)?.id
        }
        None => {
            let token = token(token_file)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
            runtime.block_on(async {
                let response = ask::post(&service, &["annotations"], &token, &draft).await?;
                Ok::<_, Exit>(ask::read::<AnnotationJson>(response).await?.id)
            })?
        }
    };
    output::print(format!("annotation {id}\n")).map(drop)
}

/// Lists notes.
pub fn annotations(args: AnnotationsArgs) -> Result<(), Exit> {
    let table = args.format == ListFormat::Table;
    let mut query = Vec::new();
    let filters = [
        ("run", &args.run),
        ("tag", &args.tag),
        ("source", &args.source),
        ("experiment", &args.experiment),
        ("tor", &args.tor),
        ("since", &args.since),
        ("until", &args.until),
    ];
    query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    query.extend(args.limit.or(table.then_some(ROWS)).map(|limit| ("limit", limit.to_string())));
    query.extend(table.then(|| ("order", "newest".to_owned())));
    let page = if args.format == ListFormat::Csv { "annotations.csv" } else { "annotations.json" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(async {
        let response = ask::get(&args.service, &[page], &query).await?;
        if !table {
            return ask::copy(response).await;
        }
        let Many { mut annotations } = ask::read(response).await?;
        if annotations.is_empty() {
            output::note("there are no notes yet, or none that the filters let through");
            return Ok(());
        }
        annotations.reverse();
        let mut rows = vec![["ID", "WRITTEN", "BY", "ABOUT", "TAGS", "NOTE"].map(str::to_owned).to_vec()];
        rows.extend(annotations.iter().map(row));
        output::print(output::harmless(&output::columns(&rows))).map(drop)
    })
}

fn row(note: &AnnotationJson) -> Vec<String> {
    let moment = |text: &str| text.split('.').next().unwrap_or_default().replace('T', " ");
    let mut about = match &note.run_id {
        Some(run) => format!("run {}", run.get(..8).unwrap_or(run)),
        None if note.since == note.until => moment(&note.since),
        None => format!("{} to {}", moment(&note.since), moment(&note.until)),
    };
    if note.run_id.is_none() {
        for (key, name) in [("source", &note.source), ("experiment", &note.experiment), ("tor", &note.tor)] {
            about += &name.as_ref().map_or(String::new(), |name| format!(", {key} {name}"));
        }
    }
    let mut text: String = note.note.chars().take(SHOWN).collect();
    if text.len() < note.note.len() {
        text += "…";
    }
    if let Some(later) = note.replaced_by {
        text = format!("(replaced by {later}) {text}");
    }
    vec![note.id.to_string(), moment(&note.created), note.author.clone(), about, note.tags.join(" "), text]
}

/// Writes it into the store.
async fn write(store: &Store, draft: Draft, subject: Subject, author: String) -> Result<Annotation, StoreError> {
    let about = match subject {
        Subject::Time(about) => about,
        Subject::Run(name) => {
            let no_run = |why: &str| StoreError::Refused(format!("{why} {name}"));
            let mut named = match RunId::parse(&name) {
                Some(id) => vec![id],
                None => store.reader().runs_named(&name).await?,
            };
            let id = match named.len() {
                0 | 1 => named.pop().ok_or_else(|| no_run("there is no result"))?,
                _ => return Err(no_run("more than one result begins with")),
            };
            let whole = store.reader().result(&id).await?;
            About::run(&whole.ok_or_else(|| no_run("there is no result"))?.row)
        }
    };
    store.annotate(draft.written(about, author, UnixMicros::now())).await
}

/// The name of who runs this.
fn user() -> String {
    let uid = getuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    name.map_or(format!("user {uid}"), |name| name.chars().take(LONGEST_NAME).collect())
}

fn token(file: Option<PathBuf>) -> Result<String, Exit> {
    let token = match file {
        Some(path) => {
            let mut text = String::new();
            let read = File::open(&path).and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text));
            read.with_context(|| format!("can't read the token's file {}", path.display())).or_exit(USAGE)?;
            text
        }
        None => std::env::var(TOKEN_VARIABLE)
            .map_err(|_| {
                anyhow!("a token is needed: set {TOKEN_VARIABLE}, or give --token-file FILE (or --store FILE, to do without)")
            })
            .or_exit(USAGE)?,
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(anyhow!("what is given for a token is none; `perfd token add NAME` makes one")).or_exit(USAGE);
    }
    Ok(token.to_owned())
}
