//! How evenly a placement spreads the work, where experts are hit unevenly.

use gaterail_proto::{ExpertInventory, Placement};

use super::Popularity;

/// Time that all layers take together, on any scale.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    /// Of each layer's slowest worker.
    pub slowest: f64,
    /// Of each layer, if its work were spread as its workers are fast.
    pub even: f64,
}

impl Balance {
    /// The slowest worker's time over what it would be if all had their fair part: 1 is even.
    pub fn imbalance(&self) -> f64 {
        if self.even > 0.0 { self.slowest / self.even } else { 1.0 }
    }
}

/// What hits mean for the workers of a placement, whose speeds are given in any unit. Every copy of an expert is taken to get as
/// much of its work. Linear in the experts.
pub fn balance(
    inventory: &ExpertInventory,
    placement: &Placement,
    hits: &Popularity,
    speeds: &[f64],
) -> Balance {
    let mut all = Balance::default();
    let mut load = vec![0.0; placement.workers.len()];
    let mut left = placement.experts.iter().zip(&hits.0);
    let speed: f64 = speeds.iter().sum();
    for at in &inventory.layers {
        load.fill(0.0);
        let mut work = 0.0;
        for (place, hits) in left.by_ref().take(at.experts as usize) {
            let each = hits * at.expert_bytes as f64 / (place.copies.len() * at.units.max(1) as usize) as f64;
            for run in place.copies.iter().flat_map(|copy| &copy.runs) {
                load[run.worker as usize] += each * f64::from(run.units.end - run.units.start);
            }
            work += hits * at.expert_bytes as f64;
        }
        let times = load.iter().zip(speeds).map(|(load, speed)| load / speed);
        all.slowest += times.fold(0.0, f64::max);
        all.even += work / speed;
    }
    all
}

/// Copies beyond those that every expert has, and their bytes.
pub fn replicas(inventory: &ExpertInventory, placement: &Placement) -> (u64, u64) {
    let least = super::copies(placement) as usize;
    let mut left = placement.experts.iter();
    let (mut count, mut bytes) = (0, 0);
    for at in &inventory.layers {
        let further = left.by_ref().take(at.experts as usize).map(|place| place.copies.len() - least);
        let further = further.sum::<usize>() as u64;
        count += further;
        bytes += further * at.expert_bytes;
    }
    (count, bytes)
}
