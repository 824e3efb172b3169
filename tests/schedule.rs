//! The schedule with a real store and a clock that is stepped by hand: what came due is accounted for
//! once, whatever the clock does and whenever perfd is started.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use perfd::clock::{Clock, SteeredClock, UnixMicros};
use perfd::config::{self, Experiment, Isolation, PublicAddress, ServerChoice, TorRun};
use perfd::measurement::Kind;
use perfd::payload::Secret;
use perfd::payload::in_flight::InFlight;
use perfd::probe::Prober;
use perfd::scheduler::{Board, Doing, Experimenter, Means, Route, SchedulerError, Server};
use perfd::slot::{Grid, SlotReason, SlotRow, SlotState};
use perfd::store::Store;
use perfd::tor::Tor;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SECOND: i64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// A moment on the steered clock, in seconds; slots are due at its multiples of ten.
fn at(seconds: i64) -> UnixMicros {
    UnixMicros((1_800_000_000 + seconds) * SECOND)
}

/// One experiment with a slot every ten seconds, running on a clock of the test's.
struct Running {
    board: Board,
    store: Store,
    clock: SteeredClock,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), SchedulerError>>,
}

impl Running {
    async fn start(folder: &Path, now: UnixMicros, socks: SocketAddr, public: bool) -> Running {
        Self::start_with(folder, now, socks, public, |_| {}).await
    }

    /// Starts, and returns once the schedule has been taken up.
    async fn start_with(
        folder: &Path,
        now: UnixMicros,
        socks: SocketAddr,
        public: bool,
        change: impl FnOnce(&mut Experiment),
    ) -> Running {
        let store = Store::open(&folder.join("perfd.sqlite")).unwrap();
        let clock = SteeredClock::starting_at(now);
        let (prober, _thread) = Prober::start().unwrap();
        let board = Board::default();
        let means = Means {
            clock: Clock::Steered(clock.clone()),
            store: store.clone(),
            prober,
            secret: Secret::from_bytes([1; 32]),
            in_flight: InFlight::default(),
            board: board.clone(),
        };
        let seconds = Duration::from_secs;
        let mut experiment = Experiment {
            name: "x".to_owned(),
            tors: vec!["t".to_owned()],
            kind: Kind::Download,
            server: ServerChoice::Auto,
            onion_tor: None,
            optimistic: false,
            publish: true,
            requests: 1,
            isolation: Isolation::Each,
            size: 1,
            every: seconds(10),
            offset: Duration::ZERO,
            timeout: seconds(7),
            jitter: Duration::ZERO,
        };
        change(&mut experiment);
        let run = TorRun::Address { socks, control: None };
        let tor = config::Tor { name: "t".to_owned(), run, drop_guards_every: None, drop_timeouts_every: None };
        let server = match public {
            true => Server::Public(PublicAddress { host: "127.0.0.1".to_owned(), port: 1 }),
            false => Server::Nowhere,
        };
        let experimenter = Experimenter {
            experiment,
            routes: vec![Route { tor: Tor::new(tor, None), server }],
            source: "test".to_owned(),
            configuration: "{}".to_owned(),
            means,
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(experimenter.run(shutdown.clone()));
        let taken_up = async {
            while !matches!(board.all().get("x"), Some(Doing::Waiting { .. })) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, taken_up).await.unwrap();
        Running { board, store, clock, shutdown, task }
    }

    /// Steps the clock to `now`. The time that has passed really is small beside the slots' distance.
    fn step_to(&self, now: UnixMicros) {
        self.clock.step(now.0 - self.clock.now().0);
    }

    /// Waits until the schedule has noticed what the clock shows, and waits for this slot.
    async fn waits_for(&self, seconds: i64) {
        let expected = Doing::Waiting { next: at(seconds) };
        let noticed = async {
            while self.board.all().get("x") != Some(&expected) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, noticed).await.unwrap_or_else(|_| panic!("{:?}", self.board.all()));
    }

    async fn ledger(&self) -> Vec<SlotRow> {
        self.store.reader().slots_between("x", at(-10_000), at(10_000), 1000).await.unwrap()
    }

    /// Waits until the ledger is this: state, first and last slot in seconds, and how many.
    async fn expect(&self, expected: &[(SlotState, i64, i64, u64)]) {
        let expected: Vec<_> = expected.iter().map(|(s, first, last, n)| (*s, at(*first), at(*last), *n)).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let ledger = self.ledger().await;
            let seen: Vec<_> = ledger.iter().map(|r| (r.state, r.planned, r.planned_last, r.count)).collect();
            if seen == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "expected {expected:?}\nfound {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) -> Store {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        self.store.close(PATIENCE).await.unwrap();
        self.store
    }
}

/// A port that refuses at once, so that a run takes no time.
fn refusing() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}

use SlotState::{Aborted, Done, Missed, Skipped};

#[tokio::test]
async fn clocks_that_jump_and_step_back_run_nothing_twice_and_leave_nothing_out() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), at(3), refusing(), true).await;
    running.expect(&[]).await;
    running.step_to(at(10));
    running.expect(&[(Done, 10, 10, 1)]).await;

    // Ahead: three slots were jumped over, the fourth is run, late but in time.
    running.step_to(at(51));
    running.expect(&[(Done, 10, 10, 1), (Missed, 20, 40, 3), (Done, 50, 50, 1)]).await;

    // Back by less than an interval: 50 has been run.
    running.step_to(at(45));
    running.waits_for(60).await;
    running.step_to(at(60));
    running.expect(&[(Done, 10, 10, 1), (Missed, 20, 40, 3), (Done, 50, 50, 1), (Done, 60, 60, 1)]).await;

    // Far back: what was run is not run again; what was missed is run now that it comes due.
    running.step_to(at(24));
    running.waits_for(30).await;
    running.step_to(at(30));
    let first = [(Done, 10, 10, 1), (Missed, 20, 20, 1), (Done, 30, 30, 1), (Missed, 40, 40, 1)];
    running.expect(&[&first[..], &[(Done, 50, 50, 1), (Done, 60, 60, 1)]].concat()).await;
    running.step_to(at(70));
    running.expect(&[&first[..], &[(Done, 50, 50, 1), (Done, 60, 60, 1), (Done, 70, 70, 1)]].concat()).await;
    running.end().await;
}

#[tokio::test]
async fn a_restart_enters_what_was_missed_as_one_row_and_keeps_to_the_grid() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), at(9), refusing(), true).await;
    running.step_to(at(10));
    running.expect(&[(Done, 10, 10, 1)]).await;
    running.end().await;

    // 500 s later, in the middle between two slots: nothing is fired at once.
    let running = Running::start(folder.path(), at(505), refusing(), true).await;
    running.expect(&[(Done, 10, 10, 1), (Missed, 20, 500, 49)]).await;
    running.step_to(at(510));
    running.expect(&[(Done, 10, 10, 1), (Missed, 20, 500, 49), (Done, 510, 510, 1)]).await;
    running.end().await;

    // A clock that is behind the ledger takes nothing out of it but the slots that come due again.
    let running = Running::start(folder.path(), at(105), refusing(), true).await;
    running.expect(&[(Done, 10, 10, 1), (Missed, 20, 500, 49), (Done, 510, 510, 1)]).await;
    running.step_to(at(110));
    let rest = [(Done, 110, 110, 1), (Missed, 120, 500, 39), (Done, 510, 510, 1)];
    running.expect(&[&[(Done, 10, 10, 1), (Missed, 20, 100, 9)][..], &rest].concat()).await;
    // And when it is put right, only what is new is entered.
    running.step_to(at(530));
    running
        .expect(
            &[&[(Done, 10, 10, 1), (Missed, 20, 100, 9)][..], &rest, &[(Missed, 520, 520, 1), (Done, 530, 530, 1)]]
                .concat(),
        )
        .await;
    running.end().await;
}

#[tokio::test]
async fn a_run_that_is_cut_off_is_aborted_and_so_is_one_whose_perfd_died() {
    // A proxy that never answers: the run would take its whole timeout.
    let stalling = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), at(9), stalling.local_addr().unwrap(), true).await;
    running.step_to(at(10));
    let _first = stalling.accept().await.unwrap();
    running.expect(&[(SlotState::Running, 10, 10, 1)]).await;
    running.shutdown.cancel();
    running.expect(&[(Aborted, 10, 10, 1)]).await;
    assert_eq!(running.ledger().await[0].reason, Some(SlotReason::Shutdown));
    let store = running.end().await;
    drop(store);

    // A perfd that dies leaves its slot running; the next one aborts it.
    let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
    let slot = perfd::slot::SlotId { experiment: "x".to_owned(), planned: at(20) };
    let grid = Grid::new(Duration::from_secs(10), Duration::ZERO);
    store.begin_slot(slot, grid, at(20)).await.unwrap();
    assert_eq!(store.abort_unfinished(at(25)).await, Ok(1));
    let row = store.reader().last_slot("x").await.unwrap().unwrap();
    assert_eq!((row.state, row.reason), (Aborted, Some(SlotReason::Died)));
    store.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn slots_that_come_due_during_a_run_are_skipped() {
    // A configuration can't ask for it, but a run may still outlast its interval, on a host that was asleep.
    let stalling = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let every = |experiment: &mut Experiment| {
        experiment.every = Duration::from_millis(300);
        experiment.timeout = Duration::from_secs(2);
    };
    let socks = stalling.local_addr().unwrap();
    let running = Running::start_with(folder.path(), at(0), socks, true, every).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let skipped = loop {
        let ledger = running.ledger().await;
        if let Some(row) = ledger.iter().find(|row| row.state == Skipped) {
            break row.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "{ledger:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(skipped.reason, Some(SlotReason::Busy));
    assert!((5..=6).contains(&skipped.count), "2 s hold six slots, and the last may be in time: {skipped:?}");
    running.end().await;
}

#[tokio::test]
async fn without_a_public_host_every_slot_is_skipped_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), at(9), refusing(), false).await;
    running.step_to(at(10));
    running.expect(&[(Skipped, 10, 10, 1)]).await;
    assert_eq!(running.ledger().await[0].reason, Some(SlotReason::NoPublicHost));
    running.end().await;
}
