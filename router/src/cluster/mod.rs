//! The experts that other processes hold: which worker gets which rows, and how their sums come home.
//!
//! ```text
//! workers ──Join──> service ──inputs──> control ──plans, channels──> Plans ──> RemoteExperts (on the engine's thread)
//!                                         ^                                        │
//!                                         └────────────────faults──────────────────┘
//! ```

mod change;
mod control;
mod experts;
mod hits;
mod join;
mod link;
mod options;
mod own;
mod plans;
mod pulse;
mod remote;
mod routes;
mod rows;
mod served;
mod service;
mod sessions;
mod stats;
mod status;

pub use change::ChangeStatus;
pub use control::{Cluster, RebalanceError, Rebalancing, Tell};
pub use hits::{HeatStatus, HotExpert};
pub use options::{ClusterLimits, ClusterOptions, Door, DoorError};
pub use own::OwnExperts;
pub use plans::{Fault, OwnShard, Plan, Plans};
pub use remote::{RemoteExperts, RemoteLimits};
pub use routes::{LayerRoutes, Routes, WORKERS_MAX};
pub use served::{ServedExperts, precision_name};
pub use service::{routes, secured, sockets, teller};
pub use stats::{ExchangeStats, LinkStats};
pub use status::{ClusterStatus, ExchangeStatus, LoadingStatus, PendingStatus, WorkerStatus};
