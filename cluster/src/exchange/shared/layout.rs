//! Where everything lies in the shared memory: the one place that knows an offset.
//!
//! ```text
//! at     what
//!    0   u32 magic "GRS1", u32 layout, u64 nonce, u64 body_max
//!  128   the router's side: u32 pid, u32 state (0 not there yet, 1 open, 2 closed)
//!  256   the worker's side, the same
//!  512   four rings' counters, 256 bytes each: written by who writes the ring (u64 head),
//!        and 128 bytes on by who reads it (u64 tail)
//! 1536   who sleeps, 128 bytes each: u32, for every direction its reader, then its writer
//! 4096   the rings' bytes: to the worker (frames, bulk), to the router (frames, bulk)
//! ```
//!
//! A direction has two rings. `frames` carries headers, and bodies up to `INLINE_MAX` behind them: it is small, so that what
//! a step of few rows sends stays in the cores' caches. `bulk` carries larger bodies.

use super::super::frame::HEADER_BYTES;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"GRS1");
pub(super) const VERSION: u32 = 1;

pub(super) const MAGIC_AT: usize = 0;
pub(super) const VERSION_AT: usize = 4;
pub(super) const NONCE_AT: usize = 8;
pub(super) const BODY_MAX_AT: usize = 16;

/// Two lines of 64 bytes, which processors fetch together.
const LINE: usize = 128;
const DATA_AT: usize = 4096;
const FRAMES_BYTES: usize = 512 << 10;
/// Bodies up to this size travel behind their headers: two such frames fit.
pub(super) const INLINE_MAX: usize = 192 << 10;
/// The largest body that may be agreed on.
pub(super) const BODY_LIMIT: u64 = 1 << 32;

const _: () = assert!(2 * (HEADER_BYTES + INLINE_MAX) <= FRAMES_BYTES);

/// Whose end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Router,
    Worker,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Router => Side::Worker,
            Side::Worker => Side::Router,
        }
    }

    pub(super) fn pid_at(self) -> usize {
        LINE * (1 + self as usize)
    }

    pub(super) fn state_at(self) -> usize {
        self.pid_at() + 4
    }
}

/// What a side's state says.
pub(super) const OPEN: u32 = 1;
pub(super) const CLOSED: u32 = 2;

/// One ring: its bytes, its counters, and where its reader and its writer say that they sleep.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingPlace {
    pub data: usize,
    /// A power of two.
    pub bytes: usize,
    pub head: usize,
    pub tail: usize,
    pub reader_sleeps: usize,
    pub writer_sleeps: usize,
}

/// The two rings of a direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub frames: RingPlace,
    pub bulk: RingPlace,
}

/// The whole memory, for bodies of a largest size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    bulk_bytes: usize,
}

impl Layout {
    /// None: so large a body cannot be agreed on.
    pub(super) fn new(body_max: u64) -> Option<Layout> {
        if body_max > BODY_LIMIT {
            return None;
        }
        // Who has no body beyond the small ones needs no ring for them.
        let bulk = if body_max as usize <= INLINE_MAX { 4096 } else { 2 * body_max as usize };
        Some(Layout { bulk_bytes: bulk.next_power_of_two() })
    }

    pub(super) fn bytes(self) -> usize {
        DATA_AT + 2 * (FRAMES_BYTES + self.bulk_bytes)
    }

    /// What `writer` writes and the other side reads.
    pub(super) fn lane(self, writer: Side) -> Lane {
        let lane = writer as usize;
        let data = DATA_AT + lane * (FRAMES_BYTES + self.bulk_bytes);
        let ring = |index: usize, data: usize, bytes: usize| RingPlace {
            data,
            bytes,
            head: 512 + (2 * lane + index) * 2 * LINE,
            tail: 512 + (2 * lane + index) * 2 * LINE + LINE,
            reader_sleeps: 1536 + 2 * lane * LINE,
            writer_sleeps: 1536 + (2 * lane + 1) * LINE,
        };
        Lane { frames: ring(0, data, FRAMES_BYTES), bulk: ring(1, data + FRAMES_BYTES, self.bulk_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        for body_max in [0, 1, INLINE_MAX as u64, INLINE_MAX as u64 + 1, 9_000_000, BODY_LIMIT] {
            let layout = Layout::new(body_max).unwrap();
            let mut places = vec![(0, 24)];
            for side in [Side::Router, Side::Worker] {
                places.push((side.pid_at(), 8));
                let Lane { frames, bulk } = layout.lane(side);
                places.extend([(frames.reader_sleeps, 4), (frames.writer_sleeps, 4)]);
                for ring in [frames, bulk] {
                    assert!(ring.bytes.is_power_of_two());
                    assert_eq!(ring.reader_sleeps, frames.reader_sleeps);
                    places.extend([(ring.head, 8), (ring.tail, 8), (ring.data, ring.bytes)]);
                }
                assert!(body_max <= INLINE_MAX as u64 || bulk.bytes as u64 >= 2 * body_max);
            }
            places.sort();
            for pair in places.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
                let counters = pair[1].0 < DATA_AT;
                assert!(!counters || pair[0].0 / LINE < pair[1].0 / LINE, "one line: {pair:?}");
            }
            assert_eq!(places.last().map(|(at, bytes)| at + bytes), Some(layout.bytes()));
        }
        assert!(Layout::new(BODY_LIMIT + 1).is_none());
    }
}
