//! What a request is answered with. Events of one choice come in their order; choices are interleaved.

use std::time::Duration;

use gaterail_model::sampler::SamplerError;
pub use gaterail_model::sampler::{FinishReason, StopCause};

/// One thing that happened to a request.
///
/// The order is: `Started` once; `Prompt` as often as it takes, where prompt log-probabilities were asked for; for every
/// choice any number of `Token` and one `Finished`. Or `Failed`, which ends all. A channel that closes without `Failed`
/// and before every choice is finished means that the engine has stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It left the queue.
    Started {
        /// Tokens of the prompt whose KV was found in the cache.
        cached_tokens: usize,
    },
    /// Log-probabilities of the prompt's tokens from `start` on. The first token of a prompt has none: `start` begins at 1.
    Prompt {
        start: usize,
        logprobs: Vec<PromptLogprob>,
    },
    Token(Piece),
    /// A choice is done. The last one ends the request.
    Finished {
        choice: u32,
        reason: FinishReason,
        usage: Usage,
        timing: Timing,
    },
    /// The whole request is over.
    Failed(Failure),
}

/// A token and the text that became certain with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub choice: u32,
    pub token: u32,
    /// Often a word; empty while a character or what may become a stop string is held back, and for a token that ends
    /// the choice. What is held back at the end comes with the last token.
    pub text: String,
    /// Of the model's own distribution. Present when `params.logprobs` is.
    pub logprob: Option<f32>,
    /// The most likely tokens, most likely first, `params.logprobs` many.
    pub top: Vec<(u32, f32)>,
}

/// How likely a token of the prompt was.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprob {
    pub token: u32,
    pub logprob: f32,
    /// The most likely tokens at its place, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Tokens that one choice took. The prompt counts once per request, however many choices it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Of the prompt, found in the cache when the request started.
    pub cached_tokens: usize,
    /// Of this choice, the one that ended it included.
    pub generated_tokens: usize,
}

/// Where the time of one choice went. Only differences of one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission until the first row ran.
    pub queued: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Times that its pages were taken away and computed again.
    pub preemptions: u32,
}

/// Why a request that was accepted is not finished.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error("the deadline passed")]
    Deadline,
    /// A retry does not help.
    #[error(transparent)]
    Sampler(SamplerError),
    /// A retry may help: the step that it was part of failed.
    #[error("a step of the model failed: {detail}")]
    Step { detail: String },
    #[error("the text of a token could not be made: {detail}")]
    Text { detail: String },
    /// Nobody took the events for too long.
    #[error("the client took no event for {} s", after.as_secs())]
    Stalled { after: Duration },
    /// The server stops before the answer was whole.
    #[error("the server is shutting down")]
    Draining,
}
