//! The far end in another process: this test's own program, started again. It may be killed.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{
    Channel, ChannelError, Cut, FrameBody, FrameKind, SharedEnd, SharedOffer, Waiting, create_shared,
    open_shared,
};

use super::frames::{self, expect_answer, send, soon};
use super::suite::{SLACK, soon_enough};

const OFFER: &str = "GATERAIL_TEST_OFFER";
const MAX: u64 = 1_000_000;

/// A process that does not outlive its test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Sends a signal; for SIGSTOP, until it has stopped.
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
        let stopped = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
            stat.rsplit_once(") ").expect("its state").1.starts_with('T')
        };
        while stopped() != (name == "-STOP") {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Starts a process that runs one test of this program with a word for it.
pub fn process(test: &str, variable: &str, value: &str) -> Process {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.expect("this program once more"))
}

/// Answers in a process of its own; in an ordinary run there is nothing to do.
#[test]
fn answerer() {
    let Ok(offer) = std::env::var(OFFER) else { return };
    let mut numbers = offer.split(' ').map(|number| number.parse::<u64>().expect("a number"));
    let mut next = || numbers.next().expect("five numbers");
    let (waiting, pid, fd) = (next(), next() as u32, next() as u32);
    let offer = SharedOffer { pid, fd, bytes: next(), nonce: next() };
    let mut end = open_shared(&offer, MAX, waiting_of(waiting)).expect("the offered memory");
    frames::answer(&mut end);
}

fn waiting_of(number: u64) -> Waiting {
    [Waiting::asleep(), Waiting::default(), Waiting::of(2, 2)][number as usize]
}

fn answering_process(waiting: u64) -> (SharedEnd, Process) {
    let (offer, router) = create_shared(MAX, 0xfeed, waiting_of(waiting)).expect("memory");
    let SharedOffer { pid, fd, bytes, nonce } = offer;
    let offer = format!("{waiting} {pid} {fd} {bytes} {nonce}");
    (router, process("processes::answerer", OFFER, &offer))
}

#[test]
fn calls_are_answered() {
    for waiting in 0..3 {
        let (mut router, mut child) = answering_process(waiting);
        let bytes = |call: u64| [0, 64, 16_000, 300_000, MAX as usize][call as usize % 5];
        send(&mut router, FrameKind::Call, 0, bytes(0)).unwrap();
        for call in 1..500 {
            send(&mut router, FrameKind::Call, call, bytes(call)).unwrap();
            expect_answer(&mut router, call - 1, bytes(call - 1));
        }
        expect_answer(&mut router, 499, bytes(499));
        assert_eq!(router.peer_pid(), Some(child.0.id()));
        drop(router);
        assert!(child.0.wait().expect("an end").success());
    }
}

/// Who sleeps is woken: it does not merely look again after a while.
#[test]
fn sleepers_are_woken() {
    let (mut router, child) = answering_process(0);
    let mut round = |call: u64| {
        let start = Instant::now();
        send(&mut router, FrameKind::Call, call, 64).unwrap();
        expect_answer(&mut router, call, 64);
        start.elapsed()
    };
    let mut calls = 0..;
    soon_enough("half of all rounds", Cut::LATENCY_MAX / 2, || {
        let mut rounds: Vec<Duration> = calls.by_ref().take(200).map(&mut round).collect();
        rounds.sort();
        rounds[100]
    });
    drop(child);
}

/// kill -9: whoever waits learns of it soon.
#[test]
fn a_killed_process_is_noticed() {
    for waiting in 0..3 {
        soon_enough("kill -9", Cut::LATENCY_MAX + SLACK, || {
            let (mut router, mut child) = answering_process(waiting);
            send(&mut router, FrameKind::Call, 1, 1000).unwrap();
            expect_answer(&mut router, 1, 1000);
            let start = Instant::now();
            child.0.kill().expect("a living process");
            let outcome = router.receive(&mut FrameBody::default(), soon());
            assert!(matches!(outcome, Err(ChannelError::Closed)), "{outcome:?}");
            let took = start.elapsed();
            // A full channel to a dead process as well.
            let ended = (0..1000).find_map(|call| send(&mut router, FrameKind::Call, call, 100_000).err());
            assert!(matches!(ended, Some(ChannelError::Closed)), "{ended:?}");
            child.0.wait().expect("an end");
            took
        });
    }
}

/// SIGSTOP: nothing comes, and that is all that can be said.
#[test]
fn a_stopped_process_is_a_deadline() {
    let (mut router, mut child) = answering_process(1);
    send(&mut router, FrameKind::Call, 1, 1000).unwrap();
    expect_answer(&mut router, 1, 1000);
    child.signal("-STOP");
    send(&mut router, FrameKind::Call, 2, 1000).unwrap();
    let wait = Instant::now() + Duration::from_millis(200);
    let outcome = router.receive(&mut FrameBody::default(), wait);
    assert!(matches!(outcome, Err(ChannelError::Deadline)), "{outcome:?}");
    child.signal("-CONT");
    expect_answer(&mut router, 2, 1000);
    let cut = router.cut();
    cut.now();
    assert!(matches!(send(&mut router, FrameKind::Call, 3, 10), Err(ChannelError::Closed)));
    drop(router);
    assert!(child.0.wait().expect("an end").success());
}
