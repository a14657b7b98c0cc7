//! Where a lane's time goes: a few clocks per layer, cheap enough to be always on. On a GPU it is the time of queueing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Totals since the start, in nanoseconds but for the counts.
#[derive(Debug, Default)]
pub struct LaneTimes {
    pub steps: AtomicU64,
    pub rows: AtomicU64,
    /// Batches of so many rows are two micro-batches that take turns; 0: never. And how many were.
    pub overlap_from: AtomicU64,
    pub overlapped: AtomicU64,
    /// Whole steps, exchange included.
    pub step_ns: AtomicU64,
    /// Norm, projections, attention over KV.
    pub attention_ns: AtomicU64,
    /// Norm, gate's logits, top-k.
    pub gate_ns: AtomicU64,
    /// Dense layers, shared experts, adding what came home.
    pub dense_ns: AtomicU64,
    /// Embedding and inputs, final norm and head.
    pub ends_ns: AtomicU64,
}

/// Adds the time from its making to its end to a total.
#[must_use]
pub(super) struct Clock<'a>(&'a AtomicU64, Instant);

impl LaneTimes {
    pub(super) fn clock(total: &AtomicU64) -> Clock<'_> {
        Clock(total, Instant::now())
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(self.1.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}
