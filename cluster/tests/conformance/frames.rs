//! Frames made from numbers, and what an answerer makes of them.

use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{Channel, ChannelError, FrameBody, FrameKind, Header, RowForm};
use gaterail_proto::{Epoch, LayerId, RouterId};

/// Long enough for any machine; tests that measure time set their own.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// Numbers from a seed (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// All forms that rows may have.
const FORMS: [RowForm; 4] = [
    RowForm::F32,
    RowForm::Int8 { thirty_twos: 1 },
    RowForm::Int8 { thirty_twos: 2 },
    RowForm::Int8 { thirty_twos: 4 },
];

/// A header whose every field is its own.
pub fn header(kind: FrameKind, call: u64) -> Header {
    Header {
        kind,
        form: FORMS[call as usize % FORMS.len()],
        router: RouterId(0x1122_3344_5566_7788 ^ call),
        epoch: Epoch(call + 1),
        call,
        layer: LayerId(call as u32 % 61),
        rows: 3,
        width: 1000 + call as u32,
        top_k: 8,
        body_bytes: 0,
        computed_ns: call * 1_000_003,
    }
}

/// The body of call `call`: bytes that differ from call to call and from place to place.
pub fn body(call: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers(call);
    let mut body = Vec::with_capacity(bytes + 8);
    while body.len() < bytes {
        body.extend_from_slice(&numbers.next().to_le_bytes());
    }
    body.truncate(bytes);
    body
}

pub fn send(channel: &mut dyn Channel, kind: FrameKind, call: u64, bytes: usize) -> Result<(), ChannelError> {
    let body = body(call, bytes);
    // In three parts, one of them empty.
    let (first, rest) = body.split_at(bytes / 3);
    channel.send(&header(kind, call), &[first, &[], rest], soon())
}

/// Receives the frame that `send` sent.
pub fn expect(channel: &mut dyn Channel, kind: FrameKind, call: u64, bytes: usize) {
    let mut came = FrameBody::default();
    let header_came =
        channel.receive(&mut came, soon()).unwrap_or_else(|error| panic!("call {call}: {error}"));
    assert_eq!(header_came, Header { body_bytes: bytes as u64, ..header(kind, call) });
    assert!(came.bytes() == body(call, bytes), "call {call}: the {bytes} bytes of its body");
}

/// Answers every call with a reply of its bytes in reverse, until the connection ends.
pub fn answer(channel: &mut dyn Channel) {
    let mut body = FrameBody::default();
    while let Ok(header) = channel.receive(&mut body, soon()) {
        let reply: Vec<u8> = body.bytes().iter().rev().copied().collect();
        let header = Header { kind: FrameKind::Reply, ..header };
        if channel.send(&header, &[&reply], soon()).is_err() {
            break;
        }
    }
}

/// A call and its answer by `answer`.
pub fn expect_answer(channel: &mut dyn Channel, call: u64, bytes: usize) {
    let mut came = FrameBody::default();
    let header_came =
        channel.receive(&mut came, soon()).unwrap_or_else(|error| panic!("call {call}: {error}"));
    assert_eq!(header_came, Header { body_bytes: bytes as u64, ..header(FrameKind::Reply, call) });
    assert!(came.bytes().iter().rev().eq(&body(call, bytes)), "the answer to call {call}");
}
