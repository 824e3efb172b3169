//! The log: to the terminal, and to a file a day that `tail -F` follows under one name.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat, LogLevel, folder_of};

/// Why there is no log. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum LogError {
    #[error("can't write the log {}: {error}; its folder must be there, and belong to the user that perfd runs as", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("the log {} is a file that perfd did not make, and can't be moved aside: {error}", path.display())]
    InTheWay { path: PathBuf, error: io::Error },
    #[error("can't start the log: {0}")]
    Init(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts the log, for the whole process and for good.
///
/// The file's lines go to `FILE.YYYY-MM-DD`, and `FILE` itself is a symbolic link to today's; of those,
/// as many are kept as the configuration says. So the log needs no rotation from outside.
pub fn start(log: &Log) -> Result<(), LogError> {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let terminal = layer(log.format, io::stderr, io::IsTerminal::is_terminal(&io::stderr()));
    let file = match &log.file {
        Some(path) => Some(layer(log.format, std::sync::Mutex::new(appender(path, log.keep_days)?), false)),
        None => None,
    };
    tracing_subscriber::registry().with(level).with(terminal).with(file).try_init()?;
    Ok(())
}

fn layer<S, W>(format: LogFormat, writer: W, colour: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour).with_target(false);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

fn appender(path: &Path, keep_days: usize) -> Result<RollingFileAppender, LogError> {
    let folder = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The appender would replace it by its link.
    if path.symlink_metadata().is_ok_and(|found| !found.is_symlink()) {
        let aside = path.with_file_name(format!("{name}.before-{}", crate::clock::UnixMicros::now().0));
        std::fs::rename(path, aside).map_err(|error| LogError::InTheWay { path: path.to_owned(), error })?;
    }
    let unwritable = |error| LogError::File { path: path.to_owned(), error };
    // The appender says this in words of its own, straight to the terminal.
    std::fs::read_dir(folder).map_err(unwritable)?;
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(&name)
        .latest_symlink(&name)
        .max_log_files(keep_days)
        .build(folder)
        .map_err(|e| unwritable(system_error(&e)))
}

/// What the system said, without what the appender says of it.
fn system_error(error: &InitError) -> io::Error {
    let said = error.source().and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    said.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
