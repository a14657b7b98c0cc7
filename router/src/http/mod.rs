//! The HTTP surface: OpenAI's, and what operators need.
//!
//! | file | |
//! |---|---|
//! | [`routes`] | which path is answered where |
//! | [`layers`] | around every route: request id, account of answers, web pages of other origins, the key |
//! | [`body`] | a body, within its limits |
//! | [`answer`], [`usage`] | what answers of both are made of |
//! | [`chat`], [`completions`] | answers, whole or as a stream |
//! | [`sse`] | the stream's form: events, comments, the end |
//! | [`logprobs`] | log-probabilities in both shapes |
//! | [`tokens`], [`models`], [`health`], [`workers`] | the smaller routes |
//! | [`opening`] | what is answered while the model is loaded |
//! | [`listen`] | connections: how many, how slow, and how they end |

mod answer;
mod body;
mod chat;
mod completions;
mod health;
mod layers;
pub mod listen;
mod logprobs;
mod models;
pub mod opening;
mod routes;
mod sse;
mod tokens;
mod usage;
mod workers;

pub use health::VERSION;
pub use layers::{caller, guarded};
pub use listen::{ListenLimits, Listening, Protocol};
pub use opening::Opening;
pub use routes::routes;
pub use workers::ClusterPage;
