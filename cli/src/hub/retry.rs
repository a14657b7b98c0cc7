//! Pauses between attempts: exponential, with jitter, bounded, and cut short when the pull is over.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::limits::{Patience, RETRY_AFTER_MAX};

/// Counts the failures of one request: those in a row, and all of them.
pub struct Backoff<'a> {
    patience: &'a Patience,
    in_a_row: u32,
    attempts: u32,
}

impl<'a> Backoff<'a> {
    pub fn new(patience: &'a Patience) -> Self {
        Self { patience, in_a_row: 0, attempts: 0 }
    }

    /// Enough new bytes have come: earlier failures no longer count, but for the total.
    pub fn progressed(&mut self) {
        self.in_a_row = 0;
    }

    /// All failed attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// After a failure: how long to wait, or `None` to give up. `asked` is the server's wish.
    pub fn pause(&mut self, asked: Option<Duration>, attempts_max: u32) -> Option<Duration> {
        self.in_a_row += 1;
        self.attempts += 1;
        let used_up = self.in_a_row >= attempts_max || self.attempts >= self.patience.attempts_total_max;
        if used_up || asked.is_some_and(|asked| asked > RETRY_AFTER_MAX) {
            return None;
        }
        let doubled = self.patience.pause_first.saturating_mul(1 << (self.in_a_row - 1).min(20));
        let own = doubled.min(self.patience.pause_max).mul_f64(jitter());
        Some(own.max(asked.unwrap_or_default()))
    }
}

/// Between 0.75 and 1.25, so that the machines of a rig do not come back in step.
fn jitter() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    0.75 + 0.5 * bits as f64 / (1u64 << 53) as f64
}

/// Tells all downloads of a pull that one of them has failed for good.
#[derive(Default)]
pub struct Stop {
    raised: Mutex<bool>,
    signal: Condvar,
}

impl Stop {
    pub fn raise(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.signal.notify_all();
    }

    pub fn is_raised(&self) -> bool {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps, at most until the stop is raised; says whether it was.
    pub fn sleep(&self, pause: Duration) -> bool {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.signal.wait_timeout_while(raised, pause, |raised| !*raised);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
