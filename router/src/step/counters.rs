//! What is counted, and the estimate of when a refused client may come again.

use std::time::Duration;

/// Counters of the step loop; they only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub cancelled: u64,
    pub failed: u64,
    pub finished_stop: u64,
    pub finished_length: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    /// Sequences that a plan gave rows without pages; each is a fault of the plan.
    pub short_plans: u64,
    pub steps: u64,
    pub failed_steps: u64,
    pub step_time: Duration,
    pub last_step: Duration,
}

/// How fast requests have been worked off lately.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rows in a second.
    rows_per_second: f64,
    /// Tokens of an answer.
    answer_tokens: f64,
}

/// The weight of the newest step in the average.
const NEWEST: f64 = 0.05;
/// What is assumed before anything has been measured.
const ROWS_PER_SECOND: f64 = 200.0;
const ANSWER_TOKENS: f64 = 128.0;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(120);

impl Default for Pace {
    fn default() -> Pace {
        Pace { rows_per_second: ROWS_PER_SECOND, answer_tokens: ANSWER_TOKENS }
    }
}

impl Pace {
    /// A step of `rows` rows took `time`.
    pub fn step(&mut self, rows: usize, time: Duration) {
        let rate = rows as f64 / time.as_secs_f64().max(1e-6);
        self.rows_per_second += (rate - self.rows_per_second) * NEWEST;
    }

    /// A choice ended after `tokens` tokens.
    pub fn finished(&mut self, tokens: usize) {
        self.answer_tokens += (tokens as f64 - self.answer_tokens) * NEWEST;
    }

    /// When `requests` with `tokens` tokens of prompts will have been worked off, in whole seconds.
    pub fn retry_after(&self, requests: usize, tokens: usize) -> Duration {
        let rows = tokens as f64 + requests as f64 * self.answer_tokens;
        let seconds = (rows / self.rows_per_second.max(1e-3)).ceil();
        Duration::from_secs(seconds.min(RETRY_MAX.as_secs_f64()) as u64).max(RETRY_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_pace() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.step(16, Duration::from_millis(16));
            pace.finished(50);
        }
        // 1,000 rows in a second.
        assert_eq!(pace.retry_after(100, 4_990), Duration::from_secs(10));
        assert_eq!(pace.retry_after(0, 0), RETRY_MIN);
        assert_eq!(pace.retry_after(100_000, 5_000_000), RETRY_MAX);
    }
}
