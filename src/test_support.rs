//! Arbitrary and exemplary rows for the tests of several modules.

pub mod circuit;
pub mod samples;

use std::net::{SocketAddr, SocketAddrV6};

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::clock::UnixMicros;
use crate::measurement::{
    CURVE_POINTS, Cause, Curve, Failure, Kind, Measurement, Outcome, PARTIALS, Phase, Place, ResultRow, RunId,
    ServerKind, ServerSide, Steps,
};
use crate::store::NewResult;

/// A complete run of 50 KiB that began at 2026-11-22T10:00:00Z.
pub fn example_row() -> ResultRow {
    let mut steps = Steps {
        socket: Some(10),
        connect: Some(200),
        negotiate: Some(400),
        request: Some(500),
        response: Some(400_000),
        data_request: Some(400_100),
        data_response: Some(700_000),
        data_complete: Some(1_500_000),
        ..Steps::default()
    };
    for (tenth, at) in steps.deciles.iter_mut().enumerate() {
        *at = Some((700_100 + tenth as u64 * 100_000).min(1_500_000));
    }
    steps.partials[..3].copy_from_slice(&[Some(900_000), Some(1_100_000), Some(1_500_000)]);
    let measurement = Measurement {
        id: RunId::from_bits(1),
        kind: Kind::Download,
        user: Some(format!("perfd-{}", RunId::from_bits(1))),
        optimistic: false,
        start: UnixMicros(1_795_341_600_000_000),
        ended: 1_500_200,
        size: 51_200,
        steps,
        outcome: Outcome::Complete,
        written: 84,
        read: 51_466,
        local: Some(SocketAddr::from(([127, 0, 0, 1], 40_000))),
        proxy: Some(SocketAddr::from(([127, 0, 0, 1], 9050))),
        remote_host: Some("example.org".to_owned()),
        remote_port: Some(8080),
        isolated: Some(true),
        verified: true,
        curve: Curve::new(),
        server: None,
    };
    ResultRow {
        revision: 7,
        source: "op-test".to_owned(),
        experiment: "small".to_owned(),
        tor: "main".to_owned(),
        planned: Some(UnixMicros(1_795_341_600_000_000)),
        configuration: Some(1),
        version: Some("0.1.0".to_owned()),
        server: ServerKind::Exit,
        place: Place::ALONE,
        measurement,
        circuit: None,
        imported: None,
    }
}

/// The same run under this name, as it is stored first.
pub fn example_result(id: u128) -> NewResult {
    let row = example_row();
    NewResult {
        source: row.source,
        experiment: row.experiment,
        tor: row.tor,
        planned: row.planned.unwrap(),
        configuration: "the configuration".to_owned(),
        version: row.version.unwrap(),
        server: row.server,
        place: row.place,
        measurement: Measurement { id: RunId::from_bits(id), ..row.measurement },
        circuit: None,
    }
}

/// Any row that can be stored, its texts hostile now and then.
pub fn result_row() -> BoxedStrategy<ResultRow> {
    let ids = (1..=i64::MAX, moment(), 1i64..1000);
    let server = select(ServerKind::ALL.to_vec()).prop_map(|(server, _)| server);
    let place = prop_oneof![Just(Place::ALONE), any::<(u32, u32)>().prop_map(|(index, of)| Place { index, of })];
    let whereabouts = (server, place, option::of(circuit::circuit_data()));
    (ids, name(), name(), name(), name(), measurement(), whereabouts)
        .prop_map(|(ids, source, experiment, tor, version, measurement, whereabouts)| {
            let (revision, planned, configuration) = ids;
            let (server, place, circuit) = whereabouts;
            ResultRow {
                revision,
                source,
                experiment,
                tor,
                planned: Some(planned),
                configuration: Some(configuration),
                version: Some(version),
                server,
                place,
                measurement,
                circuit,
                imported: None,
            }
        })
        .boxed()
}

/// Any row whose steps lie as near to START as those of a run can: within a day.
pub fn plausible_row() -> BoxedStrategy<ResultRow> {
    let row = result_row().prop_map(|mut row| {
        let steps = &mut row.measurement.steps;
        let firsts = [
            &mut steps.socket,
            &mut steps.connect,
            &mut steps.negotiate,
            &mut steps.request,
            &mut steps.response,
            &mut steps.data_request,
            &mut steps.data_response,
            &mut steps.data_complete,
        ];
        for at in firsts.into_iter().chain(&mut steps.deciles).chain(&mut steps.partials).flatten() {
            *at %= 86_400_000_001;
        }
        row
    });
    row.boxed()
}

/// Any measurement that can be stored.
pub fn measurement() -> BoxedStrategy<Measurement> {
    let run = (any::<u128>(), moment(), micros(), number(), number(), number());
    let peers = (option::of(address()), address(), host(), any::<u16>());
    let flags = any::<(Option<bool>, bool)>();
    (run, steps(), outcome(), peers, flags, way())
        .prop_map(|((id, start, ended, size, written, read), steps, outcome, peers, (isolated, verified), way)| {
            let (kind, user, optimistic, curve, server) = way;
            let (local, proxy, remote_host, remote_port) = peers;
            let id = RunId::from_bits(id);
            Measurement {
                kind,
                user: Some(user),
                optimistic,
                id,
                start,
                ended,
                size,
                steps,
                outcome,
                written,
                read,
                local,
                proxy: Some(proxy),
                remote_host: Some(remote_host),
                remote_port: Some(remote_port),
                isolated,
                verified,
                curve,
                server,
            }
        })
        .boxed()
}

/// What a run does, how it goes about it, and how its payload passed.
fn way() -> impl Strategy<Value = (Kind, String, bool, Curve, Option<ServerSide>)> {
    let kind = select(Kind::ALL.to_vec()).prop_map(|(kind, _)| kind);
    let curve = prop::collection::vec((micros(), number()), 0..=CURVE_POINTS);
    let server = (any::<i64>(), any::<[Option<i64>; 11]>());
    let server = server.prop_map(|(request, deciles)| ServerSide { request, deciles });
    (kind, name(), any::<bool>(), curve, option::of(server))
}

fn steps() -> BoxedStrategy<Steps> {
    let at = || option::of(micros());
    let firsts = (at(), at(), at(), at(), at(), at(), at(), at());
    let deciles = prop::array::uniform11(at());
    let partials = prop::collection::vec(at(), PARTIALS.len());
    (firsts, deciles, partials)
        .prop_map(|(firsts, deciles, partials)| {
            let (socket, connect, negotiate, request, response, data_request, data_response, data_complete) = firsts;
            let partials = std::array::from_fn(|i| partials[i]);
            Steps {
                socket,
                connect,
                negotiate,
                request,
                response,
                data_request,
                data_response,
                data_complete,
                deciles,
                partials,
            }
        })
        .boxed()
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let phase = || select(Phase::ALL.to_vec()).prop_map(|(phase, _)| phase);
    let cause = select(Cause::ALL.to_vec()).prop_map(|(cause, _)| cause);
    let failure = (phase(), cause, any::<Option<u8>>(), any::<Option<u16>>(), name()).prop_map(
        |(phase, cause, socks_code, http_status, detail)| Failure { phase, cause, socks_code, http_status, detail },
    );
    prop_oneof![Just(Outcome::Complete), phase().prop_map(Outcome::Timeout), failure.prop_map(Outcome::Failed),]
}

/// Between 1938 and 9999: what RFC 3339 can show.
fn moment() -> impl Strategy<Value = UnixMicros> {
    prop_oneof![
        4 => 0i64..4_000_000_000_000_000,
        1 => -1_000_000_000_000_000i64..=0,
        1 => 0i64..253_000_000_000_000_000,
    ]
    .prop_map(UnixMicros)
}

fn micros() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..600_000_000, 1 => 0..=i64::MAX as u64]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..10_000_000, 1 => 0..=i64::MAX as u64]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-zA-Z0-9._-]{1,12}", 1 => any::<String>(), 1 => "[-=+@\t\r\n\",; %:a]{0,6}"]
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![name(), address().prop_map(|address| address.ip().to_string())]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let v6 = (any::<std::net::Ipv6Addr>(), any::<u16>(), prop_oneof![Just(0), any::<u32>()])
        .prop_map(|(ip, port, scope)| SocketAddrV6::new(ip, port, 0, scope).into());
    let v4 = any::<(std::net::Ipv4Addr, u16)>().prop_map(SocketAddr::from);
    let fixed = select(vec!["127.0.0.1:9050", "[::1]:9050", "192.0.2.1:0"]);
    prop_oneof![v4, v6, fixed.prop_map(|text| text.parse().unwrap())]
}
