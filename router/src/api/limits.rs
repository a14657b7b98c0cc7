//! How much of everything there may be, and what the model allows.

use std::time::Duration;

/// Named limits of an engine.
#[derive(Clone, Debug)]
pub struct EngineLimits {
    /// Sequences that run at once.
    pub batch_max: usize,
    /// Rows of one step, decode and prefill together; at least `batch_max`, and at most what the runner has room for.
    pub rows_max: usize,
    /// Rows of one step whose logits are computed: bounds the memory of prompt log-probabilities.
    pub logits_rows_max: usize,
    /// Prompt and answer of one sequence; `None` is what model and pages allow.
    pub context_max: Option<usize>,
    /// Requests that wait. Where several tenants may come, one that has some waiting may have no more than it leaves free:
    /// alone half, beside another one that does so a third, and so on. There is always room for the next.
    pub queue_requests_max: usize,
    /// Prompt tokens of those, shared in the same way.
    pub queue_tokens_max: usize,
    /// Choices of one request.
    pub choices_max: u32,
    /// Events that wait for a client. A request whose events are not taken is paused, and goes on when they are.
    pub events_max: usize,
    /// A request whose events have not been taken for so long is ended.
    pub stall_max: Duration,
    /// Whether pages are kept for prompts that begin alike.
    pub prefix_cache: bool,
}

impl Default for EngineLimits {
    fn default() -> EngineLimits {
        EngineLimits {
            batch_max: 16,
            rows_max: 512,
            logits_rows_max: 64,
            context_max: None,
            queue_requests_max: 256,
            queue_tokens_max: 1 << 20,
            choices_max: 16,
            events_max: 256,
            stall_max: Duration::from_secs(30),
            prefix_cache: true,
        }
    }
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// As `config.json` names it.
    pub architecture: String,
    /// V
    pub vocab: usize,
    /// Prompt and answer of one sequence together.
    pub context: usize,
    /// Positions of KV over all sequences.
    pub kv_positions: usize,
    /// The model's own tokens that end an answer.
    pub stop_ids: Vec<u32>,
}
