//! `perfd import`: files of Torperf and OnionPerf into the store.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, User, geteuid};
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{CONFIG, DATA, Exit, FAILED, INTERRUPTED, NO_INPUT, OK, OrExit, PRIVILEGES, STORE};
use super::output;
use crate::config::units::parse_size;
use crate::config::{Config, folder_of, real_folder_of};
use crate::import::{self, Bytes, Format, Input, Site, Violation};
use crate::store::{Import, ImportCounts, Importer, StoreError};

/// So many violations of a file are shown.
const SHOWN: u64 = 100;

/// How often progress is shown on a terminal, and elsewhere.
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(5);

/// How long an import that was told to end may take to do so: it may wait for input that never comes.
const FAREWELL: Duration = Duration::from_secs(2);

/// Put files of Torperf and OnionPerf into the store
///
/// Reads Torperf's key=value (.tpf), .data files (with the .extradata of the same name, where that is named too), and
/// OnionPerf's analysis JSON, each packed by xz or not. All results of a file become visible together, or none of
/// them: what does not parse is told as FILE:LINE: RULE: SENTENCE, and the next file is gone on with. A result that
/// the store has already (the same source, START to the millisecond, size, and local port where both tell it) is not
/// stored again, so importing a file twice changes nothing.
///
/// A perfd that measures into the same store may go on meanwhile. Run it as that perfd's user. A run whose file names
/// no experiment gets `torperf`, and one whose file names no tor gets `-`.
///
/// It ends with 65 if a file departs from its format, with 66 if one can't be opened, and with 130 if a signal ended
/// it: of the file at hand nothing is visible then, and the next import removes what it left.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The configuration that names the store
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// The store's file, in place of the configuration's; made if it is not there
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Who measured, of .data files, in place of what their names say
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// How much was fetched, of .data files, in place of what their names say: 51200 or "50 KiB"
    #[arg(long, value_parser = |text: &str| parse_size(text).map_err(|e| e.to_string()))]
    size: Option<u64>,
    /// The files; - is what comes in on stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Imports each file; gives the exit code.
pub fn run(args: ImportArgs) -> Result<u8, Exit> {
    let path = match &args.store {
        Some(path) => path.clone(),
        None => Config::load(&args.config).or_exit(CONFIG)?.store,
    };
    check_owner(&path).or_exit(PRIVILEGES)?;
    umask(Mode::from_bits_truncate(0o027));
    let _lock = lock(&real_folder_of(&path)).or_exit(STORE)?;
    let importer = Importer::open(&path).or_exit(STORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).or_exit(FAILED)?;
        let mut interrupt = signal(SignalKind::interrupt()).or_exit(FAILED)?;
        let stop = Arc::new(AtomicBool::new(false));
        let all = All { args, path, stop: Arc::clone(&stop) };
        let mut work = tokio::task::spawn_blocking(move || all.import(importer));
        tokio::select! {
            done = &mut work => return done.or_exit(FAILED)?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
        if let Ok(done) = tokio::time::timeout(FAREWELL, work).await {
            return done.or_exit(FAILED)?;
        }
        // It waits for input; what it staged is invisible, and SQLite is used to such an end.
        interrupted();
        std::process::exit(INTERRUPTED.into())
    })
}

fn interrupted() {
    output::note("told to end; nothing of the file at hand is visible, and the next import removes what it left");
}

/// Whoever else wrote here would leave files beside the store that its own perfd can't write.
fn check_owner(store: &Path) -> anyhow::Result<()> {
    let owned = fs::metadata(store).map(|found| (store, found));
    let owned = owned.or_else(|_| fs::metadata(folder_of(store)).map(|found| (folder_of(store), found)));
    let Ok((what, found)) = owned else { return Ok(()) };
    let owner = Uid::from_raw(found.uid());
    if owner == geteuid() {
        return Ok(());
    }
    let user = User::from_uid(owner).ok().flatten().map_or_else(|| format!("'#{owner}'"), |user| user.name);
    Err(anyhow!("{} belongs to {user}; import as that user: sudo -u {user} perfd import …", what.display()))
}

/// Makes sure that no other import works on a store in this folder.
fn lock(folder: &Path) -> anyhow::Result<Flock<File>> {
    let path = folder.join("perfd-import.lock");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| anyhow!("can't open {}: {e}; import as the user that the store belongs to", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow!("another import works on this store ({} is locked); wait for it, or end it", path.display())
    })
}

/// The files, and how they are imported.
struct All {
    args: ImportArgs,
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

/// How far one file came.
enum End {
    Imported(ImportCounts),
    /// So many departures from its format.
    Refused(u64),
    Stopped,
}

impl All {
    fn import(&self, mut importer: Importer) -> Result<u8, Exit> {
        let of_store = |error: StoreError| anyhow!("{}: {error}", self.path.display());
        importer.remove_unfinished().map_err(of_store).or_exit(STORE)?;
        let mut code = OK;
        for file in &self.args.files {
            if is_extra(file) && self.args.files.iter().any(|other| is_extra_of(file, other)) {
                continue;
            }
            let shown = file.display().to_string();
            let passed = Arc::new(AtomicU64::new(0));
            let (bytes, extra) = match self.open(file, &passed) {
                Ok(opened) => opened,
                Err((which, error)) => {
                    output::note(format_args!("{} can't be opened: {error}", which.display()));
                    code = NO_INPUT;
                    continue;
                }
            };
            let name = file.file_name().unwrap_or(OsStr::new("-")).to_string_lossy();
            let (source, size) = (self.args.source.clone(), self.args.size);
            let mut progress = Progress::new(&shown, passed);
            let end = match import::open(Input { name: &name, bytes, extra, source, size }) {
                Ok(runs) => self.one(&mut importer, &name, runs, &mut progress).map_err(of_store).or_exit(STORE)?,
                Err(violation) => {
                    progress.tell(&violation);
                    End::Refused(1)
                }
            };
            progress.clear();
            match end {
                End::Imported(ImportCounts { new, known }) => {
                    output::line(format_args!("{}: {new} new, {known} known already", output::harmless(&shown)));
                }
                End::Refused(violations) => {
                    let more =
                        if violations > SHOWN { format!(" (the first {SHOWN} are shown)") } else { String::new() };
                    let departures = if violations == 1 { "departure" } else { "departures" };
                    output::note(format_args!(
                        "{shown}: not imported, for {violations} {departures} from its format{more}"
                    ));
                    code = if code == OK { DATA } else { code };
                }
                End::Stopped => {
                    interrupted();
                    return Ok(INTERRUPTED);
                }
            }
        }
        Ok(code)
    }

    /// Imports one file whole, or not at all.
    fn one(
        &self,
        importer: &mut Importer,
        name: &str,
        runs: import::Runs<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<End, StoreError> {
        let mut staged: Option<Import<'_>> = Some(importer.begin(name, runs.format().word())?);
        let mut violations = 0;
        for run in runs {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(End::Stopped);
            }
            match (run, &mut staged) {
                (Ok(run), Some(staged)) => staged.add(run)?,
                (Ok(_), None) => {}
                (Err(violation), _) => {
                    violations += 1;
                    if violations <= SHOWN {
                        progress.tell(&violation);
                    }
                    // The rest is read only for what else is wrong with it.
                    if let Some(staged) = staged.take() {
                        staged.abandon()?;
                    }
                }
            }
            progress.went_on();
        }
        match staged {
            Some(staged) => staged.finish().map(End::Imported),
            None => Ok(End::Refused(violations)),
        }
    }

    /// The file's bytes and, of a `.data` file, those of the `.extradata` that is named too.
    fn open(&self, file: &Path, passed: &Arc<AtomicU64>) -> Result<(Bytes<'static>, Option<Bytes<'static>>), Failed> {
        let open = |path: &Path| -> Result<Bytes<'static>, Failed> {
            if path.as_os_str() == "-" {
                return Ok(counted(io::stdin(), passed));
            }
            File::open(path).map(|file| counted(file, passed)).map_err(|error| (path.to_owned(), error))
        };
        let extra = self.args.files.iter().find(|other| is_extra(other) && is_extra_of(other, file));
        Ok((open(file)?, extra.map(|extra| open(extra)).transpose()?))
    }
}

type Failed = (PathBuf, io::Error);

/// Whether the file is of the form that holds no results of its own.
fn is_extra(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Format::of(&name, b"") == Some(Format::ExtraData)
}

/// Whether `extra` goes with the `.data` file `data`: their names differ in the ending alone.
fn is_extra_of(extra: &Path, data: &Path) -> bool {
    let stem = |file: &Path, ending: &str| {
        let name = file.to_string_lossy();
        name.strip_suffix(".xz").unwrap_or(&name).strip_suffix(ending).map(str::to_owned)
    };
    let (extra, data) = (stem(extra, ".extradata"), stem(data, ".data"));
    extra.is_some() && extra == data
}

fn counted(input: impl Read + Send + 'static, passed: &Arc<AtomicU64>) -> Bytes<'static> {
    Box::new(BufReader::with_capacity(1 << 16, Counted { input, passed: Arc::clone(passed) }))
}

/// Counts the bytes that are read.
struct Counted<R> {
    input: R,
    passed: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.passed.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// How far a file is, on stderr: all the time on a terminal, now and then elsewhere.
struct Progress<'a> {
    file: &'a str,
    passed: Arc<AtomicU64>,
    results: u64,
    terminal: bool,
    begun: Instant,
    shown: Instant,
}

impl<'a> Progress<'a> {
    fn new(file: &'a str, passed: Arc<AtomicU64>) -> Self {
        let now = Instant::now();
        Progress { file, passed, results: 0, terminal: io::stderr().is_terminal(), begun: now, shown: now }
    }

    /// One more result was read.
    fn went_on(&mut self) {
        self.results += 1;
        // The clock is not asked for each of them.
        if !self.results.is_multiple_of(256) || self.shown.elapsed() < if self.terminal { OFTEN } else { SELDOM } {
            return;
        }
        self.shown = Instant::now();
        let mib = self.passed.load(Ordering::Relaxed) as f64 / f64::from(1 << 20);
        let rate = self.results as f64 / self.begun.elapsed().as_secs_f64();
        let line = format!("{}: {} results, {mib:.1} MiB, {rate:.0} results/s", self.file, self.results);
        if self.terminal {
            // Nobody reads it, if it can't be written.
            let mut err = io::stderr();
            let _ = write!(err, "\r\x1b[K{}", output::harmless(&line)).and_then(|()| err.flush());
        } else {
            output::note(line);
        }
    }

    fn tell(&self, Violation { site, rule, sentence }: &Violation) {
        self.clear();
        let place = match site {
            Site::File => String::new(),
            Site::ExtraLine(line) => format!("{line} of its .extradata:"),
            other => format!("{other}:"),
        };
        output::note(format_args!("{}:{place} {}: {sentence}", self.file, rule.word()));
    }

    /// Takes what was shown from the terminal.
    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
