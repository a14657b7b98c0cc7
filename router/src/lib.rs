//! The front of Gaterail: requests go in, tokens come out.
//!
//! | folder | |
//! |---|---|
//! | [`api`] | what is asked, what is answered, what is refused: plain values |
//! | [`engine`] | the handle that callers hold, and the thread that steps |
//! | [`openai`] | requests and errors as clients of OpenAI write and read them |
//! | [`serving`] | one request between a client and the engine |
//! | [`http`] | the way in |
//! | [`auth`] | keys, tenants, limits: the door in front of every route |
//! | [`metrics`] | what is counted, for Prometheus |
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod engine;
pub mod http;
pub mod metrics;
pub mod openai;
pub mod serving;

pub use api::{
    EngineLimits, Event, Failure, FinishReason, GenerateRequest, LoadSnapshot, ModelCard, Piece,
    PromptLogprob, Refusal, RequestId, StopCause, TenantId, Timing, Usage,
};
pub use engine::{Engine, EngineParts, Ticket};
