//! Why a request is not even queued. Nothing of it is kept.

use std::time::Duration;

use gaterail_model::sampler::SamplerError;
use gaterail_model::text::TextError;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Worth a retry after that time, which is estimated from what waits and how fast it is worked off.
    #[error("the queue is full: {requests} requests with {tokens} tokens wait")]
    QueueFull { requests: usize, tokens: usize, retry_after: Duration },
    /// The same of one tenant's part of the queue.
    #[error(
        "your part of the queue is full: {requests} requests with {tokens} tokens wait, and the rest is for others"
    )]
    TenantQueueFull { requests: usize, tokens: usize, retry_after: Duration },
    #[error("the prompt has {prompt} tokens, which leaves no room in the context of {max}")]
    TooLong { prompt: usize, max: usize },
    #[error(
        "the prompt has {prompt} tokens and {asked} more were asked for; together at most {max} are possible"
    )]
    NoRoom { prompt: usize, asked: usize, max: usize },
    #[error("the prompt has no tokens")]
    Empty,
    #[error("token {token} lies outside the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error("n is {n}; it has to be 1 to {max}")]
    Choices { n: u32, max: u32 },
    #[error("stop strings need a tokenizer, and the model has none")]
    NoTokenizer,
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    #[error(transparent)]
    Text(#[from] TextError),
    /// Worth a retry elsewhere.
    #[error("the server is shutting down")]
    Draining,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}
