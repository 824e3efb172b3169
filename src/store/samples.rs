//! Results as statistics need them: read from the rows, perfd's own and imported ones that are visible.

use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, OptionalExtension, Result, Row, named_params};

use super::NewResult;
use super::query::Filter;
use super::rows::Columns;
use crate::circuit::{Circuit, CircuitData, CircuitState};
use crate::clock::UnixMicros;
use crate::import::ImportedRun;
use crate::measurement::{Cause, Kind, Outcome, Phase, RunId, ServerKind, Steps};
use crate::stats::{End, Sample, SampleCircuit};

/// What of a result is wanted beyond who made it, when, and how it ended. What is not wanted is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The eight steps.
    pub steps: bool,
    /// The tenths of the payload.
    pub deciles: bool,
    /// The marks at so many bytes of payload.
    pub partials: bool,
    /// The circuit, which is a look into another table for every row.
    pub circuit: bool,
}

impl Wanted {
    /// All there is.
    pub const ALL: Wanted = Wanted { steps: true, deciles: true, partials: true, circuit: true };
}

const HEAD: &str = "start_us, source, experiment, tor, kind, server, size, outcome, phase, cause, read, written";
const STEPS: &str = ", socket_us, connect_us, negotiate_us, request_us, response_us, data_request_us, data_response_us";
const DECILES: &str = ", perc0_us, perc10_us, perc20_us, perc30_us, perc40_us, perc50_us, perc60_us, perc70_us, \
    perc80_us, perc90_us, perc100_us";
const PARTIALS: &str = ", partial_10240_us, partial_20480_us, partial_51200_us, partial_102400_us, \
    partial_204800_us, partial_512000_us, partial_1048576_us, partial_2097152_us, partial_5242880_us";

/// What both tables can be asked for; NULL does not restrict.
const FILTER: &str = "start_us >= :since AND start_us < :until AND (:source IS NULL OR source = :source) \
    AND (:tor IS NULL OR tor = :tor) AND (:kind IS NULL OR kind = :kind) AND (:server IS NULL OR server = :server) \
    AND (:size IS NULL OR size = :size) AND (:outcome IS NULL OR outcome = :outcome)";

/// Gives each of perfd's own results with `filter.since <= START < filter.until` that the filter lets through, by
/// START.
pub(super) fn each_own(conn: &Connection, filter: &Filter, wanted: Wanted, mut give: impl FnMut(Sample)) -> Result<()> {
    let (index, experiment) = match filter.experiment {
        Some(_) => ("result_experiment_start", "experiment = :experiment"),
        None => ("result_start", ":experiment IS NULL"),
    };
    let sql = select_own(wanted, &format!("INDEXED BY {index} {{join}} WHERE {experiment} AND {FILTER}"));
    each(conn, &sql, filter, wanted, true, |_, sample| give(sample))
}

/// The same of imported results, with the number of their import; those of a file that is still being read are left
/// out.
pub(super) fn each_imported(
    conn: &Connection,
    filter: &Filter,
    wanted: Wanted,
    give: impl FnMut(i64, Sample),
) -> Result<()> {
    let (index, experiment) = match filter.experiment {
        Some(_) => ("imported_experiment_start", "experiment = :experiment"),
        None => ("imported_start", ":experiment IS NULL"),
    };
    let extra = if wanted.circuit { ", extra" } else { "" };
    let sql = format!(
        "SELECT {} {extra}, did_time_out, import_id FROM imported INDEXED BY {index} \
         WHERE {experiment} AND {FILTER} AND import_id IN (SELECT id FROM import WHERE base IS NOT NULL)",
        columns(wanted)
    );
    each(conn, &sql, filter, wanted, false, give)
}

/// One of perfd's own results, whole; `None` if there is none of this name.
pub(super) fn of_run(conn: &Connection, id: &RunId) -> Result<Option<Sample>> {
    let sql = select_own(Wanted::ALL, "{join} WHERE id = ?1");
    let row = |row: &Row<'_>| sample(row, &mut Names::default(), Wanted::ALL, true).map(|(_, sample)| sample);
    conn.prepare_cached(&sql)?.query_row([id.as_str()], row).optional()
}

/// A result as it will be read from its row.
pub(super) fn of_new(new: &NewResult) -> Sample {
    let run = &new.measurement;
    let circuit = new.circuit.as_ref().map(|(data, _)| {
        let circuit = data.circuit.as_ref();
        SampleCircuit {
            conflux: linked(data.conflux.is_some(), is_known(data)),
            path: circuit.and_then(Circuit::path_text).map_or_else(Vec::new, |path| relays(&path)),
            build_times: circuit.and_then(Circuit::build_times_text).map_or_else(Vec::new, |times| micros(&times)),
        }
    });
    Sample {
        start: run.start,
        source: new.source.as_str().into(),
        experiment: new.experiment.as_str().into(),
        tor: new.tor.as_str().into(),
        kind: run.kind,
        server: new.server,
        size: run.size,
        imported: false,
        end: end_of(&run.outcome),
        did_time_out: run.did_time_out(),
        steps: run.steps.clone(),
        read: run.read,
        written: run.written,
        circuit,
    }
}

/// An imported result as it will be read from its row, under the names that it is stored with.
pub(super) fn of_import(run: &ImportedRun, experiment: &str, tor: &str) -> Sample {
    let circuit = circuit_of(run.extra.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    Sample {
        start: run.start,
        source: run.source.as_str().into(),
        experiment: experiment.into(),
        tor: tor.into(),
        kind: run.kind,
        server: run.server,
        size: run.size,
        imported: true,
        end: end_of(&run.outcome),
        did_time_out: run.did_time_out,
        steps: run.steps.clone(),
        read: run.read,
        written: run.written,
        circuit,
    }
}

/// Whether the run went over two linked circuits: what does not say so says that it did not only where its circuit
/// `is_known`.
fn linked(conflux: bool, is_known: bool) -> Option<bool> {
    (conflux || is_known).then_some(conflux)
}

/// Whether tor told of the stream from its beginning on, and of the circuit that it was attached to. The same as
/// [`IS_KNOWN`] says of the row.
fn is_known(data: &CircuitData) -> bool {
    let has_id = data.circuit.as_ref().is_some_and(|circuit| i64::try_from(circuit.id).is_ok());
    data.state == CircuitState::Known && has_id
}

const IS_KNOWN: &str = "state = 'known' AND circuit_id IS NOT NULL";

fn end_of(outcome: &Outcome) -> End {
    match outcome {
        Outcome::Complete => End::Complete,
        Outcome::Timeout(phase) => End::Timeout(*phase),
        Outcome::Failed(failure) => End::Failed(failure.phase, failure.cause),
    }
}

fn columns(wanted: Wanted) -> String {
    let part = |wanted: bool, columns: &'static str| if wanted { columns } else { "" };
    // Of every row it is asked whether it is complete, and that is told by the last step too.
    let (steps, deciles) = (part(wanted.steps, STEPS), part(wanted.deciles, DECILES));
    format!("{HEAD}, data_complete_us{steps}{deciles}{}", part(wanted.partials, PARTIALS))
}

fn select_own(wanted: Wanted, rest: &str) -> String {
    let (circuit, join) = match wanted.circuit {
        true => (format!(", conflux, {IS_KNOWN}, path, build_times"), "LEFT JOIN circuit_data ON run_id = id"),
        false => (String::new(), ""),
    };
    format!("SELECT {}{circuit} FROM result {}", columns(wanted), rest.replace("{join}", join))
}

fn each(
    conn: &Connection,
    sql: &str,
    filter: &Filter,
    wanted: Wanted,
    own: bool,
    mut give: impl FnMut(i64, Sample),
) -> Result<()> {
    let mut statement = conn.prepare_cached(sql)?;
    let size = filter.size.map(|size| i64::try_from(size).unwrap_or(-1));
    let mut rows = statement.query(named_params! {
        ":experiment": filter.experiment, ":since": filter.since.map_or(i64::MIN, |at| at.0),
        ":until": filter.until.map_or(i64::MAX, |at| at.0), ":source": filter.source, ":tor": filter.tor,
        ":kind": filter.kind.map(Kind::as_str), ":server": filter.server.map(ServerKind::as_str), ":size": size,
        ":outcome": filter.outcome,
    })?;
    let mut names = Names::default();
    while let Some(row) = rows.next()? {
        let (import, sample) = sample(row, &mut names, wanted, own)?;
        give(import, sample);
    }
    Ok(())
}

fn sample(row: &Row<'_>, names: &mut Names, wanted: Wanted, own: bool) -> Result<(i64, Sample)> {
    let mut columns = Columns::of(row);
    let start = UnixMicros(columns.next()?);
    let source = names.shared(columns.text()?);
    let experiment = names.shared(columns.text()?);
    let tor = names.shared(columns.text()?);
    let kind = columns.known(Kind::parse)?;
    let server = columns.known(ServerKind::parse)?;
    let size = columns.natural()?;
    let end = columns.end()?;
    let (read, written) = (columns.natural()?, columns.natural()?);
    let mut steps = Steps { data_complete: columns.maybe_natural()?, ..Steps::default() };
    if wanted.steps {
        steps.socket = columns.maybe_natural()?;
        steps.connect = columns.maybe_natural()?;
        steps.negotiate = columns.maybe_natural()?;
        steps.request = columns.maybe_natural()?;
        steps.response = columns.maybe_natural()?;
        steps.data_request = columns.maybe_natural()?;
        steps.data_response = columns.maybe_natural()?;
    }
    if wanted.deciles {
        steps.deciles = columns.naturals()?;
    }
    if wanted.partials {
        steps.partials = columns.naturals()?;
    }
    let mut circuit = None;
    if wanted.circuit && own {
        let (conflux, is_known) = (columns.next::<Option<bool>>()?, columns.next::<Option<bool>>()?);
        let (path, times) = (columns.maybe_text()?, columns.maybe_text()?);
        circuit = conflux.map(|conflux| SampleCircuit {
            conflux: linked(conflux, is_known == Some(true)),
            path: path.map(relays).unwrap_or_default(),
            build_times: times.map(micros).unwrap_or_default(),
        });
    } else if wanted.circuit {
        circuit = circuit_of(columns.text()?.lines().filter_map(|line| line.split_once('=')));
    }
    let (did_time_out, import) = match own {
        true => (matches!(end, End::Timeout(_)) || end != End::Complete && steps.data_complete.is_none(), 0),
        false => (columns.next()?, columns.next()?),
    };
    let sample = Sample {
        start,
        source,
        experiment,
        tor,
        kind,
        server,
        size,
        imported: !own,
        end,
        did_time_out,
        steps,
        read,
        written,
        circuit,
    };
    Ok((import, sample))
}

/// The circuit of an imported result, from what its line says beyond the columns; `None` if it says nothing of it.
fn circuit_of<'a>(extra: impl Iterator<Item = (&'a str, &'a str)>) -> Option<SampleCircuit> {
    let mut circuit = None;
    for (key, value) in extra {
        match key {
            "PATH" => circuit.get_or_insert_with(SampleCircuit::default).path = relays(value),
            "BUILDTIMES" => circuit.get_or_insert_with(SampleCircuit::default).build_times = seconds(value),
            _ => {}
        }
    }
    circuit
}

/// The fingerprints of `$FP,$FP,…`, each perhaps with `=` or `~` and a nickname; none if one of them is none.
fn relays(path: &str) -> Vec<String> {
    let fingerprint = |hop: &str| {
        let digits = hop.trim_start_matches('$').get(..40)?;
        let rest = hop.trim_start_matches('$').get(40..)?;
        let whole = rest.is_empty() || rest.starts_with(['=', '~']);
        (whole && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digits.to_ascii_uppercase())
    };
    path.split(',').map(fingerprint).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// Microseconds with commas between; none if one of them is none.
fn micros(times: &str) -> Vec<u64> {
    times.split(',').map(str::parse).collect::<Result<_, _>>().unwrap_or_default()
}

/// Seconds with commas between, as microseconds; none if one of them is none.
fn seconds(times: &str) -> Vec<u64> {
    let micros = |text: &str| {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let decimals = format!("{decimals:0<6}");
        let micros = decimals.get(..6)?.parse::<u64>().ok()?;
        whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros)
    };
    times.split(',').map(micros).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// Names that many rows share.
#[derive(Default)]
struct Names(Vec<Arc<str>>);

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        // There are few, and the one of the row before is mostly among the first looked at.
        if let Some(known) = self.0.iter().find(|known| ***known == *name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = name.into();
        if self.0.len() < 64 {
            self.0.push(Arc::clone(&new));
        }
        new
    }
}

impl<'r> Columns<'r, '_> {
    fn maybe_text(&mut self) -> Result<Option<&'r str>> {
        match self.next_ref()? {
            ValueRef::Null => Ok(None),
            value => value.as_str().map(Some).map_err(|error| self.unreadable(&error.to_string())),
        }
    }

    fn text(&mut self) -> Result<&'r str> {
        self.maybe_text()?.ok_or_else(|| self.unreadable("no value"))
    }

    fn known<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        let word = self.text()?;
        parse(word).ok_or_else(|| self.unreadable(&format!("unknown word {word:?}")))
    }

    fn end(&mut self) -> Result<End, Error> {
        let outcome = self.text()?;
        let phase = self.maybe_text()?.and_then(Phase::parse);
        let cause = self.maybe_text()?.and_then(Cause::parse);
        match (outcome, phase, cause) {
            ("complete", None, None) => Ok(End::Complete),
            ("timeout", Some(phase), None) => Ok(End::Timeout(phase)),
            ("failed", Some(phase), Some(cause)) => Ok(End::Failed(phase, cause)),
            _ => Err(self.unreadable("outcome, phase and cause do not go together")),
        }
    }
}
