//! What may be asked: which statistic, of which results, grouped by what (no I/O).

use crate::clock::UnixMicros;
use crate::config::units::parse_size;
use crate::measurement::{Kind, ServerKind};
use crate::stats::{Floor, Period, Quantity};
use crate::store::Filter;

/// A statistic that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// Percentiles of a quantity.
    Summary,
    /// The same of the time that each step took.
    Phases,
    /// The distribution of a quantity.
    Ecdf,
    /// How runs ended.
    Failures,
    /// The relays most seen among the slowest quarter, and in failed circuits.
    Relays,
    /// A quantity with Conflux and without.
    Conflux,
    /// Tors compared in the same slots.
    Paired,
    /// Tor Metrics' time to download files.
    Downloads,
    /// Tor Metrics' timeouts and failures.
    Timeouts,
    /// Tor Metrics' circuit build times.
    BuildTimes,
    /// Tor Metrics' circuit round-trip latencies.
    Latencies,
    /// Tor Metrics' throughput.
    Throughput,
    /// OnionPerf's throughput.
    OnionPerfThroughput,
    /// OnionPerf's time to first byte.
    OnionPerfFirstByte,
    /// OnionPerf's time to last byte.
    OnionPerfLastByte,
    /// OnionPerf's number of downloads.
    OnionPerfDownloads,
    /// OnionPerf's errors by code.
    OnionPerfErrors,
}

/// What results may be grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// The name of the instance that measured.
    Source,
    /// The experiment.
    Experiment,
    /// How the server was reached.
    Server,
    /// Bytes of payload.
    Size,
    /// The tor.
    Tor,
}

/// A question: a statistic with all that restricts it.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Which one.
    pub statistic: Statistic,
    /// Of what; several of `phases` alone.
    pub quantities: Vec<Quantity>,
    /// In the order of their columns.
    pub group: Vec<Dimension>,
    /// `None`: all of the time asked for at once.
    pub period: Option<Period>,
    /// Which results; its outcome is not used.
    pub filter: Filter,
    /// From how many samples on a figure is shown.
    pub floor: Floor,
    /// Whether the results of today and yesterday are left out, as Tor Metrics does for three of its five.
    pub omit_last_days: u64,
    /// How many relays a list, or points a distribution.
    pub most: usize,
}

/// How parameters were given, and are named in errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `floor=5`.
    Query,
    /// `--floor 5`.
    Options,
}

impl Spelling {
    /// A parameter's name. The command line's `--server` is the service that is asked.
    pub fn name(self, name: &str) -> String {
        match (self, name) {
            (Spelling::Query, name) => name.to_owned(),
            (Spelling::Options, "server") => "--server-kind".to_owned(),
            (Spelling::Options, name) => format!("--{}", name.replace('_', "-")),
        }
    }

    fn pair(self, name: &str, value: &str) -> String {
        let between = if self == Spelling::Query { '=' } else { ' ' };
        format!("{}{between}{value}", self.name(name))
    }
}

/// A parameter of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Quantity,
    Group,
    Period,
    Points,
    Top,
    OmitLastDays,
    Floor,
}

/// What all may be asked with; `paired` needs an experiment, and takes the times alone beside it.
const FILTERS: [&str; 8] = ["source", "experiment", "tor", "kind", "server", "size", "since", "until"];

/// The most points of a distribution.
pub const MOST_POINTS: usize = 10_000;

/// The most relays of a list.
pub const MOST_RELAYS: usize = 1000;

/// The most days that are left out at the end.
pub const MOST_DAYS: usize = 1000;

/// The most samples that can be asked for before a figure is shown.
pub const HIGHEST_FLOOR: usize = 1_000_000;

impl Statistic {
    /// Every statistic, with its path below `/stats/` and what it gives.
    pub const ALL: [(Statistic, &'static str, &'static str); 17] = [
        (Statistic::Summary, "summary", "mean, extremes and percentiles of a quantity"),
        (Statistic::Phases, "phases", "the same of the time that each step of a run took"),
        (Statistic::Ecdf, "ecdf", "the distribution of a quantity"),
        (Statistic::Failures, "failures", "how runs ended: outcome, phase and cause"),
        (Statistic::Relays, "relays", "the relays most seen among the slowest quarter, and in failed circuits"),
        (Statistic::Conflux, "conflux", "a quantity with Conflux and without"),
        (
            Statistic::Paired,
            "paired",
            "tors of one experiment compared in the same slots, with 95 % confidence intervals",
        ),
        (Statistic::Downloads, "tor-metrics/downloads", "Tor Metrics: time to download files over Tor, ms"),
        (Statistic::Timeouts, "tor-metrics/failures", "Tor Metrics: timeouts and failures of downloads"),
        (Statistic::BuildTimes, "tor-metrics/buildtimes", "Tor Metrics: circuit build times, ms"),
        (Statistic::Latencies, "tor-metrics/latencies", "Tor Metrics: circuit round-trip latencies, ms"),
        (Statistic::Throughput, "tor-metrics/throughput", "Tor Metrics: throughput over half a MiB, kbit/s"),
        (
            Statistic::OnionPerfThroughput,
            "onionperf/throughput",
            "OnionPerf: throughput over the last MiB of 5, Mbit/s",
        ),
        (Statistic::OnionPerfFirstByte, "onionperf/ttfb", "OnionPerf: time to first byte by server and size, ms"),
        (Statistic::OnionPerfLastByte, "onionperf/ttlb", "OnionPerf: time to last byte by server and size, ms"),
        (Statistic::OnionPerfDownloads, "onionperf/downloads", "OnionPerf: downloads and how many were complete"),
        (Statistic::OnionPerfErrors, "onionperf/errors", "OnionPerf: downloads by error code"),
    ];

    /// Its path below `/stats/`, without an ending.
    pub fn path(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The statistic of that path.
    pub fn parse(path: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == path).map(|(statistic, ..)| *statistic)
    }

    fn parameters(self) -> &'static [(&'static str, Parameter)] {
        use Parameter::{Floor, Group, OmitLastDays, Period, Points, Quantity, Top};
        match self {
            Statistic::Summary => &[("quantity", Quantity), ("group", Group), ("period", Period), ("floor", Floor)],
            Statistic::Phases => &[("group", Group), ("period", Period), ("floor", Floor)],
            Statistic::Ecdf => &[("quantity", Quantity), ("group", Group), ("points", Points), ("floor", Floor)],
            Statistic::Failures => &[("group", Group), ("period", Period)],
            Statistic::Relays => &[("group", Group), ("period", Period), ("top", Top), ("floor", Floor)],
            Statistic::Conflux => &[("quantity", Quantity), ("group", Group), ("period", Period), ("floor", Floor)],
            Statistic::Paired => &[("period", Period)],
            Statistic::Timeouts => &[("omit_last_days", OmitLastDays)],
            Statistic::Downloads | Statistic::BuildTimes | Statistic::Latencies | Statistic::Throughput => {
                &[("floor", Floor), ("omit_last_days", OmitLastDays)]
            }
            Statistic::OnionPerfThroughput | Statistic::OnionPerfFirstByte | Statistic::OnionPerfLastByte => {
                &[("period", Period), ("floor", Floor)]
            }
            Statistic::OnionPerfDownloads | Statistic::OnionPerfErrors => &[("period", Period)],
        }
    }

    /// The names of what it may be asked with beside the filters.
    pub fn own_names(self) -> impl Iterator<Item = &'static str> {
        self.parameters().iter().map(|(name, _)| *name)
    }

    /// The names of what it may be asked with.
    pub fn names(self) -> Vec<&'static str> {
        let filters: &[&str] = match self {
            Statistic::Paired => &["experiment", "since", "until"],
            _ => &FILTERS,
        };
        self.own_names().chain(filters.iter().copied()).collect()
    }
}

impl Dimension {
    /// Every dimension, with its word, which is that of its column too.
    pub const ALL: [(Dimension, &'static str); 5] = [
        (Dimension::Source, "source"),
        (Dimension::Experiment, "experiment"),
        (Dimension::Server, "server"),
        (Dimension::Size, "size"),
        (Dimension::Tor, "tor"),
    ];

    /// The dimension's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl Question {
    /// Reads the parameters of a question.
    ///
    /// # Errors
    /// A sentence, if one is not known, comes twice, has a value that can't be, or one that is needed is missing.
    pub fn parse<'a>(
        statistic: Statistic,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        Self::parse_as(statistic, parameters, Spelling::Query)
    }

    /// The same, and the sentence names what was given as `spelling` does.
    ///
    /// # Errors
    /// As [`Question::parse`].
    pub fn parse_as<'a>(
        statistic: Statistic,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
        spelling: Spelling,
    ) -> Result<Self, String> {
        let mut question = Question {
            statistic,
            quantities: Vec::new(),
            group: vec![Dimension::Source, Dimension::Experiment],
            period: None,
            filter: Filter::default(),
            floor: Floor::USUAL,
            omit_last_days: 0,
            most: if statistic == Statistic::Relays { 15 } else { 200 },
        };
        let mut seen = Vec::new();
        for (name, value) in parameters {
            if seen.contains(&name) {
                return Err(format!("{} is given twice", spelling.name(name)));
            }
            question.set(name, value, spelling)?;
            seen.push(name);
        }
        question.complete(spelling)
    }

    fn set(&mut self, name: &str, value: &str, spelling: Spelling) -> Result<(), String> {
        let bad = |must: &str| format!("{}: {must}", spelling.pair(name, value));
        if !self.statistic.names().contains(&name) {
            let names: Vec<_> = self.statistic.names().into_iter().map(|name| spelling.name(name)).collect();
            return Err(format!("{} is no parameter here; there are {}", spelling.name(name), names.join(", ")));
        }
        if let Some((_, parameter)) = self.statistic.parameters().iter().find(|(known, _)| *known == name) {
            return self.set_parameter(*parameter, value).map_err(|must| bad(&must));
        }
        let moment = || {
            UnixMicros::parse(value)
                .ok_or_else(|| bad("must be a time such as 2026-11-22T10:00:00Z, 2026-11-22 or 1795341600"))
        };
        match name {
            "source" => self.filter.source = Some(value.to_owned()),
            "experiment" => self.filter.experiment = Some(value.to_owned()),
            "tor" => self.filter.tor = Some(value.to_owned()),
            "kind" => self.filter.kind = Some(word(value, &Kind::ALL).map_err(|must| bad(&must))?),
            "server" => self.filter.server = Some(word(value, &ServerKind::ALL).map_err(|must| bad(&must))?),
            "size" => self.filter.size = Some(parse_size(value).map_err(|error| bad(&error.to_string()))?),
            "since" => self.filter.since = Some(moment()?),
            _ => self.filter.until = Some(moment()?),
        }
        Ok(())
    }

    fn set_parameter(&mut self, parameter: Parameter, value: &str) -> Result<(), String> {
        let number = |least: usize, most: usize| {
            let number = value.parse().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| format!("must be a number from {least} to {most}"))
        };
        match parameter {
            Parameter::Quantity => self.quantities = vec![word(value, &Quantity::ALL)?],
            Parameter::Group => {
                self.group.clear();
                for name in value.split(',').filter(|name| !name.is_empty()) {
                    let dimension = word(name, &Dimension::ALL)?;
                    if self.group.contains(&dimension) {
                        return Err(format!("{name} stands there twice"));
                    }
                    self.group.push(dimension);
                }
            }
            Parameter::Period if value == "all" => self.period = None,
            Parameter::Period => {
                let found = Period::ALL.iter().find(|(_, known)| *known == value).map(|(period, _)| *period);
                self.period = Some(found.ok_or("must be one of hour, day, week, month, all")?);
            }
            Parameter::Points => self.most = number(2, MOST_POINTS)?,
            Parameter::Top => self.most = number(1, MOST_RELAYS)?,
            Parameter::OmitLastDays => self.omit_last_days = number(0, MOST_DAYS)? as u64,
            Parameter::Floor => {
                // With 1, every figure is shown that can be computed, as Tor Metrics and OnionPerf do.
                self.floor = match number(1, HIGHEST_FLOOR)? {
                    1 => Floor::NONE,
                    samples => Floor { samples: samples as u64, ..Floor::USUAL },
                };
            }
        }
        Ok(())
    }

    fn complete(mut self, spelling: Spelling) -> Result<Self, String> {
        use Quantity as Q;
        let day = Some(Period::Day);
        match self.statistic {
            Statistic::Summary | Statistic::Ecdf | Statistic::Conflux if self.quantities.is_empty() => {
                self.quantities = vec![Q::TimeToLastByte];
            }
            Statistic::Phases => {
                self.quantities = vec![
                    Q::Socket,
                    Q::Connect,
                    Q::Negotiate,
                    Q::Request,
                    Q::Response,
                    Q::DataRequest,
                    Q::DataResponse,
                    Q::Transfer,
                ];
            }
            Statistic::Paired if self.filter.experiment.is_none() => {
                let remedy = spelling.pair("experiment", "NAME");
                return Err(format!("name the experiment whose tors are to be compared: {remedy}"));
            }
            Statistic::Downloads
            | Statistic::Timeouts
            | Statistic::BuildTimes
            | Statistic::Latencies
            | Statistic::Throughput => (self.period, self.group) = (day, Vec::new()),
            Statistic::OnionPerfThroughput => self.onionperf(&[Q::ThroughputOnionperf], &[Dimension::Server]),
            Statistic::OnionPerfFirstByte => {
                self.onionperf(&[Q::TimeToFirstByte], &[Dimension::Server, Dimension::Size])
            }
            Statistic::OnionPerfLastByte => self.onionperf(&[Q::TimeToLastByte], &[Dimension::Server, Dimension::Size]),
            Statistic::OnionPerfDownloads => self.onionperf(&[], &[Dimension::Server, Dimension::Size]),
            Statistic::OnionPerfErrors => self.onionperf(&[], &[Dimension::Server]),
            _ => {}
        }
        Ok(self)
    }

    /// OnionPerf knows downloads alone.
    fn onionperf(&mut self, quantities: &[Quantity], group: &[Dimension]) {
        self.quantities = quantities.to_vec();
        self.group = [&[Dimension::Source], group].concat();
        self.filter.kind.get_or_insert(Kind::Download);
    }
}

/// One of these words.
fn word<T: Copy>(value: &str, words: &[(T, &str)]) -> Result<T, String> {
    let found = words.iter().find(|(_, word)| *word == value).map(|(value, _)| *value);
    let names: Vec<_> = words.iter().map(|(_, word)| *word).collect();
    found.ok_or_else(|| format!("must be one of {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str, query: &str) -> Result<Question, String> {
        let pairs = query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap());
        Question::parse(Statistic::parse(path).unwrap(), pairs)
    }

    #[test]
    fn a_question_is_read() {
        let query = "quantity=latency&group=tor,size&period=week&since=2026-01-01&size=50KiB&floor=1&kind=upload";
        let question = parse("summary", query).unwrap();
        assert_eq!(question.quantities, [Quantity::Latency]);
        assert_eq!(question.group, [Dimension::Tor, Dimension::Size]);
        assert_eq!((question.period, question.floor), (Some(Period::Week), Floor::NONE));
        assert_eq!((question.filter.size, question.filter.kind), (Some(51_200), Some(Kind::Upload)));
        assert_eq!(parse("summary", "group=&period=all").unwrap().group, []);
        assert_eq!(parse("tor-metrics/downloads", "omit_last_days=2").unwrap().period, Some(Period::Day));
        assert_eq!(parse("phases", "").unwrap().quantities.len(), 8);
    }

    #[test]
    fn what_is_mistyped_is_refused_with_what_there_is() {
        for (path, query, reason) in [
            ("summary", "quantity=speed", "must be one of time_to_first_byte"),
            ("summary", "quantitiy=latency", "quantitiy is no parameter here; there are quantity, group"),
            ("summary", "group=tor,tor", "twice"),
            ("summary", "group=colour", "must be one of source, experiment, server, size, tor"),
            ("summary", "period=year", "must be one of hour, day, week, month, all"),
            ("summary", "tor=a&tor=b", "given twice"),
            ("summary", "since=x", "must be a time"),
            ("summary", "outcome=failed", "no parameter"),
            ("summary", "floor=0", "from 1"),
            ("ecdf", "period=day", "no parameter"),
            ("ecdf", "points=1", "from 2 to 10000"),
            ("relays", "top=0", "from 1 to 1000"),
            ("paired", "", "name the experiment"),
            ("paired", "experiment=a&tor=b", "no parameter"),
            ("tor-metrics/failures", "period=week", "no parameter"),
        ] {
            let error = parse(path, query).unwrap_err();
            assert!(error.contains(reason), "{path}?{query}: {error}");
        }
    }

    #[test]
    fn a_command_is_told_of_its_options() {
        for (path, pair, reason) in [
            ("summary", ("floor", "0"), "--floor 0: must be a number from 1 to"),
            (
                "summary",
                ("omit_last_days", "1"),
                "--omit-last-days is no parameter here; there are --quantity, --group",
            ),
            ("summary", ("server", "x"), "--server-kind x: must be one of"),
            ("paired", ("since", "2026-01-01"), "compared: --experiment NAME"),
        ] {
            let error = Question::parse_as(Statistic::parse(path).unwrap(), [pair], Spelling::Options).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn statistics_are_found_by_their_paths() {
        for (statistic, path, _) in Statistic::ALL {
            assert_eq!((statistic.path(), Statistic::parse(path)), (path, Some(statistic)));
        }
    }
}
