//! The nouns that cross a boundary between crates or processes: ids, expert inventories, shards. Plain values only.
#![forbid(unsafe_code)]

#[cfg(feature = "grpc")]
pub mod grpc;
mod ids;
mod shard;

pub use ids::{ExpertId, LayerId};
pub use shard::{ExpertInventory, ExpertSlice, LayerExperts, ShardSpec, UnitRange};
