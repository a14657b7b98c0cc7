//! All that placing takes, taken along: what takes long is worked out by whoever has the time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gaterail_proto::{ExpertInventory, ExpertSlice, Placement, ShardSpec, WorkerId};

use crate::placement::{Misfit, Mode, Popularity, Seat, Wanted, place, run_bytes};

/// A task of placing.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub(super) inventory: ExpertInventory,
    pub(super) seats: Vec<Seat>,
    pub(super) mode: Mode,
    pub(super) copies: u32,
    pub(super) replica_bytes: u64,
    pub(super) popularity: Option<Popularity>,
    pub(super) packed: Vec<(WorkerId, Arc<ShardSpec>)>,
    pub(super) current: Option<Arc<Placement>>,
    pub(super) beside: bool,
}

impl Case {
    /// Why it cannot be done, and what could; `None` where it can. Takes seconds for large models.
    pub fn misfit(&self) -> Option<Misfit> {
        place(&self.wanted()).err()
    }

    pub(super) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            inventory: &self.inventory,
            seats: &self.seats,
            mode: self.mode,
            copies: self.copies.max(1),
            replica_bytes: self.replica_bytes,
            popularity: self.popularity.as_ref(),
            packed: &self.packed,
            current: self.current.as_deref(),
            beside: self.beside,
            smaller: &[],
        }
    }
}

/// Whether all workers can hold a plan beside the one in force.
pub(super) fn has_room(
    inventory: &ExpertInventory,
    current: Option<&Placement>,
    placement: &Placement,
    memory_bytes: impl Fn(WorkerId) -> u64,
) -> bool {
    let Some(current) = current else { return true };
    let layers: HashMap<_, _> = inventory.layers.iter().map(|at| (at.layer, at)).collect();
    let bytes = |slice: &ExpertSlice| {
        layers.get(&slice.layer).map_or(0, |at| run_bytes(at.expert_bytes, at.units, slice.units))
    };
    placement.workers.iter().enumerate().all(|(index, worker)| {
        let mut slices: HashSet<ExpertSlice> = placement.shard(index).slices.into_iter().collect();
        let before = current.workers.iter().position(|at| at == worker);
        slices.extend(before.into_iter().flat_map(|before| current.shard(before).slices));
        slices.iter().map(bytes).sum::<u64>() <= memory_bytes(*worker)
    })
}
