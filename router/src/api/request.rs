//! A request, with its prompt in tokens.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use gaterail_model::sampler::SamplingParams;

/// What a request is called in logs: the client's `X-Request-Id`, or one made for it. Need not be unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub Arc<str>);

/// Whose request it is. Tenants share the batch fairly and never see each other's cached prefixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub Arc<str>);

impl TenantId {
    /// The tenant of requests without a key.
    pub fn anonymous() -> TenantId {
        TenantId("anonymous".into())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is asked of the engine.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub id: RequestId,
    pub tenant: TenantId,
    /// Whether other tenants may come: then it may not fill the queue.
    pub shares_queue: bool,
    /// At least one token.
    pub prompt: Vec<u32>,
    /// How to sample. Choice 0 uses `params.seed`, choice i a seed that follows from it and i.
    pub params: SamplingParams,
    /// Choices, 1 to `EngineLimits::choices_max`.
    pub n: u32,
    /// Tokens of each choice; `None` is what the context leaves. 0 only reads the prompt.
    pub max_tokens: Option<usize>,
    /// Log-probabilities of the prompt's tokens, with so many of the most likely ones beside each (`echo` with
    /// `logprobs`). The prefix cache is not read then.
    pub prompt_logprobs: Option<u8>,
    /// Whether special tokens have no text.
    pub skip_special: bool,
    /// Whether text ends with the stop string that ended it.
    pub include_stop: bool,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Sequences share cached pages only with those of the same tenant and the same salt.
    pub cache_salt: Option<Arc<str>>,
    /// The W3C `traceparent` that it came with.
    pub trace: Option<Arc<str>>,
}

impl GenerateRequest {
    /// One choice for a prompt, sampled as `params` says.
    pub fn new(id: RequestId, tenant: TenantId, prompt: Vec<u32>, params: SamplingParams) -> GenerateRequest {
        GenerateRequest {
            id,
            tenant,
            shares_queue: false,
            prompt,
            params,
            n: 1,
            max_tokens: None,
            prompt_logprobs: None,
            skip_special: true,
            include_stop: false,
            deadline: None,
            cache_salt: None,
            trace: None,
        }
    }
}
