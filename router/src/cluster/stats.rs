//! What the exchange costs, always measured: a few clocks per layer and per call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gaterail_model::walk::{ExpertMath, Hits};
use gaterail_proto::WorkerId;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct ExchangeStats {
    /// Layers that were combined.
    pub layers: AtomicU64,
    /// Layers that were computed again after a fault.
    pub again: AtomicU64,
    /// Layers that waited for another plan because a worker failed, and nanoseconds from the first wait for their rows until
    /// those were home: the last one's, and of all.
    pub stalls: AtomicU64,
    pub last_stall_ns: AtomicU64,
    pub stall_ns: AtomicU64,
    /// Nanoseconds: handing rows out, the router's own share of experts included.
    pub dispatch_ns: AtomicU64,
    /// Nanoseconds: waiting for replies, computing them included.
    pub wait_ns: AtomicU64,
    /// Nanoseconds: adding the sums and turning them to f32.
    pub combine_ns: AtomicU64,
    /// Nanoseconds that the slowest worker of a layer computed, summed up over layers.
    pub slowest_ns: AtomicU64,
    /// The same for the mean over the workers of a layer: what is between them is waiting for the slowest.
    pub mean_ns: AtomicU64,
    /// Steps, from their first rows to their last sums: how many, nanoseconds of all, and of the longest since it was taken last.
    pub steps: AtomicU64,
    pub step_ns: AtomicU64,
    longest_ns: AtomicU64,
    /// Nanoseconds that the engine took to switch to the plan that it uses.
    pub switch_ns: AtomicU64,
    hits: OnceLock<Arc<Hits>>,
    links: Mutex<BTreeMap<WorkerId, Arc<LinkStats>>>,
}

/// Totals of one worker.
#[derive(Debug, Default)]
pub struct LinkStats {
    pub calls: AtomicU64,
    /// Rows of all calls that it had something to do for.
    pub rows: AtomicU64,
    pub computed_ns: AtomicU64,
    pub bytes_out: AtomicU64,
    pub bytes_in: AtomicU64,
    /// Calls for which rows were picked out of a batch, and those whose rows were int8.
    pub gathered: AtomicU64,
    pub int8: AtomicU64,
    /// Bytes that all rows of the same batches have in f32, less those that went out.
    pub spared: AtomicU64,
}

impl ExchangeStats {
    /// A worker's totals, from zero if it is new.
    pub fn link(&self, worker: WorkerId) -> Arc<LinkStats> {
        self.lock().entry(worker).or_default().clone()
    }

    pub fn links(&self) -> BTreeMap<WorkerId, Arc<LinkStats>> {
        self.lock().clone()
    }

    pub fn forget(&self, worker: WorkerId) {
        self.lock().remove(&worker);
    }

    /// What rows of a model go to; the engine counts.
    pub(super) fn count_hits(&self, math: &ExpertMath) -> Arc<Hits> {
        self.hits.get_or_init(|| Arc::new(Hits::new(math))).clone()
    }

    /// `None` before there is an engine.
    pub fn hits(&self) -> Option<&Arc<Hits>> {
        self.hits.get()
    }

    pub(super) fn stepped(&self, time: Duration) {
        let time = time.as_nanos() as u64;
        add(&self.step_ns, time);
        add(&self.steps, 1);
        self.longest_ns.fetch_max(time, Ordering::Relaxed);
    }

    /// The longest step since this was asked last.
    pub(super) fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::Relaxed))
    }

    pub(super) fn stalled(&self, time: Duration) {
        let time = time.as_nanos() as u64;
        self.last_stall_ns.store(time, Ordering::Relaxed);
        add(&self.stall_ns, time);
        // Last: who sees it counted sees how long it was.
        self.stalls.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<WorkerId, Arc<LinkStats>>> {
        self.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(super) fn add(to: &AtomicU64, value: u64) {
    to.fetch_add(value, Ordering::Relaxed);
}
