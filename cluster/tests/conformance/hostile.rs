//! Bytes that no honest end would send: an error each, and the connection is over.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{
    Channel, ChannelError, FrameBody, FrameError, FrameKind, SharedEnd, SharedError, SharedOffer, Waiting,
    create_shared, open_shared,
};

use super::frames::{Numbers, header, send, soon};

const MAX: u64 = 300_000;

fn ends() -> (SharedOffer, SharedEnd, SharedEnd) {
    let (offer, router) = create_shared(MAX, 99, Waiting::asleep()).expect("memory");
    let worker = open_shared(&offer, MAX, Waiting::asleep()).expect("the same memory");
    (offer, router, worker)
}

fn memory(offer: &SharedOffer) -> File {
    let path = format!("/proc/{}/fd/{}", offer.pid, offer.fd);
    OpenOptions::new().read(true).write(true).open(path).expect("the memory as a file")
}

/// Where a frame's header lies that was just sent.
fn place_of_frame(memory: &File, call: u64) -> u64 {
    let mut bytes = vec![0; memory.metadata().unwrap().len() as usize];
    memory.read_exact_at(&mut bytes, 0).unwrap();
    let wanted = header(FrameKind::Reply, call).to_bytes();
    // All but the size of the body.
    let found = bytes.chunks_exact(64).position(|line| line[..48] == wanted[..48]);
    64 * found.expect("the frame") as u64
}

#[test]
fn headers_that_are_none() {
    let cases: [(u64, &[u8], FrameError); 6] = [
        (0, b"GRX1", FrameError::Magic),
        (6, &[1], FrameError::Magic),
        (4, &[0], FrameError::Kind(0)),
        (4, &[5], FrameError::Kind(5)),
        (5, &[3], FrameError::Form(3)),
        (48, &(MAX + 1).to_le_bytes(), FrameError::TooLarge { bytes: MAX + 1, max: MAX }),
    ];
    for (at, bytes, expected) in cases {
        let (offer, mut router, mut worker) = ends();
        send(&mut worker, FrameKind::Reply, 5, 1000).unwrap();
        let memory = memory(&offer);
        memory.write_all_at(bytes, place_of_frame(&memory, 5) + at).unwrap();
        match router.receive(&mut FrameBody::default(), soon()) {
            Err(ChannelError::Frame(error)) => assert_eq!(error, expected),
            other => panic!("{expected}: {other:?}"),
        }
        let after = router.receive(&mut FrameBody::default(), soon());
        assert!(matches!(after, Err(ChannelError::Closed)), "{after:?}");
    }
}

/// A body that is announced and does not come.
#[test]
fn bodies_that_are_missing() {
    for announced in [1001 + 63, 200_000, MAX] {
        let (offer, mut router, mut worker) = ends();
        send(&mut worker, FrameKind::Reply, 5, 1000).unwrap();
        let memory = memory(&offer);
        memory.write_all_at(&announced.to_le_bytes(), place_of_frame(&memory, 5) + 48).unwrap();
        let wait = Instant::now() + Duration::from_millis(50);
        let outcome = router.receive(&mut FrameBody::default(), wait);
        assert!(matches!(outcome, Err(ChannelError::Deadline)), "{announced}: {outcome:?}");
        let after = router.receive(&mut FrameBody::default(), soon());
        assert!(matches!(after, Err(ChannelError::Closed)), "{after:?}");
    }
}

#[test]
fn offers_that_are_not_kept() {
    let refused = |offer: SharedOffer, max: u64| match open_shared(&offer, max, Waiting::asleep()) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    };
    let (offer, _router) = create_shared(MAX, 99, Waiting::asleep()).expect("memory");
    assert!(matches!(refused(SharedOffer { nonce: 98, ..offer }, MAX), SharedError::Other("its nonce")));
    assert!(matches!(refused(SharedOffer { bytes: 5, ..offer }, MAX), SharedError::Other("its size")));
    assert!(matches!(refused(offer, MAX - 1), SharedError::Other("the size of its bodies")));
    assert!(matches!(refused(SharedOffer { fd: 12_345, ..offer }, MAX), SharedError::System { .. }));
    assert!(matches!(refused(offer, u64::MAX), SharedError::Body(u64::MAX)));
    // A file that is no memfd, one without seals, a folder.
    let file = tempfile::tempfile().unwrap();
    file.set_len(offer.bytes).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file) as u32;
    let error = refused(SharedOffer { fd, ..offer }, MAX);
    assert!(matches!(error, SharedError::Other("it may shrink") | SharedError::System { .. }), "{error}");
    // The first four bytes, the next four.
    for (at, what) in [(0, "its magic number"), (4, "its layout")] {
        let (offer, _router) = create_shared(MAX, 99, Waiting::asleep()).expect("memory");
        memory(&offer).write_all_at(&[9], at).unwrap();
        let error = refused(offer, MAX);
        assert!(matches!(error, SharedError::Other(said) if said == what), "{error}");
    }
    let worker = open_shared(&offer, MAX, Waiting::asleep()).expect("an honest offer");
    assert!(matches!(refused(offer, MAX), SharedError::Other("somebody has opened it")));
    drop(worker);
    assert!(matches!(refused(offer, MAX), SharedError::Other("somebody has opened it")));
}

/// Nobody can make the memory smaller, so that reading it never ends a process.
#[test]
fn memory_does_not_shrink() {
    let (offer, _router, _worker) = ends();
    assert!(memory(&offer).set_len(4096).is_err());
    assert!(memory(&offer).set_len(offer.bytes + 1).is_err());
}

/// Random numbers over counters and flags while frames travel: any outcome but a panic, a hang or a wrong size.
#[test]
fn counters_that_lie() {
    let mut refused = 0;
    for seed in 0..1_500 {
        let mut numbers = Numbers(seed);
        let (offer, mut router, mut worker) = ends();
        let memory = memory(&offer);
        let mut body = FrameBody::default();
        for call in 0..4 {
            let _ = send(&mut worker, FrameKind::Reply, call, [10, 5000, 100_000][numbers.below(3) as usize]);
            if numbers.below(2) == 0 {
                let number = match numbers.below(4) {
                    0 => numbers.next(),
                    1 => 64 * numbers.below(100),
                    2 => u64::MAX - numbers.below(1000),
                    _ => numbers.below(600_000),
                };
                // A counter, or anything of both sides' states, counters and sleepers.
                let anywhere = 8 * (16 + numbers.below(240));
                let at = [512 + 128 * numbers.below(8), anywhere][numbers.below(2) as usize];
                memory.write_all_at(&number.to_le_bytes(), at).unwrap();
            }
            // Few really wait, for a busy machine makes each wait long.
            let wait = Instant::now() + Duration::from_micros(200 * u64::from(numbers.below(20) == 0));
            match router.receive(&mut body, wait) {
                Ok(header) => assert_eq!(header.body_bytes, body.bytes().len() as u64, "seed {seed}"),
                Err(ChannelError::Frame(_)) => refused += 1,
                Err(_) => {}
            }
            let sent = router.send(&header(FrameKind::Call, call), &[&[7; 5000]], wait);
            refused += u32::from(matches!(sent, Err(ChannelError::Frame(_))));
        }
    }
    assert!(refused > 100, "only {refused} were refused: hardly anything was met");
}
