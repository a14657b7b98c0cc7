//! Who holds what: the plan that a router and its workers agree on. A plain value; `cluster` makes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ExpertId, LayerId, WorkerId};
use crate::shard::{ExpertInventory, ExpertSlice, ShardSpec, UnitRange};

/// Where every expert of a model is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub workers: Vec<WorkerId>,
    /// In the order of the inventory's slices.
    pub experts: Vec<ExpertPlace>,
}

/// The copies of one expert, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertPlace {
    pub layer: LayerId,
    pub expert: ExpertId,
    pub copies: Vec<ExpertCopy>,
}

/// Runs of units that together are the whole expert. A worker has a part in one copy of an expert at most, so that all that
/// it holds of an expert is computed or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertCopy {
    pub runs: Vec<UnitRun>,
}

/// A run of units on one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRun {
    /// Index into `Placement::workers`.
    pub worker: u32,
    pub units: UnitRange,
}

impl Placement {
    /// What one worker holds, in the order of the inventory.
    pub fn shard(&self, worker: usize) -> ShardSpec {
        let slices = self.experts.iter().flat_map(|at| {
            let runs = at.copies.iter().flat_map(|copy| &copy.runs);
            let own = runs.filter(move |run| run.worker as usize == worker);
            own.map(|run| ExpertSlice { layer: at.layer, expert: at.expert, units: run.units })
        });
        ShardSpec { slices: slices.collect() }
    }

    /// Whether every copy of every expert of the inventory is whole and nobody has parts in two copies of one.
    pub fn check(&self, inventory: &ExpertInventory) -> Result<(), String> {
        let mut places = self.experts.iter();
        for slice in inventory.slices() {
            let (layer, expert) = (slice.layer.0, slice.expert.0);
            let place =
                places.next().filter(|place| (place.layer, place.expert) == (slice.layer, slice.expert));
            let place = place.ok_or_else(|| format!("expert {expert} of layer {layer} has no place"))?;
            if place.copies.is_empty() {
                return Err(format!("expert {expert} of layer {layer} has no copy"));
            }
            let mut copy_of: BTreeMap<u32, usize> = BTreeMap::new();
            for (index, copy) in place.copies.iter().enumerate() {
                let mut runs: Vec<UnitRun> = copy.runs.clone();
                runs.sort_by_key(|run| run.units.start);
                let mut next = 0;
                for run in runs {
                    let UnitRange { start, end } = run.units;
                    if start != next || end <= start {
                        return Err(format!(
                            "units {start}..{end} after {next} of copy {index} of expert {expert} of layer {layer}"
                        ));
                    }
                    next = end;
                    if run.worker as usize >= self.workers.len() {
                        return Err(format!("worker {} of {}", run.worker, self.workers.len()));
                    }
                    if *copy_of.entry(run.worker).or_insert(index) != index {
                        return Err(format!(
                            "worker {} has parts in two copies of expert {expert} of layer {layer}",
                            run.worker
                        ));
                    }
                }
                if next != slice.units.end {
                    return Err(format!(
                        "copy {index} of expert {expert} of layer {layer} ends at unit {next} of {}",
                        slice.units.end
                    ));
                }
            }
        }
        match places.next() {
            Some(more) => Err(format!("layer {} has no expert {}", more.layer.0, more.expert.0)),
            None => Ok(()),
        }
    }
}
