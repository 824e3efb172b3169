//! Between the plain data and the columns: one place that knows the order of both.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use rusqlite::types::{FromSql, Type, Value, ValueRef};
use rusqlite::{Error, Row};

use super::NewResult;
use crate::clock::UnixMicros;
use crate::measurement::{
    Cause, Curve, Failure, Kind, Measurement, Outcome, Phase, Place, ResultRow, RunId, ServerKind, ServerSide, Steps,
};
use crate::slot::{SlotReason, SlotRow, SlotState};

/// The columns of `result`, in the order in which rows are written and read.
const RESULT_COLUMNS: &str = "revision, id, source, experiment, tor, planned_us, configuration_id, version, \
    start_us, ended_us, size, \
    socket_us, connect_us, negotiate_us, request_us, response_us, data_request_us, data_response_us, data_complete_us, \
    perc0_us, perc10_us, perc20_us, perc30_us, perc40_us, perc50_us, perc60_us, perc70_us, perc80_us, perc90_us, \
    perc100_us, \
    partial_10240_us, partial_20480_us, partial_51200_us, partial_102400_us, partial_204800_us, partial_512000_us, \
    partial_1048576_us, partial_2097152_us, partial_5242880_us, \
    written, read, local_ip, local_port, proxy_ip, proxy_port, remote_host, remote_port, isolated, verified, \
    outcome, phase, cause, socks_code, http_status, detail, \
    kind, socks_user, optimistic, server, place_index, place_of, \
    server_request_us, server_perc0_us, server_perc10_us, server_perc20_us, server_perc30_us, server_perc40_us, \
    server_perc50_us, server_perc60_us, server_perc70_us, server_perc80_us, server_perc90_us, server_perc100_us";

/// The columns of `slot`, in the order in which rows are written and read.
pub(super) const SLOT_COLUMNS: &str =
    "experiment, planned_us, planned_last_us, count, state, reason, started_us, ended_us";

/// `INSERT` of a result, for the values of [`result_values`].
pub(super) static INSERT_RESULT: LazyLock<String> = LazyLock::new(|| {
    let marks = vec!["?"; RESULT_COLUMNS.split(',').count()].join(", ");
    format!("INSERT INTO result ({RESULT_COLUMNS}) VALUES ({marks})")
});

/// `SELECT` of results, for [`result_row`]; a `WHERE` clause is to follow.
pub(super) fn select_results(rest: &str) -> String {
    format!("SELECT {RESULT_COLUMNS} FROM result {rest}")
}

/// `SELECT` of slots, for [`slot_row`]; a `WHERE` clause is to follow.
pub(super) fn select_slots(rest: &str) -> String {
    format!("SELECT {SLOT_COLUMNS} FROM slot {rest}")
}

/// A result's values in the order of the columns.
pub(super) fn result_values(revision: i64, configuration: i64, new: &NewResult) -> Result<Vec<Value>, Error> {
    let run = &new.measurement;
    let mut values: Vec<Value> = vec![
        revision.into(),
        run.id.as_str().to_owned().into(),
        new.source.clone().into(),
        new.experiment.clone().into(),
        new.tor.clone().into(),
        new.planned.0.into(),
        configuration.into(),
        new.version.clone().into(),
        run.start.0.into(),
        integer(run.ended)?.into(),
        integer(run.size)?.into(),
    ];
    let steps = run.steps.in_order().map(|(_, at)| at);
    for at in steps.iter().chain(&run.steps.deciles).chain(&run.steps.partials) {
        values.push(at.map(integer).transpose()?.into());
    }
    let failure = run.outcome.failure();
    let values_of_the_end: [Value; 16] = [
        integer(run.written)?.into(),
        integer(run.read)?.into(),
        run.local.map(ip_text).into(),
        run.local.map(|address| address.port()).into(),
        run.proxy.map(ip_text).into(),
        run.proxy.map(|address| address.port()).into(),
        run.remote_host.clone().into(),
        run.remote_port.into(),
        run.isolated.into(),
        run.verified.into(),
        run.outcome.word().to_owned().into(),
        run.outcome.phase().map(|phase| phase.as_str().to_owned()).into(),
        failure.map(|failure| failure.cause.as_str().to_owned()).into(),
        failure.and_then(|failure| failure.socks_code).into(),
        failure.and_then(|failure| failure.http_status).into(),
        failure.map(|failure| failure.detail.clone()).into(),
    ];
    values.extend(values_of_the_end);
    let kind_and_place: [Value; 6] = [
        run.kind.as_str().to_owned().into(),
        run.user.clone().into(),
        run.optimistic.into(),
        new.server.as_str().to_owned().into(),
        new.place.index.into(),
        new.place.of.into(),
    ];
    values.extend(kind_and_place);
    values.push(run.server.as_ref().map(|server| server.request).into());
    let deciles = run.server.as_ref().map_or([None; 11], |server| server.deciles);
    values.extend(deciles.map(Value::from));
    Ok(values)
}

/// Reads a row that [`select_results`] selected. What is kept beside it (curve, circuit) is not in it.
pub(super) fn result_row(row: &Row<'_>) -> Result<ResultRow, Error> {
    let mut columns = Columns::of(row);
    let revision = columns.next()?;
    let id = columns.word(RunId::parse)?;
    let (source, experiment, tor) = (columns.next()?, columns.next()?, columns.next()?);
    let planned = Some(UnixMicros(columns.next()?));
    let (configuration, version) = (columns.next()?, columns.next()?);
    let start = UnixMicros(columns.next()?);
    let (ended, size) = (columns.natural()?, columns.natural()?);
    let steps = columns.steps()?;
    let (written, read) = (columns.natural()?, columns.natural()?);
    let (local, proxy) = (columns.maybe_address()?, columns.maybe_address()?);
    let (remote_host, remote_port) = (columns.next()?, columns.next()?);
    let (isolated, verified) = (columns.next()?, columns.next()?);
    let outcome = columns.outcome()?;
    let kind = columns.word(Kind::parse)?;
    let user = columns.next::<Option<String>>()?.or_else(|| Some(format!("perfd-{id}")));
    let optimistic = columns.next()?;
    let server = columns.word(ServerKind::parse)?;
    let place = Place { index: columns.next()?, of: columns.next()? };
    let server_side = columns.server_side()?;
    let measurement = Measurement {
        kind,
        user,
        optimistic,
        curve: Curve::new(),
        server: server_side,
        id,
        start,
        ended,
        size,
        steps,
        outcome,
        written,
        read,
        local,
        proxy,
        remote_host,
        remote_port,
        isolated,
        verified,
    };
    Ok(ResultRow {
        revision,
        source,
        experiment,
        tor,
        planned,
        configuration,
        version,
        server,
        place,
        measurement,
        circuit: None,
        imported: None,
    })
}

/// A slot's values in the order of [`SLOT_COLUMNS`].
pub(super) fn slot_values(slot: &SlotRow) -> Result<[Value; 8], Error> {
    Ok([
        slot.experiment.clone().into(),
        slot.planned.0.into(),
        slot.planned_last.0.into(),
        integer(slot.count)?.into(),
        slot.state.as_str().to_owned().into(),
        slot.reason.map(|reason| reason.as_str().to_owned()).into(),
        slot.started.map(|at| at.0).into(),
        slot.ended.map(|at| at.0).into(),
    ])
}

/// Reads a row that [`select_slots`] selected.
pub(super) fn slot_row(row: &Row<'_>) -> Result<SlotRow, Error> {
    let mut columns = Columns::of(row);
    Ok(SlotRow {
        experiment: columns.next()?,
        planned: UnixMicros(columns.next()?),
        planned_last: UnixMicros(columns.next()?),
        count: columns.natural()?,
        state: columns.word(SlotState::parse)?,
        reason: columns.maybe_word(SlotReason::parse)?,
        started: columns.next::<Option<i64>>()?.map(UnixMicros),
        ended: columns.next::<Option<i64>>()?.map(UnixMicros),
    })
}

/// SQLite's integers are signed.
pub(super) fn integer(value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(|error| Error::ToSqlConversionFailure(error.into()))
}

/// The address without its port and brackets, an IPv6 address with its scope (`fe80::1%2`).
fn ip_text(address: SocketAddr) -> String {
    let mut text = address.to_string();
    text.truncate(text.rfind(':').unwrap_or(text.len()));
    text.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// Reads a row's columns one after the other.
pub(super) struct Columns<'r, 's> {
    row: &'r Row<'s>,
    at: usize,
}

impl<'r, 's> Columns<'r, 's> {
    /// Begins with the first one.
    pub(super) fn of(row: &'r Row<'s>) -> Self {
        Columns { row, at: 0 }
    }

    pub(super) fn next<T: FromSql>(&mut self) -> Result<T, Error> {
        self.at += 1;
        self.row.get(self.at - 1)
    }

    /// The next one as it lies in the row.
    pub(super) fn next_ref(&mut self) -> Result<ValueRef<'r>, Error> {
        self.at += 1;
        self.row.get_ref(self.at - 1)
    }

    /// An error about the column just read: another program wrote what perfd does not write.
    pub(super) fn unreadable(&self, why: &str) -> Error {
        Error::FromSqlConversionFailure(self.at.saturating_sub(1), Type::Text, why.into())
    }

    pub(super) fn natural(&mut self) -> Result<u64, Error> {
        u64::try_from(self.next::<i64>()?).map_err(|_| self.unreadable("a negative number"))
    }

    pub(super) fn maybe_natural(&mut self) -> Result<Option<u64>, Error> {
        let value = self.next::<Option<i64>>()?.map(u64::try_from).transpose();
        value.map_err(|_| self.unreadable("a negative number"))
    }

    pub(super) fn naturals<const N: usize>(&mut self) -> Result<[Option<u64>; N], Error> {
        let mut values = [None; N];
        for value in &mut values {
            *value = self.maybe_natural()?;
        }
        Ok(values)
    }

    /// The steps, in the order in which both tables of results have them.
    pub(super) fn steps(&mut self) -> Result<Steps, Error> {
        Ok(Steps {
            socket: self.maybe_natural()?,
            connect: self.maybe_natural()?,
            negotiate: self.maybe_natural()?,
            request: self.maybe_natural()?,
            response: self.maybe_natural()?,
            data_request: self.maybe_natural()?,
            data_response: self.maybe_natural()?,
            data_complete: self.maybe_natural()?,
            deciles: self.naturals()?,
            partials: self.naturals()?,
        })
    }

    pub(super) fn maybe_word<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(word) = self.next_ref()?.as_str_or_null()? else { return Ok(None) };
        parse(word).map(Some).ok_or_else(|| self.unreadable(&format!("unknown word {word:?}")))
    }

    pub(super) fn word<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        self.maybe_word(parse)?.ok_or_else(|| self.unreadable("no value"))
    }

    fn maybe_address(&mut self) -> Result<Option<SocketAddr>, Error> {
        let (ip, port) = (self.next_ref()?.as_str_or_null()?, self.next::<Option<u16>>()?);
        let (Some(ip), Some(port)) = (ip, port) else { return Ok(None) };
        if let Ok(ip) = ip.parse::<IpAddr>() {
            return Ok(Some(SocketAddr::new(ip, port)));
        }
        // One with a scope, `fe80::1%2`, is read as a whole.
        let text = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        text.parse().map(Some).map_err(|_| self.unreadable(&format!("no address: {text:?}")))
    }

    fn server_side(&mut self) -> Result<Option<ServerSide>, Error> {
        let (request, mut deciles) = (self.next::<Option<i64>>()?, [None; 11]);
        for decile in &mut deciles {
            *decile = self.next()?;
        }
        Ok(request.map(|request| ServerSide { request, deciles }))
    }

    /// Outcome, phase, cause, SOCKS code, HTTP status and detail, in this order.
    pub(super) fn outcome(&mut self) -> Result<Outcome, Error> {
        let word = self.next_ref()?.as_str()?;
        let phase = self.maybe_word(Phase::parse)?;
        let cause = self.maybe_word(Cause::parse)?;
        let (socks_code, http_status) = (self.next()?, self.next()?);
        let detail = self.next::<Option<String>>()?.unwrap_or_default();
        match (word, phase, cause) {
            ("complete", None, None) => Ok(Outcome::Complete),
            ("timeout", Some(phase), None) => Ok(Outcome::Timeout(phase)),
            ("failed", Some(phase), Some(cause)) => {
                Ok(Outcome::Failed(Failure { phase, cause, socks_code, http_status, detail }))
            }
            _ => Err(self.unreadable("outcome, phase and cause do not go together")),
        }
    }
}
