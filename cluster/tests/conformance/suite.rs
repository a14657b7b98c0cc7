//! What every channel must do. Each check gets a maker of two ends.

use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{ChannelError, Cut, FrameBody, FrameError, FrameKind};

use super::Ends;
use super::frames::{self, Numbers, expect, expect_answer, send, soon};

/// A body of a few hundred rows.
const MAX: usize = 1_500_000;
/// What a machine with other work may add to a wait.
pub const SLACK: Duration = Duration::from_millis(400);
/// Where it adds more, it is asked again, so often.
const TRIES: usize = 10;

/// The quickest of several times is below `most`: where this process stood still, the time says nothing of who is slow.
pub fn soon_enough(what: &str, most: Duration, mut take: impl FnMut() -> Duration) {
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        quickest = quickest.min(take());
        if quickest < most {
            return;
        }
    }
    panic!("{what}: {quickest:?} at least, where {most:?} are enough");
}

macro_rules! over {
    ($($ends:ident),*) => { $(mod $ends {
        $crate::suite::checks! { $ends:
            order, sizes, two_of_the_largest_each_way, two_calls_in_flight, deadlines, a_full_channel, cuts, a_dropped_peer,
            a_deadline_that_is_over, one_sequence
        }
    })* };
}
macro_rules! checks {
    ($ends:ident: $($check:ident),*) => { $(
        #[test]
        fn $check() {
            $crate::suite::$check(super::$ends);
        }
    )* };
}
pub(crate) use {checks, over};

pub fn order(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(5_000);
    for round in 0..300 {
        for call in [2 * round, 2 * round + 1] {
            send(&mut *router, FrameKind::Call, call, 40 + round as usize).unwrap();
            send(&mut *worker, FrameKind::Reply, call, 30 + round as usize).unwrap();
        }
        for call in [2 * round, 2 * round + 1] {
            expect(&mut *worker, FrameKind::Call, call, 40 + round as usize);
            expect(&mut *router, FrameKind::Reply, call, 30 + round as usize);
        }
    }
}

/// Sizes at which something changes inside, and one too many.
pub fn sizes(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(MAX as u64);
    let edges = [0, 64, 4096, 64 << 10, 192 << 10, 512 << 10, 1 << 20, MAX - 1];
    let sizes = edges.iter().flat_map(|&edge| [edge.saturating_sub(1), edge, edge + 1]);
    for (call, bytes) in sizes.enumerate() {
        send(&mut *router, FrameKind::Call, call as u64, bytes).unwrap();
        expect(&mut *worker, FrameKind::Call, call as u64, bytes);
        for kind in [FrameKind::Reply, FrameKind::Aborted, FrameKind::Failed] {
            send(&mut *worker, kind, call as u64, bytes).unwrap();
            expect(&mut *router, kind, call as u64, bytes);
        }
    }
    let refused = send(&mut *router, FrameKind::Call, 1000, MAX + 1);
    let (bytes, max) = (MAX as u64 + 1, MAX as u64);
    assert!(
        matches!(refused, Err(ChannelError::Frame(FrameError::TooLarge { bytes: b, max: m })) if b == bytes && m == max)
    );
    send(&mut *router, FrameKind::Call, 1001, 10).unwrap();
    expect(&mut *worker, FrameKind::Call, 1001, 10);
}

/// Nobody reads before all is sent: there is room for that.
pub fn two_of_the_largest_each_way(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(MAX as u64);
    for round in 0..5 {
        for call in [2 * round, 2 * round + 1] {
            send(&mut *router, FrameKind::Call, call, MAX).unwrap();
            send(&mut *worker, FrameKind::Reply, call, MAX).unwrap();
        }
        for call in [2 * round, 2 * round + 1] {
            expect(&mut *router, FrameKind::Reply, call, MAX);
            expect(&mut *worker, FrameKind::Call, call, MAX);
        }
        // From now on the largest begin elsewhere.
        send(&mut *router, FrameKind::Call, 99, 300_001).unwrap();
        expect(&mut *worker, FrameKind::Call, 99, 300_001);
    }
}

pub fn two_calls_in_flight(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(MAX as u64);
    let worker = std::thread::spawn(move || frames::answer(&mut *worker));
    let bytes = |call: u64| [100, 16_000, 300_000, 70_000, MAX][call as usize % 5];
    send(&mut *router, FrameKind::Call, 0, bytes(0)).unwrap();
    for call in 1..200 {
        send(&mut *router, FrameKind::Call, call, bytes(call)).unwrap();
        expect_answer(&mut *router, call - 1, bytes(call - 1));
    }
    expect_answer(&mut *router, 199, bytes(199));
    drop(router);
    worker.join().expect("the answerer ends with its channel");
}

pub fn deadlines(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(1000);
    let mut body = FrameBody::default();
    for wait in [0, 1, 30, 100].map(Duration::from_millis) {
        soon_enough("a deadline", wait + SLACK, || {
            let start = Instant::now();
            let outcome = router.receive(&mut body, start + wait);
            assert!(matches!(outcome, Err(ChannelError::Deadline)), "{outcome:?}");
            assert!(start.elapsed() >= wait, "{:?} for {wait:?}", start.elapsed());
            start.elapsed()
        });
    }
    send(&mut *worker, FrameKind::Reply, 1, 1000).unwrap();
    expect(&mut *router, FrameKind::Reply, 1, 1000);
}

/// What is there is received, however late.
pub fn a_deadline_that_is_over(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(1000);
    send(&mut *worker, FrameKind::Reply, 1, 1000).unwrap();
    send(&mut *worker, FrameKind::Reply, 2, 1000).unwrap();
    expect(&mut *router, FrameKind::Reply, 1, 1000);
    // The second may still be on its way.
    let (mut body, until) = (FrameBody::default(), soon());
    let header = loop {
        match router.receive(&mut body, Instant::now() - SLACK) {
            Err(ChannelError::Deadline) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => break outcome.unwrap(),
        }
    };
    assert_eq!(header.call, 2);
}

/// A reader that does not read: the writer is stopped, nothing is lost, and it goes on when there is room.
pub fn a_full_channel(ends: fn(u64) -> Ends) {
    let (mut router, mut worker) = ends(10_000);
    let header = frames::header(FrameKind::Call, 0);
    let (mut sent, mut late) = (0, 0);
    let stopped = loop {
        let header = gaterail_cluster::exchange::Header { call: sent, ..header };
        match router.send(&header, &[&frames::body(sent, 10_000)], Instant::now() + SLACK) {
            Ok(()) => sent += 1,
            // Where this process stood still for as long as that, there is room still.
            Err(ChannelError::Deadline) if late < 2 => late += 1,
            Err(error) => break error,
        }
        assert!(sent < 10_000, "no bound");
    };
    assert!(matches!(stopped, ChannelError::Deadline), "{stopped:?}");
    assert!(sent >= 2, "only {sent} frames fit");
    let reader = std::thread::spawn(move || {
        let mut body = FrameBody::default();
        for call in 0..sent + 3 {
            assert_eq!(worker.receive(&mut body, soon()).unwrap().call, call);
            assert!(body.bytes() == frames::body(call, 10_000), "call {call}");
        }
    });
    for call in sent..sent + 3 {
        let header = gaterail_cluster::exchange::Header { call, ..header };
        router.send(&header, &[&frames::body(call, 10_000)], soon()).unwrap();
    }
    reader.join().expect("all frames, in order");
}

pub fn cuts(ends: fn(u64) -> Ends) {
    let wait = |mut work: Box<dyn FnMut() -> ChannelError>, cut: Cut| {
        let after = Duration::from_millis(60);
        let start = Instant::now();
        let cutter = std::thread::spawn(move || {
            std::thread::sleep(after);
            cut.now();
        });
        let ended = work();
        assert!(matches!(ended, ChannelError::Closed), "{ended:?}");
        let took = start.elapsed();
        assert!(took >= after, "{took:?}: before it was cut");
        assert!(matches!(work(), ChannelError::Closed), "it stays cut");
        cutter.join().unwrap();
        took - after
    };
    soon_enough("receive", Cut::LATENCY_MAX + SLACK, || {
        let (mut router, _worker) = ends(100_000);
        let cut = router.cut();
        let receive = move || {
            let outcome = router.receive(&mut FrameBody::default(), soon());
            outcome.expect_err("nothing was sent")
        };
        wait(Box::new(receive), cut)
    });
    soon_enough("send", Cut::LATENCY_MAX + SLACK, || {
        let (mut router, _worker) = ends(100_000);
        let cut = router.cut();
        let fill = move || {
            (0..100_000)
                .find_map(|call| send(&mut *router, FrameKind::Call, call, 100_000).err())
                .expect("a bound")
        };
        wait(Box::new(fill), cut)
    });
}

pub fn a_dropped_peer(ends: fn(u64) -> Ends) {
    soon_enough("after the last frame", Cut::LATENCY_MAX + SLACK, || dropped_behind_frames(ends));
    soon_enough("while somebody waits", Cut::LATENCY_MAX + SLACK, || dropped_while_somebody_waits(ends));
}

fn dropped_behind_frames(ends: fn(u64) -> Ends) -> Duration {
    let (mut router, mut worker) = ends(10_000);
    send(&mut *worker, FrameKind::Reply, 0, 10_000).unwrap();
    send(&mut *worker, FrameKind::Reply, 1, 10).unwrap();
    let start = Instant::now();
    drop(worker);
    expect(&mut *router, FrameKind::Reply, 0, 10_000);
    expect(&mut *router, FrameKind::Reply, 1, 10);
    let outcome = router.receive(&mut FrameBody::default(), soon());
    assert!(matches!(outcome, Err(ChannelError::Closed)), "{outcome:?}");
    let refused = (0..1000).find_map(|call| send(&mut *router, FrameKind::Call, call, 10_000).err());
    assert!(matches!(refused, Some(ChannelError::Closed)), "{refused:?}");
    start.elapsed()
}

fn dropped_while_somebody_waits(ends: fn(u64) -> Ends) -> Duration {
    let after = Duration::from_millis(60);
    let (mut router, worker) = ends(10_000);
    let dropper = std::thread::spawn(move || {
        std::thread::sleep(after);
        drop(worker);
    });
    let start = Instant::now();
    let outcome = router.receive(&mut FrameBody::default(), soon());
    assert!(matches!(outcome, Err(ChannelError::Closed)), "{outcome:?}");
    let took = start.elapsed().saturating_sub(after);
    dropper.join().unwrap();
    took
}

/// Calls of random sizes, up to three on their way, in parts of random sizes: the same bytes arrive over every channel.
pub fn one_sequence(ends: fn(u64) -> Ends) {
    for seed in 0..6 {
        let (mut router, mut worker) = ends(MAX as u64);
        let worker = std::thread::spawn(move || frames::answer(&mut *worker));
        let mut numbers = Numbers(seed);
        let mut sizes = Vec::new();
        let mut answered = 0;
        while answered < 60 {
            let flying = sizes.len() - answered;
            if flying == 2 || (flying > 0 && numbers.below(2) == 0) {
                expect_answer(&mut *router, answered as u64, sizes[answered]);
                answered += 1;
            } else {
                let bytes = numbers.next() >> (43 + numbers.below(20));
                let (call, bytes) = (sizes.len(), (bytes as usize).min(MAX));
                let body = frames::body(call as u64, bytes);
                let cut = numbers.below(bytes as u64 + 1) as usize;
                let header = frames::header(FrameKind::Call, call as u64);
                router.send(&header, &[&body[..cut], &body[cut..]], soon()).unwrap();
                sizes.push(bytes);
            }
        }
        drop(router);
        worker.join().unwrap_or_else(|_| panic!("seed {seed}"));
    }
}
