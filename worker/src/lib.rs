//! The expert server: a process that holds shards of experts, and computes them for any number of routers.
//!
//! `shards` is what it holds, `compute` answers calls. No request leaves a trace here: whatever a call needs is in it.
#![forbid(unsafe_code)]

mod compute;
mod shards;

pub use compute::{Compute, Progress};
pub use shards::Shards;
