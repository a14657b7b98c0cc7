//! Gauges and counters of an engine, as they were at the end of a step.

use std::time::Duration;

/// A picture of the engine. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadSnapshot {
    /// Whether the engine's thread lives.
    pub alive: bool,
    pub draining: bool,

    /// Requests that wait to start, and the tokens of their prompts.
    pub queued_requests: usize,
    pub queued_tokens: usize,
    /// Sequences that wait, those of started requests and preempted ones included.
    pub waiting: usize,
    /// Sequences that have pages.
    pub running: usize,
    /// Of those, the ones whose client does not take its events.
    pub paused: usize,

    pub pages_total: usize,
    /// Pages that a sequence holds.
    pub pages_used: usize,
    /// Pages that nobody holds, kept for prompts that begin alike.
    pub pages_cached: usize,

    pub requests: u64,
    pub refused: u64,
    pub cancelled: u64,
    pub failed: u64,
    /// Choices that ended with a stop token or string, and those that ended by length.
    pub finished_stop: u64,
    pub finished_length: u64,

    /// Rows that were computed for prompts (not those found in the cache), and tokens that were sampled.
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Tokens that were looked up in the prefix cache, and those found.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,

    pub steps: u64,
    pub failed_steps: u64,
    /// Time inside steps, all together, and of the last one.
    pub step_time: Duration,
    pub last_step: Duration,
    /// Since the last step ended; since the start where there was none. Grows while idle, too.
    pub last_step_age: Duration,
}

impl LoadSnapshot {
    /// Whether there is work that ought to move: with `last_step_age` it tells a stuck engine from an idle one.
    pub fn is_busy(&self) -> bool {
        self.queued_requests > 0 || self.waiting > 0 || self.running > self.paused
    }

    /// Share of the pages that sequences hold, 0 to 1.
    pub fn pages_share(&self) -> f64 {
        self.pages_used as f64 / self.pages_total.max(1) as f64
    }
}
