//! The nouns that cross a boundary between crates or processes: ids, expert inventories, shards,
//! placements. Plain values only.
#![forbid(unsafe_code)]

#[cfg(feature = "grpc")]
pub mod grpc;
mod ids;
mod placement;
mod shard;
#[cfg(feature = "grpc")]
mod slices;

pub use ids::{Epoch, ExpertId, LayerId, RouterId, WorkerId};
pub use placement::{ExpertCopy, ExpertPlace, Placement, UnitRun};
pub use shard::{ExpertInventory, ExpertSlice, LayerExperts, ShardSpec, UnitRange};
