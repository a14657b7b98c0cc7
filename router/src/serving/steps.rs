//! Where the time of steps goes: the walk's clocks and the exchange's, as shares of a step that add up to one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gaterail_model::walk::{Hits, LaneTimes, LayerHits};
use serde::{Deserialize, Serialize};

use crate::cluster::ExchangeStats;

/// Shares are those of the last window in which there were steps.
const WINDOW: Duration = Duration::from_secs(1);

/// What steps spend their time on, in the order of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepParts {
    /// Norm, projections, attention over KV.
    pub attention: f64,
    pub gate: f64,
    /// Dense layers, shared experts, adding what came home.
    pub dense: f64,
    /// Handing rows out, and the experts that this process holds beside its workers; without the time in which a worker was
    /// already computing and did not have to be waited for later.
    pub dispatch: f64,
    /// The experts, as workers compute them on average.
    pub experts: f64,
    /// What the slowest worker takes longer than the average.
    pub slowest: f64,
    /// Rows on their way.
    pub travel: f64,
    /// Adding sums.
    pub combine: f64,
    /// Embedding and head.
    pub ends: f64,
    /// All else.
    pub other: f64,
}

/// The steps of the last window that had any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepStatus {
    pub steps: u64,
    pub steps_per_second: f64,
    pub rows_per_second: f64,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Bytes of frames for a row, both ways; and how many more it would have been with all rows of every batch in f32.
    #[serde(default)]
    pub bytes_per_row: f64,
    #[serde(default)]
    pub bytes_spared_per_row: f64,
    /// From 0 to 1; together 1, or 0 where there was no step yet.
    pub shares: StepParts,
    /// Batches of so many rows are computed as two micro-batches that take turns, so that router and workers overlap; and how
    /// many were, since the start.
    pub overlap_from: Option<u64>,
    pub overlapped: u64,
    /// Since the start: layers that were computed again, and how long answers stood still for it.
    pub stalls: u64,
    pub stalled_ms: f64,
    pub last_stall_ms: f64,
}

/// Totals since the start, in seconds but for the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTotals {
    pub steps: u64,
    pub rows: u64,
    pub step: f64,
    pub parts: StepParts,
    /// Layers whose rows went to workers, calls of them, and bytes of their frames both ways.
    pub layers: u64,
    pub calls: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// What all rows of every batch would have had in f32, less what went out.
    #[serde(default)]
    pub bytes_spared: u64,
}

/// Reads the clocks of the walk and of the exchange.
pub struct StepMeter {
    lane: Arc<LaneTimes>,
    /// Where rows went that this process computes.
    own: Option<Arc<Hits>>,
    exchange: Option<Arc<ExchangeStats>>,
    window: Mutex<Window>,
}

struct Window {
    since: Instant,
    before: StepTotals,
    last: StepStatus,
}

impl StepMeter {
    /// With workers.
    pub fn with_exchange(lane: Arc<LaneTimes>, exchange: Arc<ExchangeStats>) -> StepMeter {
        StepMeter { exchange: Some(exchange), ..StepMeter::new(lane, None) }
    }

    /// Where this process computes all experts, and where rows to those go.
    pub fn new(lane: Arc<LaneTimes>, own: Option<Arc<Hits>>) -> StepMeter {
        let (before, last) = (StepTotals::default(), StepStatus::default());
        let window = Mutex::new(Window { since: Instant::now(), before, last });
        StepMeter { lane, own, exchange: None, window }
    }

    /// Which experts rows went to since the start; `None` where nobody counts.
    pub fn hits(&self) -> Option<Vec<LayerHits>> {
        let away = self.exchange.as_ref().and_then(|exchange| exchange.hits());
        Some(away.or(self.own.as_ref())?.layers())
    }

    /// Closes a window where one is over; to be called more often than once in a window.
    pub fn sample(&self, now: Instant) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(window.since);
        if since < WINDOW {
            return;
        }
        let totals = self.totals();
        if totals.steps > window.before.steps {
            window.last = StepStatus::between(&window.before, &totals, since);
        }
        (window.since, window.before) = (now, totals);
    }

    /// The last window that had steps.
    pub fn status(&self) -> StepStatus {
        let last = self.window.lock().unwrap_or_else(PoisonError::into_inner).last;
        let from = self.lane.overlap_from.load(Ordering::Relaxed);
        let last = StepStatus {
            overlap_from: (from > 0).then_some(from),
            overlapped: self.lane.overlapped.load(Ordering::Relaxed),
            ..last
        };
        let Some(exchange) = &self.exchange else { return last };
        let ms = |total: &AtomicU64| total.load(Ordering::Relaxed) as f64 / 1e6;
        StepStatus {
            stalls: exchange.stalls.load(Ordering::Relaxed),
            stalled_ms: ms(&exchange.stall_ns),
            last_stall_ms: ms(&exchange.last_stall_ns),
            ..last
        }
    }

    pub fn totals(&self) -> StepTotals {
        let seconds = |total: &AtomicU64| total.load(Ordering::Relaxed) as f64 / 1e9;
        let LaneTimes { steps, rows, step_ns, attention_ns, gate_ns, dense_ns, ends_ns, .. } = &*self.lane;
        let lane = StepParts {
            attention: seconds(attention_ns),
            gate: seconds(gate_ns),
            dense: seconds(dense_ns),
            ends: seconds(ends_ns),
            ..StepParts::default()
        };
        let step = seconds(step_ns);
        let parts = match &self.exchange {
            // The walk's other time is the experts'.
            None => StepParts { experts: (step - lane.sum()).max(0.0), ..lane },
            Some(exchange) => {
                let (mean, most) = (seconds(&exchange.mean_ns), seconds(&exchange.slowest_ns));
                let (sent, waited) = (seconds(&exchange.dispatch_ns), seconds(&exchange.wait_ns));
                // A worker begins before it is waited for; one that shares the router's core takes it over while rows are handed
                // out. What it has computed longer than it was waited for is the experts' time, not the handing's.
                let before = (most - waited).clamp(0.0, sent);
                let wait = waited + before;
                let experts = mean.min(wait);
                let slowest = (most - mean).clamp(0.0, wait - experts);
                let with = StepParts {
                    dispatch: sent - before,
                    experts,
                    slowest,
                    travel: wait - experts - slowest,
                    combine: seconds(&exchange.combine_ns),
                    ..lane
                };
                StepParts { other: (step - with.sum()).max(0.0), ..with }
            }
        };
        let count = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let mut totals =
            StepTotals { steps: count(steps), rows: count(rows), step, parts, ..Default::default() };
        if let Some(exchange) = &self.exchange {
            totals.layers = count(&exchange.layers);
            for link in exchange.links().values() {
                totals.calls += count(&link.calls);
                totals.bytes_out += count(&link.bytes_out);
                totals.bytes_in += count(&link.bytes_in);
                totals.bytes_spared += count(&link.spared);
            }
        }
        totals
    }
}

impl StepStatus {
    fn between(before: &StepTotals, after: &StepTotals, time: Duration) -> StepStatus {
        let (steps, seconds) = (after.steps - before.steps, time.as_secs_f64());
        let spent = after.parts.minus(&before.parts);
        let rows = after.rows.saturating_sub(before.rows).max(1) as f64;
        // A worker that left has taken its totals with it.
        let a_row = |of: fn(&StepTotals) -> u64| of(after).saturating_sub(of(before)) as f64 / rows;
        StepStatus {
            steps: after.steps,
            steps_per_second: steps as f64 / seconds,
            rows_per_second: (after.rows - before.rows) as f64 / seconds,
            step_ms: (after.step - before.step) * 1e3 / steps.max(1) as f64,
            shares: spent.over(spent.sum()),
            bytes_per_row: a_row(|at| at.bytes_out + at.bytes_in),
            bytes_spared_per_row: a_row(|at| at.bytes_spared),
            ..StepStatus::default()
        }
    }
}

impl StepParts {
    /// With their names, in the order of a layer.
    pub fn named(&self) -> [(&'static str, f64); 10] {
        [
            ("attention", self.attention),
            ("gate", self.gate),
            ("dense", self.dense),
            ("dispatch", self.dispatch),
            ("experts", self.experts),
            ("slowest", self.slowest),
            ("travel", self.travel),
            ("combine", self.combine),
            ("ends", self.ends),
            ("other", self.other),
        ]
    }

    fn sum(&self) -> f64 {
        self.named().iter().map(|(_, value)| value).sum()
    }

    fn minus(&self, before: &StepParts) -> StepParts {
        self.with(before, |after, before| (after - before).max(0.0))
    }

    fn over(&self, whole: f64) -> StepParts {
        self.with(self, |part, _| if whole > 0.0 { part / whole } else { 0.0 })
    }

    fn with(&self, other: &StepParts, f: impl Fn(f64, f64) -> f64) -> StepParts {
        StepParts {
            attention: f(self.attention, other.attention),
            gate: f(self.gate, other.gate),
            dense: f(self.dense, other.dense),
            dispatch: f(self.dispatch, other.dispatch),
            experts: f(self.experts, other.experts),
            slowest: f(self.slowest, other.slowest),
            travel: f(self.travel, other.travel),
            combine: f(self.combine, other.combine),
            ends: f(self.ends, other.ends),
            other: f(self.other, other.other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(total: &AtomicU64, ms: u64) {
        total.store(ms * 1_000_000, Ordering::Relaxed);
    }

    #[test]
    fn shares_are_those_of_the_last_window_with_steps() {
        let (lane, exchange) = (Arc::new(LaneTimes::default()), Arc::new(ExchangeStats::default()));
        let meter = StepMeter::with_exchange(lane.clone(), exchange.clone());
        let start = Instant::now();
        assert_eq!(meter.status(), StepStatus::default());
        lane.steps.store(10, Ordering::Relaxed);
        lane.rows.store(40, Ordering::Relaxed);
        set(&lane.step_ns, 100);
        set(&lane.attention_ns, 20);
        set(&exchange.dispatch_ns, 10);
        set(&exchange.wait_ns, 50);
        set(&exchange.mean_ns, 30);
        set(&exchange.slowest_ns, 35);
        meter.sample(start + 2 * WINDOW);
        let status = meter.status();
        assert_eq!((status.steps, status.step_ms.round(), status.steps_per_second.round()), (10, 10.0, 5.0));
        let shares = status.shares;
        let percent =
            [shares.attention, shares.dispatch, shares.experts, shares.slowest, shares.travel, shares.other];
        assert_eq!(percent.map(|share| (share * 100.0).round()), [20.0, 10.0, 30.0, 5.0, 15.0, 20.0]);
        assert!((shares.sum() - 1.0).abs() < 1e-9);
        // Nothing happens: what was stays to be seen.
        meter.sample(start + 4 * WINDOW);
        assert_eq!(meter.status(), status);
    }

    #[test]
    fn what_a_worker_computes_while_rows_are_handed_out_is_the_experts() {
        let (lane, exchange) = (Arc::new(LaneTimes::default()), Arc::new(ExchangeStats::default()));
        let meter = StepMeter::with_exchange(lane.clone(), exchange.clone());
        set(&lane.step_ns, 100);
        set(&exchange.dispatch_ns, 25);
        set(&exchange.wait_ns, 40);
        set(&exchange.mean_ns, 50);
        set(&exchange.slowest_ns, 60);
        let parts = meter.totals().parts;
        let ms = [parts.dispatch, parts.experts, parts.slowest, parts.travel, parts.other];
        assert_eq!(ms.map(|seconds| (seconds * 1e3).round()), [5.0, 50.0, 10.0, 0.0, 35.0]);
        // Longer than both together is nothing that can be: then it is all that there was.
        set(&exchange.slowest_ns, 90);
        let parts = meter.totals().parts;
        let ms = [parts.dispatch, parts.experts, parts.slowest, parts.travel, parts.other];
        assert_eq!(ms.map(|seconds| (seconds * 1e3).round()), [0.0, 50.0, 15.0, 0.0, 35.0]);
    }

    #[test]
    fn without_workers_the_rest_is_the_experts() {
        let lane = Arc::new(LaneTimes::default());
        lane.steps.store(1, Ordering::Relaxed);
        set(&lane.step_ns, 10);
        set(&lane.attention_ns, 4);
        let meter = StepMeter::new(lane, None);
        meter.sample(Instant::now() + 2 * WINDOW);
        assert!((meter.status().shares.experts - 0.6).abs() < 1e-9);
    }
}
