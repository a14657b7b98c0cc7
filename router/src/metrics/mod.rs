//! What the server counts, in Prometheus' text format: `gaterail_*`, and vLLM's names for the same figures, which
//! dashboards and autoscalers read.
//!
//! | file | |
//! |---|---|
//! | [`histogram`] | durations and sizes in buckets |
//! | [`page`] | the text format |
//! | [`report`] | which figure has which names |
//! | [`workers`] | the steps by their parts, and the workers |

pub mod histogram;
pub mod page;
mod report;
mod workers;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use histogram::Histogram;
pub use report::About;

use crate::api::Timing;

/// Fine enough for tokens of 1 ms.
const SHORT: [f64; 20] = [
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 1.0,
];
/// The buckets that OpenTelemetry advises for the time to the first token, and some above.
const FIRST: [f64; 20] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0,
];
const LONG: [f64; 16] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68];
const TOKENS: [f64; 18] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];

/// Why requests for tokens ended, in the words of the log and of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Stop,
    Length,
    /// The client went away.
    Cancelled,
    /// Refused before it began, or failed; the log has the reason.
    Refused,
    Failed,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Stop => "stop",
            Outcome::Length => "length",
            Outcome::Cancelled => "abort",
            Outcome::Refused => "refused",
            Outcome::Failed => "error",
        }
    }
}

/// Counters and histograms of the front; the engine has its own, which are read when the page is made.
pub struct Metrics {
    pub first_token: Histogram,
    pub between_tokens: Histogram,
    pub per_token: Histogram,
    pub whole: Histogram,
    pub queued: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub prompt_tokens: Histogram,
    pub generated_tokens: Histogram,
    outcomes: [AtomicU64; 5],
    /// By route and status.
    responses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Refusals before the engine saw the request, by code.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            first_token: Histogram::new(&FIRST),
            between_tokens: Histogram::new(&SHORT),
            per_token: Histogram::new(&SHORT),
            whole: Histogram::new(&LONG),
            queued: Histogram::new(&FIRST),
            prefill: Histogram::new(&FIRST),
            decode: Histogram::new(&LONG),
            prompt_tokens: Histogram::new(&TOKENS),
            generated_tokens: Histogram::new(&TOKENS),
            outcomes: Default::default(),
            responses: Mutex::default(),
            refusals: Mutex::default(),
            connections: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    pub fn response(&self, route: &'static str, status: u16) {
        *lock(&self.responses).entry((route, status)).or_default() += 1;
    }

    pub fn refusal(&self, code: &'static str) {
        *lock(&self.refusals).entry(code).or_default() += 1;
    }

    pub fn outcome(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// One finished choice.
    pub fn timing(&self, timing: &Timing, generated: usize) {
        self.queued.record(timing.queued.as_secs_f64());
        self.prefill.record(timing.prefill.as_secs_f64());
        self.decode.record(timing.decode.as_secs_f64());
        if generated > 1 {
            self.per_token.record(timing.decode.as_secs_f64() / (generated - 1) as f64);
        }
    }

    pub fn seconds(histogram: &Histogram, time: Duration) {
        histogram.record(time.as_secs_f64());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
