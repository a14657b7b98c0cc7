//! The experts that other processes hold: which worker gets which rows, and how their sums come home.
//!
//! ```text
//! control ──plans, channels──> Plans ──> RemoteExperts (on the engine's thread) ──calls──> workers
//!    ^                                        │
//!    └────────────────faults──────────────────┘
//! ```

mod link;
mod plans;
mod remote;
mod routes;
mod stats;

pub use plans::{Fault, OwnShard, Plan, Plans};
pub use remote::{RemoteExperts, RemoteLimits};
pub use routes::{LayerRoutes, Routes, WORKERS_MAX};
pub use stats::{ExchangeStats, LinkStats};
