//! The expert server: a process that holds shards of experts, and computes them for any number of routers.
//!
//! | file | |
//! |---|---|
//! | [`client`] | a worker among its routers |
//! | `link` | one connection: join, heartbeats, what the router wants |
//! | `served`, `models` | the models that routers serve, checked |
//! | `loading`, `source`, `fetch` | weights: from this machine's checkpoint, or out of the router |
//! | `shards` | what is held, by epoch |
//! | `compute` | calls answered |
//!
//! No request leaves a trace here: whatever a call needs is in it.
#![forbid(unsafe_code)]

mod client;
mod compute;
mod error;
mod fetch;
mod link;
mod loading;
mod machine;
mod models;
mod options;
mod served;
mod shards;
mod source;

pub use client::Worker;
pub use compute::{Compute, Progress};
pub use error::WorkerError;
pub use options::{OpenDevice, WorkerLimits, WorkerOptions};
pub use shards::{NotPrepared, Shards};
