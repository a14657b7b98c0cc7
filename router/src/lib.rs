//! The front of Gaterail: requests go in, tokens come out.
//!
//! | folder | |
//! |---|---|
//! | [`api`] | what is asked, what is answered, what is refused: plain values |
//! | [`admission`] | whether a request may wait at all |
//! | [`engine`] | the handle that callers hold, and the thread that steps |
//! | [`schedule`] | who runs in the next step: a pure function from numbers to a plan |
//! | [`step`] | `schedule -> run -> postprocess` |
//! | [`sequence`] | a request that is being answered |
//! | [`kv`] | who holds which pages, and which are kept |
//! | [`model`] | what all this needs of a model |
//!
//! In front of it:
//!
//! | folder | |
//! |---|---|
//! | [`http`], [`grpc`] | the two ways in |
//! | [`openai`] | requests and errors as clients of OpenAI write and read them |
//! | [`serving`] | one request between a client and the engine |
//! | [`auth`] | keys, tenants, limits: the door in front of every route |
//! | [`cluster`] | workers: who joins, who computes which experts |
//! | [`metrics`] | what is counted, for Prometheus |
#![forbid(unsafe_code)]

pub mod admission;
pub mod api;
pub mod engine;
pub mod kv;
pub mod model;
pub mod schedule;
pub mod sequence;
pub mod step;

pub mod auth;
pub mod cluster;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod notes;
pub mod openai;
pub mod replace;
pub mod serving;

pub use api::{
    EngineLimits, Event, Failure, FinishReason, GenerateRequest, LoadSnapshot, ModelCard, Piece,
    PromptLogprob, Refusal, RequestId, StopCause, TenantId, Timing, Usage,
};
pub use engine::{Ended, Engine, EngineParts, Ticket};
