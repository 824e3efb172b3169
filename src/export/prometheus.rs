//! What perfd tells a monitor: Prometheus' text format (0.0.4), and OpenMetrics 1.0.0.
//!
//! Written by hand: what there is to tell is a closed set, its counters and histograms lie in the store and not in
//! this process, and the crate of the Prometheus project writes OpenMetrics alone. Names and units follow their naming
//! conventions; labels hold names of the configuration and words of closed sets, so their number is bounded.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::clock::UnixMicros;
use crate::measurement::{Cause, Kind, Phase};
use crate::store::{Ended, ExperimentTally, Histogram, LastRuns, SlotCounts};

/// In which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Dialect {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Dialect::Text => "text/plain; version=0.0.4; charset=utf-8",
            Dialect::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All that is told, as of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// perfd's version.
    pub version: &'static str,
    /// The commit that it was built from.
    pub commit: &'static str,
    /// The instance's name.
    pub source: String,
    /// When this perfd was started.
    pub started: UnixMicros,
    /// The experiments of the configuration.
    pub experiments: Vec<Experiment>,
    /// Its tors.
    pub tors: Vec<Tor>,
    /// The store.
    pub store: Store,
    /// What few may have at a time.
    pub places: Vec<Places>,
}

/// An experiment.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Its name.
    pub name: String,
    /// What its runs do.
    pub kind: Kind,
    /// Bytes of payload.
    pub size: u64,
    /// The time between two slots.
    pub every: Duration,
    /// How long a run may take.
    pub timeout: Duration,
    /// Whether its task reports no more.
    pub stuck: bool,
    /// What the store knows of it; `None` where it can't be read.
    pub tally: Option<ExperimentTally>,
}

/// A tor.
#[derive(Clone, Debug)]
pub struct Tor {
    /// What the configuration calls it.
    pub name: String,
    /// Of one under control: whether perfd is connected to it.
    pub up: Option<bool>,
    /// Of one under control: whether it can build circuits.
    pub ready: Option<bool>,
    /// How far its bootstrap is, 0 to 100 %.
    pub bootstrap_percent: Option<u8>,
    /// Of one that perfd starts: how often it was started again.
    pub restarts: Option<u64>,
    /// tor's version.
    pub version: Option<String>,
    /// Of one that is to publish an onion service: whether that is published.
    pub onion_published: Option<bool>,
}

/// The store.
#[derive(Clone, Debug)]
pub struct Store {
    /// Whether its last transaction was committed.
    pub writable: bool,
    /// Whether it could be read just now.
    pub readable: bool,
    /// Bytes of its file; `None` where it can't be read.
    pub database_bytes: Option<u64>,
    /// Bytes of its write-ahead log, likewise.
    pub log_bytes: Option<u64>,
    /// Transactions since perfd was started.
    pub transactions: u64,
}

/// Places that few may have at a time.
#[derive(Clone, Debug)]
pub struct Places {
    /// What they are for, a word.
    pub kind: &'static str,
    /// How many there are.
    pub all: usize,
    /// How many of them are taken.
    pub taken: usize,
}

/// The page that a monitor scrapes.
pub fn render(snapshot: &Snapshot, dialect: Dialect) -> String {
    let mut page = Page { text: String::with_capacity(16 * 1024), dialect };
    process(&mut page, snapshot);
    experiments(&mut page, &snapshot.experiments);
    slots(&mut page, &snapshot.experiments);
    last_runs(&mut page, &snapshot.experiments);
    totals(&mut page, &snapshot.experiments);
    tors(&mut page, &snapshot.tors);
    store(&mut page, &snapshot.store);
    places(&mut page, &snapshot.places);
    if dialect == Dialect::OpenMetrics {
        page.text += "# EOF\n";
    }
    page.text
}

fn process(page: &mut Page, snapshot: &Snapshot) {
    page.family(Type::Info, "perfd_build", "Which perfd this is.", |family| {
        family.add(&[("version", snapshot.version), ("commit", snapshot.commit)], 1);
    });
    page.family(Type::Info, "perfd_instance", "The instance's name, the SOURCE of its results.", |family| {
        family.add(&[("source", &snapshot.source)], 1);
    });
    page.family(Type::Gauge("seconds"), "process_start_time_seconds", "When this perfd was started.", |family| {
        family.add(&[], seconds(snapshot.started.0));
    });
}

fn experiments(page: &mut Page, all: &[Experiment]) {
    let of = |experiment: &Experiment| micros(experiment.every);
    page.family(Type::Gauge("seconds"), "perfd_experiment_period_seconds", "The time between two slots.", |family| {
        all.iter().for_each(|e| family.add(&[("experiment", &e.name)], seconds(of(e))));
    });
    let help = "How long a run may take.";
    page.family(Type::Gauge("seconds"), "perfd_experiment_timeout_seconds", help, |family| {
        all.iter().for_each(|e| family.add(&[("experiment", &e.name)], seconds(micros(e.timeout))));
    });
    page.family(Type::Gauge("bytes"), "perfd_experiment_size_bytes", "The payload that a run transfers.", |family| {
        all.iter().for_each(|e| family.add(&[("experiment", &e.name), ("kind", e.kind.as_str())], e.size));
    });
    page.family(Type::Gauge(""), "perfd_experiment_stuck", "Whether the experiment reports no more.", |family| {
        all.iter().for_each(|e| family.add(&[("experiment", &e.name)], u8::from(e.stuck)));
    });
}

/// Each slot that came due is counted once, in its state: planned = done + skipped + aborted + missed + running, in
/// every scrape.
fn slots(page: &mut Page, all: &[Experiment]) {
    let counts = || all.iter().filter_map(|e| e.tally.as_ref().map(|tally| (e.name.as_str(), tally.slots)));
    page.family(Type::Counter(""), "perfd_slots_planned", "Slots that came due.", |family| {
        for (experiment, SlotCounts { running, done, skipped, aborted, missed }) in counts() {
            family.add(&[("experiment", experiment)], running + done + skipped + aborted + missed);
        }
    });
    page.family(Type::Counter(""), "perfd_slots", "Slots by what became of them.", |family| {
        for (experiment, SlotCounts { running: _, done, skipped, aborted, missed }) in counts() {
            for (state, count) in [("done", done), ("skipped", skipped), ("aborted", aborted), ("missed", missed)] {
                family.add(&[("experiment", experiment), ("state", state)], count);
            }
        }
    });
    page.family(Type::Gauge(""), "perfd_slots_running", "Slots that are being measured.", |family| {
        counts().for_each(|(experiment, slots)| family.add(&[("experiment", experiment)], slots.running));
    });
}

/// Every value with the START of the run that it is of, since a last value may be old.
fn last_runs(page: &mut Page, all: &[Experiment]) {
    let tallies = || all.iter().filter_map(|e| e.tally.as_ref());
    let help = "START of the latest complete run.";
    page.family(Type::Gauge("seconds"), "perfd_last_success_timestamp_seconds", help, |family| {
        for tally in tallies() {
            let at = tally.last_success.map(|at| seconds(at.0));
            at.into_iter().for_each(|at| family.add(&[("experiment", &tally.experiment)], at));
        }
    });
    let runs = || tallies().flat_map(|tally| tally.last.iter().map(|last| (tally.experiment.as_str(), last)));
    let help = "The latest run's outcome: 1 for the one that it had.";
    page.family(Type::Gauge(""), "perfd_last_result_outcome", help, |family| {
        for (experiment, last) in runs() {
            for outcome in ["complete", "timeout", "failed"] {
                let had = u8::from(last.outcome == outcome);
                family.add(&[("experiment", experiment), ("tor", &last.tor), ("outcome", outcome)], had);
            }
        }
    });
    page.family(Type::Gauge("seconds"), "perfd_last_result_timestamp_seconds", "START of the latest run.", |family| {
        for (experiment, last) in runs() {
            family.add(&[("experiment", experiment), ("tor", &last.tor)], seconds(last.start.0));
        }
    });
    type Reached = fn(&LastRuns) -> Option<(UnixMicros, u64)>;
    let reached: [(&str, Reached, &str, &str); 2] = [
        (
            "perfd_last_time_to_first_byte",
            |last| last.first_byte,
            "From START to the first byte of payload, of the latest run that got one.",
            "START of that run.",
        ),
        (
            "perfd_last_time_to_last_byte",
            |last| last.last_byte,
            "From START to the last byte of payload, of the latest complete run.",
            "START of that run.",
        ),
    ];
    for (name, of, help, help_at) in reached {
        let known = || runs().filter_map(|(experiment, last)| of(last).map(|value| (experiment, last, value)));
        page.family(Type::Gauge("seconds"), &format!("{name}_seconds"), help, |family| {
            for (experiment, last, (_, us)) in known() {
                family.add(&[("experiment", experiment), ("tor", &last.tor)], seconds(signed(us)));
            }
        });
        page.family(Type::Gauge("seconds"), &format!("{name}_timestamp_seconds"), help_at, |family| {
            for (experiment, last, (start, _)) in known() {
                family.add(&[("experiment", experiment), ("tor", &last.tor)], seconds(start.0));
            }
        });
    }
}

/// What the store has counted since it began, so that neither a restart nor a result that is deleted sets it back.
fn totals(page: &mut Page, all: &[Experiment]) {
    let tallies = || all.iter().filter_map(|e| e.tally.as_ref());
    let help = "Results by how they ended: the outcome, the step that was waited for, and why.";
    page.family(Type::Counter(""), "perfd_results", help, |family| {
        for tally in tallies() {
            let mut add = |outcome, phase, cause, results: u64| {
                let labels = [("outcome", outcome), ("phase", phase), ("cause", cause)];
                family.add(&[&[("experiment", tally.experiment.as_str())], &labels[..]].concat(), results);
            };
            // A rate needs a beginning.
            if !tally.ended.iter().any(|ended| ended.outcome == "complete") {
                add("complete", "", "", 0);
            }
            for Ended { outcome, phase, cause, results } in &tally.ended {
                add(outcome, phase.map_or("", Phase::as_str), cause.map_or("", Cause::as_str), *results);
            }
        }
    });
    type Bytes = fn(&ExperimentTally) -> u64;
    let bytes: [(&str, Bytes, &str); 2] = [
        ("perfd_read_bytes", |tally| tally.bytes_read, "Bytes of HTTP that runs read through tor, headers included."),
        (
            "perfd_written_bytes",
            |tally| tally.bytes_written,
            "Bytes of HTTP that runs wrote through tor, headers included.",
        ),
    ];
    for (name, of, help) in bytes {
        page.family(Type::Counter("bytes"), name, help, |family| {
            tallies().for_each(|tally| family.add(&[("experiment", &tally.experiment)], of(tally)));
        });
    }
    type Times = fn(&ExperimentTally) -> &Histogram;
    let times: [(&str, Times, &str); 2] = [
        (
            "perfd_time_to_first_byte_seconds",
            |tally| &tally.first_byte,
            "From START to the first byte of payload, of all results that got one.",
        ),
        (
            "perfd_time_to_last_byte_seconds",
            |tally| &tally.last_byte,
            "From START to the last byte of payload, of all results that got it.",
        ),
    ];
    for (name, of, help) in times {
        page.family(Type::Histogram("seconds"), name, help, |family| {
            tallies().for_each(|tally| family.add_histogram(&tally.experiment, of(tally)));
        });
    }
}

fn tors(page: &mut Page, all: &[Tor]) {
    type Of = fn(&Tor) -> Option<u8>;
    let switches: [(&str, Of, &str); 3] = [
        ("perfd_tor_up", |tor| tor.up.map(u8::from), "Whether perfd is connected to a tor that it controls."),
        ("perfd_tor_ready", |tor| tor.ready.map(u8::from), "Whether a tor that perfd controls can build circuits."),
        (
            "perfd_tor_onion_published",
            |tor| tor.onion_published.map(u8::from),
            "Whether the onion service that a tor is to publish is published.",
        ),
    ];
    for (name, of, help) in switches {
        page.family(Type::Gauge(""), name, help, |family| {
            for (tor, value) in all.iter().filter_map(|tor| of(tor).map(|value| (tor, value))) {
                family.add(&[("tor", &tor.name)], value);
            }
        });
    }
    page.family(Type::Gauge("ratio"), "perfd_tor_bootstrap_ratio", "How far a tor's bootstrap is.", |family| {
        for (tor, percent) in all.iter().filter_map(|tor| tor.bootstrap_percent.map(|percent| (tor, percent))) {
            family.add(&[("tor", &tor.name)], f64::from(percent) / 100.0);
        }
    });
    let help = "How often a tor that perfd starts was started again, since perfd was started.";
    page.family(Type::Counter(""), "perfd_tor_restarts", help, |family| {
        for (tor, restarts) in all.iter().filter_map(|tor| tor.restarts.map(|restarts| (tor, restarts))) {
            family.add(&[("tor", &tor.name)], restarts);
        }
    });
    page.family(Type::Info, "perfd_tor", "A tor's version, as it says.", |family| {
        for (tor, version) in all.iter().filter_map(|tor| tor.version.as_ref().map(|version| (tor, version))) {
            family.add(&[("tor", &tor.name), ("version", version)], 1);
        }
    });
}

fn store(page: &mut Page, store: &Store) {
    page.family(Type::Gauge(""), "perfd_store_writable", "Whether the store can be written.", |family| {
        family.add(&[], u8::from(store.writable));
    });
    let help = "Whether the store can be read; what it knows is missing here if not.";
    page.family(Type::Gauge(""), "perfd_store_readable", help, |family| {
        family.add(&[], u8::from(store.readable));
    });
    page.family(Type::Gauge("bytes"), "perfd_store_size_bytes", "How large the store's files are.", |family| {
        for (file, bytes) in [("database", store.database_bytes), ("log", store.log_bytes)] {
            bytes.into_iter().for_each(|bytes| family.add(&[("file", file)], bytes));
        }
    });
    let help = "Transactions committed since perfd was started.";
    page.family(Type::Counter(""), "perfd_store_transactions", help, |family| {
        family.add(&[], store.transactions);
    });
}

fn places(page: &mut Page, all: &[Places]) {
    page.family(Type::Gauge(""), "perfd_places_taken", "Places of the server that are taken now.", |family| {
        all.iter().for_each(|places| family.add(&[("kind", places.kind)], places.taken));
    });
    page.family(Type::Gauge(""), "perfd_places", "Places that the server has.", |family| {
        all.iter().for_each(|places| family.add(&[("kind", places.kind)], places.all));
    });
}

/// What kind of metric it is; with the unit that the name ends in, where it has one.
#[derive(Clone, Copy, Debug)]
enum Type {
    Gauge(&'static str),
    Counter(&'static str),
    Histogram(&'static str),
    Info,
}

struct Page {
    text: String,
    dialect: Dialect,
}

/// The metrics of one name.
struct Family<'a> {
    text: &'a mut String,
    dialect: Dialect,
    /// The name on its lines.
    name: String,
}

impl Page {
    /// Adds what `fill` adds, under a head; nothing if that is nothing.
    fn family(&mut self, kind: Type, name: &str, help: &str, fill: impl FnOnce(&mut Family)) {
        let (word, unit, suffix) = match kind {
            Type::Gauge(unit) => ("gauge", unit, ""),
            Type::Counter(unit) => ("counter", unit, "_total"),
            Type::Histogram(unit) => ("histogram", unit, ""),
            Type::Info => ("info", "", "_info"),
        };
        let before = self.text.len();
        let sample = format!("{name}{suffix}");
        // In OpenMetrics the head names the family, and each line adds what its type demands; Prometheus' older
        // format knows lines alone, and no infos.
        let (head, word) = match (self.dialect, kind) {
            (Dialect::OpenMetrics, _) => (name, word),
            (Dialect::Text, Type::Info) => (sample.as_str(), "gauge"),
            (Dialect::Text, _) => (sample.as_str(), word),
        };
        let _ = writeln!(self.text, "# HELP {head} {help}");
        let _ = writeln!(self.text, "# TYPE {head} {word}");
        if self.dialect == Dialect::OpenMetrics && !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT {head} {unit}");
        }
        let head_ends = self.text.len();
        fill(&mut Family { text: &mut self.text, dialect: self.dialect, name: sample });
        if self.text.len() == head_ends {
            self.text.truncate(before);
        }
    }
}

impl Family<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    /// The lines of a histogram, whose buckets hold those before them.
    fn add_histogram(&mut self, experiment: &str, histogram: &Histogram) {
        let of = ("experiment", experiment);
        for (bound, count) in &histogram.buckets {
            // Both formats want one way of writing a number, but not the same one.
            let bound = seconds(signed(bound.saturating_mul(1000)));
            let bound = match self.dialect {
                Dialect::Text => bound.trim_end_matches(".0"),
                Dialect::OpenMetrics => &bound,
            };
            self.line("_bucket", &[of, ("le", bound)], count);
        }
        self.line("_bucket", &[of, ("le", "+Inf")], histogram.count);
        self.line("_sum", &[of], seconds(signed(histogram.sum_us)));
        self.line("_count", &[of], histogram.count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// A label's value, as both formats write it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

/// Microseconds as seconds, exactly.
fn seconds(us: i64) -> String {
    let (sign, us) = (if us < 0 { "-" } else { "" }, us.unsigned_abs());
    let text = format!("{sign}{}.{:06}", us / 1_000_000, us % 1_000_000);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let histogram = Histogram { buckets: vec![(500, 1), (1000, 3)], count: 4, sum_us: 4_100_000 };
        let ended = |outcome: &str, phase, cause, results| Ended { outcome: outcome.to_owned(), phase, cause, results };
        let tally = ExperimentTally {
            experiment: "e".to_owned(),
            slots: SlotCounts { running: 1, done: 4, skipped: 2, aborted: 0, missed: 9 },
            ended: vec![
                ended("failed", Some(Phase::Response), Some(Cause::SocksReply), 1),
                ended("timeout", Some(Phase::Connect), None, 3),
            ],
            first_byte: histogram,
            ..ExperimentTally::default()
        };
        let experiment = Experiment {
            name: "e".to_owned(),
            kind: Kind::Upload,
            size: 1024,
            every: Duration::from_millis(1500),
            timeout: Duration::from_secs(1),
            stuck: false,
            tally: Some(tally),
        };
        let tor = Tor {
            name: "t".to_owned(),
            up: Some(true),
            ready: Some(false),
            bootstrap_percent: Some(45),
            restarts: None,
            version: Some("0.4 \"\\\n{x=\"1\"} 2".to_owned()),
            onion_published: None,
        };
        Snapshot {
            version: "1.2.3",
            commit: "abc",
            source: "s".to_owned(),
            started: UnixMicros(1_795_341_600_500_000),
            experiments: vec![experiment],
            tors: vec![tor],
            store: Store {
                writable: true,
                readable: true,
                database_bytes: Some(4096),
                log_bytes: Some(0),
                transactions: 7,
            },
            places: vec![Places { kind: "payloads", all: 64, taken: 1 }],
        }
    }

    /// The head and the lines of these families.
    fn families(page: &str, names: &[&str]) -> String {
        let of = |line: &str| {
            let name = line.strip_prefix("# ").and_then(|line| line.split(' ').nth(1));
            name.or(line.split(['{', ' ']).next()).is_some_and(|name| names.contains(&name))
        };
        page.lines().filter(|line| of(line)).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn each_dialect_writes_its_own_way() {
        let (text, open) = (render(&snapshot(), Dialect::Text), render(&snapshot(), Dialect::OpenMetrics));
        let histogram = ["", "_bucket", "_sum", "_count"].map(|end| format!("perfd_time_to_first_byte_seconds{end}"));
        let histogram: Vec<_> = histogram.iter().map(String::as_str).collect();
        let written = "\
# HELP perfd_time_to_first_byte_seconds From START to the first byte of payload, of all results that got one.
# TYPE perfd_time_to_first_byte_seconds histogram
perfd_time_to_first_byte_seconds_bucket{experiment=\"e\",le=\"0.5\"} 1
perfd_time_to_first_byte_seconds_bucket{experiment=\"e\",le=\"1\"} 3
perfd_time_to_first_byte_seconds_bucket{experiment=\"e\",le=\"+Inf\"} 4
perfd_time_to_first_byte_seconds_sum{experiment=\"e\"} 4.1
perfd_time_to_first_byte_seconds_count{experiment=\"e\"} 4
";
        assert_eq!(families(&text, &histogram), written);
        let unit = "histogram\n# UNIT perfd_time_to_first_byte_seconds seconds\n";
        let written = written.replace("histogram\n", unit).replace("le=\"1\"", "le=\"1.0\"");
        assert_eq!(families(&open, &histogram), written);

        let written = "\
# HELP perfd_build_info Which perfd this is.
# TYPE perfd_build_info gauge
perfd_build_info{version=\"1.2.3\",commit=\"abc\"} 1
";
        assert_eq!(families(&text, &["perfd_build_info"]), written);
        let written = written
            .replace("# HELP perfd_build_info", "# HELP perfd_build")
            .replace("# TYPE perfd_build_info gauge", "# TYPE perfd_build info");
        assert_eq!(families(&open, &["perfd_build", "perfd_build_info"]), written);

        let written = "\
# HELP perfd_results_total Results by how they ended: the outcome, the step that was waited for, and why.
# TYPE perfd_results_total counter
perfd_results_total{experiment=\"e\",outcome=\"complete\",phase=\"\",cause=\"\"} 0
perfd_results_total{experiment=\"e\",outcome=\"failed\",phase=\"response\",cause=\"socks_reply\"} 1
perfd_results_total{experiment=\"e\",outcome=\"timeout\",phase=\"connect\",cause=\"\"} 3
";
        assert_eq!(families(&text, &["perfd_results_total"]), written);
        assert!(!text.contains("# EOF") && open.ends_with("\n# EOF\n"));
    }

    #[test]
    fn what_a_tor_says_of_itself_stays_one_value() {
        let page = render(&snapshot(), Dialect::Text);
        let line = r#"perfd_tor_info{tor="t",version="0.4 \"\\\n{x=\"1\"} 2"} 1"#;
        assert!(page.lines().any(|written| written == line), "{page}");
    }

    #[test]
    fn seconds_are_exact_and_short() {
        for (us, text) in
            [(0, "0.0"), (1, "0.000001"), (1_500_000, "1.5"), (-20_000_000, "-20.0"), (600_000_000, "600.0")]
        {
            assert_eq!(seconds(us), text);
        }
        assert_eq!(seconds(i64::MIN), "-9223372036854.775808");
    }
}
