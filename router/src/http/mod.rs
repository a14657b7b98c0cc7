//! The HTTP surface: OpenAI's, and what operators need.
//!
//! | file | |
//! |---|---|
//! | [`routes`] | which path is answered where |
//! | [`layers`] | around every route: request id, account of answers, web pages of other origins, the key |
//! | [`hosts`] | by which names a server without keys may be called |
//! | [`body`] | a body, within its limits |
//! | [`answer`], [`usage`] | what answers of both are made of |
//! | [`chat`], [`completions`] | answers, whole or as a stream |
//! | [`echo`] | a prompt in front of its answers |
//! | [`sse`] | the stream's form: events, comments, the end |
//! | [`logprobs`] | log-probabilities in both shapes |
//! | [`tokens`], [`models`], [`health`], [`workers`] | the smaller routes |
//! | [`opening`] | what is answered while the model is loaded |
//! | [`listen`] | connections: how many, how slow, and how they end |
//! | [`encryption`] | TLS in front of a port |
//! | [`idle`] | how long a connection has nothing to answer |
//! | [`socket`] | one connection: a client that takes too little, one that is gone |

mod answer;
mod body;
mod chat;
mod completions;
mod echo;
mod encryption;
mod health;
mod hosts;
mod idle;
mod layers;
pub mod listen;
mod logprobs;
mod models;
pub mod opening;
mod routes;
mod socket;
mod sse;
mod tokens;
mod usage;
mod workers;

pub use body::read;
pub use encryption::{Teller, Tls};
pub use health::VERSION;
pub use hosts::Hosts;
pub use layers::{caller, guarded};
pub use listen::{ListenLimits, Listening, Port, Protocol};
pub use opening::Opening;
pub use routes::routes;
pub use workers::{ClusterPage, RebalancePage};
