//! `perfd validate`: where files depart from their formats, by line and rule.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{DATA, Exit, NO_INPUT, OK};
use super::output;
use crate::import::naming::{self, Promise};
use crate::import::torperf_data::{self, Extra};
use crate::import::{self, Bytes, Format, Input, Rule, Site, Violation};

/// So many violations of a file are shown; the others are counted.
const SHOWN: u64 = 100;

/// Say where files depart from the formats that Tor's tools read
///
/// Reads Torperf's key=value (.tpf), .data and .extradata files, and OnionPerf's analysis JSON, each packed by xz or
/// not, and prints FILE:LINE: RULE: SENTENCE for each departure, the first 100 of a file; for JSON, the place in the
/// document stands for the line. The words of the rules stay the same from version to version.
///
/// A file named SOURCE-FILESIZE-YYYY-MM-DD.tpf must hold results of that source, size and UTC day alone. Warnings tell
/// what is no departure from the format, but what some tool would miss.
///
/// It ends with 65 if a file departs from its format, and with 66 if one can't be opened.
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// The files; - is what comes in on stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The files are for CollecTor: a name that it would not fetch is a departure too, and not a warning alone
    #[arg(long)]
    collector: bool,
}

/// Validates each file; gives the exit code.
pub fn run(args: ValidateArgs) -> Result<u8, Exit> {
    let mut code = OK;
    for path in &args.files {
        let shown = path.display().to_string();
        let opened: io::Result<Bytes<'static>> = match path.as_os_str() == "-" {
            true => Ok(Box::new(BufReader::new(io::stdin()))),
            false => File::open(path).map(|file| Box::new(BufReader::with_capacity(1 << 16, file)) as Bytes<'static>),
        };
        match opened {
            Ok(bytes) => {
                let mut report = Report { file: &shown, violations: 0, warnings: 0, read_on: true };
                let results = validate(path, bytes, args.collector, &mut report)?;
                report.end(results)?;
                if report.violations > 0 && code == OK {
                    code = DATA;
                }
                if !report.read_on {
                    break;
                }
            }
            Err(error) => {
                output::note(format_args!("{shown} can't be opened: {error}"));
                code = NO_INPUT;
            }
        }
    }
    Ok(code)
}

/// What is told of one file.
struct Report<'a> {
    file: &'a str,
    violations: u64,
    warnings: u64,
    /// Whether somebody reads what is printed.
    read_on: bool,
}

impl Report<'_> {
    fn violation(&mut self, violation: &Violation) -> Result<(), Exit> {
        self.violations += 1;
        if self.violations <= SHOWN { self.print("", violation) } else { Ok(()) }
    }

    fn warning(&mut self, violation: &Violation) -> Result<(), Exit> {
        self.warnings += 1;
        if self.warnings <= SHOWN { self.print("warning: ", violation) } else { Ok(()) }
    }

    fn print(&mut self, kind: &str, Violation { site, rule, sentence }: &Violation) -> Result<(), Exit> {
        let place = if *site == Site::File { String::new() } else { format!("{site}:") };
        self.say(&format!("{}:{place} {kind}{}: {sentence}", self.file, rule.word()))
    }

    fn end(&mut self, results: u64) -> Result<(), Exit> {
        let mut summary = format!("{}: {}", self.file, counted(results, "result"));
        let counts = [(self.violations, "violation"), (self.warnings, "warning")];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            summary += &format!(", {}", counted(count, what));
            if count > SHOWN {
                summary += &format!(" of which {SHOWN} are shown");
            }
        }
        self.say(&summary)
    }

    fn say(&mut self, line: &str) -> Result<(), Exit> {
        self.read_on = self.read_on && output::print(output::harmless(line) + "\n")?;
        Ok(())
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Reads a file through; gives how many results are in it.
fn validate(path: &Path, bytes: Bytes<'_>, collector: bool, report: &mut Report<'_>) -> Result<u64, Exit> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if Format::of(&name, b"") == Some(Format::ExtraData) {
        match import::unpacked(bytes) {
            Ok((bytes, ..)) => Extra::new(bytes).try_for_each(|violation| report.violation(&violation))?,
            Err(violation) => report.violation(&violation)?,
        }
        return Ok(0);
    }
    // Who measured, and how much, is no question of form.
    let (source, size) = torperf_data::named(&name);
    let (source, size) = (source.is_none().then(|| "torperf".to_owned()), size.is_none().then_some(1));
    let mut runs = match import::open(Input { name: &name, bytes, extra: None, source, size }) {
        Ok(runs) => runs,
        Err(violation) => {
            report.violation(&violation)?;
            return Ok(0);
        }
    };
    let promise = Promise::of(&name).filter(|_| runs.format() == Format::Torperf);
    if name != "-"
        && let Some(violation) = misnamed(&name, runs.format(), runs.is_packed())
    {
        if collector { report.violation(&violation)? } else { report.warning(&violation)? }
    }
    let mut results = 0;
    while let Some(run) = runs.next() {
        match run {
            Ok(run) => {
                results += 1;
                for violation in promise.iter().flat_map(|promise| promise.check(&run, &runs.site())) {
                    report.violation(&violation)?;
                }
            }
            Err(violation) => report.violation(&violation)?,
        }
        for warning in runs.take_warnings() {
            report.warning(&warning)?;
        }
        if !report.read_on {
            break;
        }
    }
    Ok(results)
}

/// That CollecTor would not fetch a file of this name.
fn misnamed(name: &str, format: Format, packed: bool) -> Option<Violation> {
    let (fits, form) = match format {
        Format::Torperf => (Promise::of(name).is_some(), "SOURCE-FILESIZE-YYYY-MM-DD.tpf"),
        Format::OnionPerf => {
            (naming::is_analysis(name) && packed, "YYYY-MM-DD.onionperf.analysis.json.xz, packed by xz")
        }
        Format::Data | Format::ExtraData => return None,
    };
    let sentence = format!("CollecTor takes only files named {form}");
    (!fits).then_some(Violation { site: Site::File, rule: Rule::FileName, sentence })
}
