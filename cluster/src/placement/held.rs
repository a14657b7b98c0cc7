//! What a placement means for each worker, and what is left of it when some are gone.

use std::collections::HashMap;

use gaterail_proto::{ExpertCopy, ExpertInventory, ExpertPlace, LayerId, Placement, UnitRange, WorkerId};

use super::Popularity;

/// One worker's part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    /// Experts of which it holds something.
    pub experts: u64,
    pub bytes: u64,
    /// Of the work of all, from 0 to 1, where every copy of an expert gets as much of it.
    pub share: f64,
}

/// Bytes of a run of units of an expert. The last unit may be shorter than the others; nobody here knows.
pub fn run_bytes(expert_bytes: u64, units: u32, run: UnitRange) -> u64 {
    let bytes = u128::from(expert_bytes) * u128::from(run.end - run.start);
    bytes.div_ceil(u128::from(units.max(1))) as u64
}

/// Each worker's part, in the order of `placement.workers`.
pub fn held(inventory: &ExpertInventory, placement: &Placement, hits: Option<&Popularity>) -> Vec<Held> {
    let layers: HashMap<LayerId, _> = inventory.layers.iter().map(|at| (at.layer, at)).collect();
    let mut all = vec![Held::default(); placement.workers.len()];
    let mut work = 0.0;
    for (index, place) in placement.experts.iter().enumerate() {
        let at = layers[&place.layer];
        let weight = hits.and_then(|hits| hits.0.get(index)).copied().unwrap_or(1.0) * at.expert_bytes as f64;
        work += weight;
        for copy in &place.copies {
            let mut seen = Vec::new();
            for run in &copy.runs {
                let one = &mut all[run.worker as usize];
                one.bytes += run_bytes(at.expert_bytes, at.units, run.units);
                let part = f64::from(run.units.end - run.units.start) / f64::from(at.units.max(1));
                one.share += weight * part / place.copies.len() as f64;
                if !seen.contains(&run.worker) {
                    seen.push(run.worker);
                    one.experts += 1;
                }
            }
        }
    }
    all.iter_mut().for_each(|one| one.share = if work > 0.0 { one.share / work } else { 0.0 });
    all
}

/// What is left of a placement on those who are alive: their whole copies; `None` if an expert has none.
pub fn without(placement: &Placement, alive: impl Fn(WorkerId) -> bool) -> Option<Placement> {
    let workers: Vec<WorkerId> = placement.workers.iter().copied().filter(|&worker| alive(worker)).collect();
    let places: HashMap<WorkerId, u32> =
        workers.iter().zip(0..).map(|(&worker, place)| (worker, place)).collect();
    let left = |copy: &ExpertCopy| {
        let runs = copy.runs.iter().map(|run| {
            let worker = *places.get(&placement.workers[run.worker as usize])?;
            Some(gaterail_proto::UnitRun { worker, ..*run })
        });
        Some(ExpertCopy { runs: runs.collect::<Option<_>>()? })
    };
    let experts = placement.experts.iter().map(|at| {
        let copies: Vec<ExpertCopy> = at.copies.iter().filter_map(left).collect();
        (!copies.is_empty()).then_some(ExpertPlace { layer: at.layer, expert: at.expert, copies })
    });
    Some(Placement { experts: experts.collect::<Option<_>>()?, workers })
}

/// Copies that every expert has at least.
pub fn copies(placement: &Placement) -> u32 {
    placement.experts.iter().map(|at| at.copies.len() as u32).min().unwrap_or(0)
}
