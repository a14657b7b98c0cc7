//! The front of Gaterail: requests go in, tokens come out.
//!
//! | folder | |
//! |---|---|
//! | [`api`] | what is asked, what is answered, what is refused: plain values |
//! | [`engine`] | the handle that callers hold, and the thread that steps |
#![forbid(unsafe_code)]

pub mod api;
pub mod engine;

pub use api::{
    EngineLimits, Event, Failure, FinishReason, GenerateRequest, LoadSnapshot, ModelCard, Piece,
    PromptLogprob, Refusal, RequestId, StopCause, TenantId, Timing, Usage,
};
pub use engine::{Engine, EngineParts, Ticket};
