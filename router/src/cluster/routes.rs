//! Which rows go to which worker: pure functions of a placement and of what the gate chose.

use gaterail_proto::{LayerId, Placement};

/// Workers of one plan: a set of them is 64 bits.
pub const WORKERS_MAX: usize = 64;

/// From so many rows on, the rows of one expert are shared out between its copies: its weights are read once for all rows of a
/// copy, which is the cost of fewer.
const SPLIT_ROWS_MIN: u32 = 32;

/// A placement as the engine looks things up.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// By layer; empty for dense ones.
    layers: Vec<LayerRoutes>,
}

/// Who holds the experts of one layer.
#[derive(Clone, Debug, Default)]
pub struct LayerRoutes {
    /// By expert: its copies in `copies`.
    ranges: Vec<(u32, u32)>,
    /// The workers of each copy.
    copies: Vec<u64>,
    /// By expert: all workers that hold a part of it.
    holders: Vec<u64>,
    /// Whether an expert has several copies.
    replicated: bool,
}

/// What one worker gets of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The rows it needs, ascending.
    pub rows: Vec<u32>,
    /// `[rows, K]`; ids of experts that it is not to compute are ones that no expert has.
    pub ids: Vec<u32>,
}

/// What making shares needs; kept from layer to layer.
#[derive(Default)]
pub struct Scratch {
    /// By expert: rows that chose it.
    counts: Vec<u32>,
    /// By expert: its copy, or how many rows have been dealt out where they are shared out.
    chosen: Vec<u32>,
    order: Vec<u32>,
    load: Vec<f64>,
    /// By pair of row and choice: the workers that compute it.
    workers: Vec<u64>,
}

impl Share {
    /// Becomes a share of all rows of a batch; there is nothing to do for those that it had not.
    pub fn widen(&mut self, rows: usize, top_k: usize) {
        let idle = || (0..top_k as u32).map(|k| u32::MAX - k);
        let mut ids = Vec::with_capacity(rows * top_k);
        let mut own = self.rows.iter().zip(self.ids.chunks_exact(top_k)).peekable();
        for row in 0..rows as u32 {
            match own.next_if(|(at, _)| **at == row) {
                Some((_, own)) => ids.extend_from_slice(own),
                None => ids.extend(idle()),
            }
        }
        self.ids = ids;
        self.rows.clear();
        self.rows.extend(0..rows as u32);
    }
}

impl Routes {
    /// Panics for more than `WORKERS_MAX` workers; control does not make such plans.
    pub fn new(placement: &Placement) -> Routes {
        assert!(placement.workers.len() <= WORKERS_MAX, "{} workers", placement.workers.len());
        let mut layers: Vec<LayerRoutes> = Vec::new();
        for place in &placement.experts {
            let layer = place.layer.0 as usize;
            if layers.len() <= layer {
                layers.resize_with(layer + 1, LayerRoutes::default);
            }
            let at = &mut layers[layer];
            assert_eq!(at.ranges.len(), place.expert.0 as usize, "experts in order");
            let start = at.copies.len() as u32;
            let set =
                |runs: &[gaterail_proto::UnitRun]| runs.iter().fold(0, |set, run| set | 1 << run.worker);
            at.copies.extend(place.copies.iter().map(|copy| set(&copy.runs)));
            at.holders.push(at.copies[start as usize..].iter().fold(0, |all, copy| all | copy));
            at.ranges.push((start, at.copies.len() as u32));
            at.replicated |= place.copies.len() > 1;
        }
        Routes { layers }
    }

    pub fn layer(&self, layer: LayerId) -> &LayerRoutes {
        &self.layers[layer.0 as usize]
    }
}

impl LayerRoutes {
    /// Shares of `ids` `[T, top_k]` for workers whose speeds are given; a worker without rows gets an empty one.
    ///
    /// Every pair of row and expert is computed by the workers of exactly one copy. Which one does not change the result, so
    /// that it may follow the load.
    pub fn shares(
        &self,
        ids: &[u32],
        top_k: usize,
        speeds: &[f64],
        scratch: &mut Scratch,
        shares: &mut Vec<Share>,
    ) {
        shares.resize_with(speeds.len(), Share::default);
        shares.truncate(speeds.len());
        for share in shares.iter_mut() {
            share.rows.clear();
            share.ids.clear();
        }
        self.assign(ids, speeds, scratch);
        for (row, (ids, workers)) in
            ids.chunks_exact(top_k).zip(scratch.workers.chunks_exact(top_k)).enumerate()
        {
            let mut involved = workers.iter().fold(0u64, |all, one| all | one);
            while involved != 0 {
                let worker = involved.trailing_zeros();
                involved &= involved - 1;
                let share = &mut shares[worker as usize];
                share.rows.push(row as u32);
                let masked = ids.iter().zip(workers).enumerate().map(|(k, (&id, &by))| {
                    let elsewhere = by >> worker & 1 == 0 && self.holds(id, worker);
                    // Another number for each, since a row that names an expert twice is poisoned.
                    if elsewhere { u32::MAX - k as u32 } else { id }
                });
                share.ids.extend(masked);
            }
        }
    }

    fn holds(&self, id: u32, worker: u32) -> bool {
        self.holders.get(id as usize).is_some_and(|holders| holders >> worker & 1 == 1)
    }

    /// The workers of every pair, in `scratch.workers`.
    fn assign(&self, ids: &[u32], speeds: &[f64], scratch: &mut Scratch) {
        scratch.workers.clear();
        if !self.replicated {
            scratch.workers.extend(ids.iter().map(|&id| self.holders.get(id as usize).copied().unwrap_or(0)));
            return;
        }
        self.choose(ids, speeds, scratch);
        for &id in ids {
            let Some(&(start, end)) = self.ranges.get(id as usize) else {
                scratch.workers.push(0);
                continue;
            };
            let chosen = &mut scratch.chosen[id as usize];
            let copy = match scratch.counts[id as usize] {
                SPLIT_ROWS_MIN.. => {
                    *chosen += 1;
                    start + *chosen % (end - start)
                }
                _ => start + *chosen,
            };
            scratch.workers.push(self.copies[copy as usize]);
        }
    }

    /// For experts with few rows one copy each: the most wanted experts first, each where there is the least to do.
    fn choose(&self, ids: &[u32], speeds: &[f64], scratch: &mut Scratch) {
        let experts = self.ranges.len();
        let Scratch { counts, chosen, order, load, .. } = scratch;
        counts.clear();
        counts.resize(experts, 0);
        chosen.clear();
        chosen.resize(experts, 0);
        load.clear();
        load.resize(speeds.len(), 0.0);
        ids.iter().filter(|id| (**id as usize) < experts).for_each(|id| counts[*id as usize] += 1);
        order.clear();
        order.extend((0..experts as u32).filter(|expert| counts[*expert as usize] > 0));
        // Those without a choice come first, so that the others can make up for them.
        order.sort_unstable_by_key(|&expert| {
            let (start, end) = self.ranges[expert as usize];
            (end - start > 1, std::cmp::Reverse(counts[expert as usize]), expert)
        });
        for &expert in order.iter() {
            let (start, end) = self.ranges[expert as usize];
            if counts[expert as usize] >= SPLIT_ROWS_MIN && end - start > 1 {
                continue;
            }
            let busiest = |copy: &u32| {
                let busiest = members(self.copies[*copy as usize]).map(|worker| load[worker]);
                busiest.fold(0.0, f64::max)
            };
            let best = (start..end).min_by(|a, b| busiest(a).total_cmp(&busiest(b))).unwrap_or(start);
            let set = self.copies[best as usize];
            let part = 1.0 / f64::from(set.count_ones());
            members(set).for_each(|worker| load[worker] += part / speeds[worker]);
            chosen[expert as usize] = best - start;
        }
    }
}

fn members(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gaterail_proto::{ExpertCopy, ExpertId, ExpertPlace, UnitRange, UnitRun, WorkerId};

    /// Copies as sets of workers, expert by expert.
    fn routes(workers: u32, experts: &[&[&[u32]]]) -> Routes {
        let units = UnitRange { start: 0, end: 1 };
        let copy = |workers: &&[u32]| ExpertCopy {
            runs: workers.iter().map(|&worker| UnitRun { worker, units }).collect(),
        };
        let place = |(expert, copies): (usize, &&[&[u32]])| ExpertPlace {
            layer: LayerId(1),
            expert: ExpertId(expert as u32),
            copies: copies.iter().map(copy).collect(),
        };
        let workers = (0..u64::from(workers)).map(WorkerId).collect();
        Routes::new(&Placement { workers, experts: experts.iter().enumerate().map(place).collect() })
    }

    fn shares(routes: &Routes, ids: &[u32], top_k: usize, speeds: &[f64]) -> Vec<Share> {
        let (mut scratch, mut shares) = (Scratch::default(), vec![Share::default(); 9]);
        routes.layer(LayerId(1)).shares(ids, top_k, speeds, &mut scratch, &mut shares);
        shares
    }

    #[test]
    fn a_worker_gets_the_rows_that_it_has_an_expert_of() {
        let routes = routes(3, &[&[&[0]], &[&[0, 1]], &[&[2]]]);
        let shares = shares(&routes, &[0, 2, 1, 0, 2, 2], 2, &[1.0; 3]);
        assert_eq!(shares[0], Share { rows: vec![0, 1], ids: vec![0, 2, 1, 0] });
        assert_eq!(shares[1], Share { rows: vec![1], ids: vec![1, 0] });
        assert_eq!(shares[2], Share { rows: vec![0, 2], ids: vec![0, 2, 2, 2] });
        assert_eq!(shares.len(), 3);
    }

    #[test]
    fn a_share_of_all_rows_has_nothing_new_to_do() {
        let mut share = Share { rows: vec![1, 3], ids: vec![7, 8, 9, u32::MAX - 1] };
        share.widen(5, 2);
        assert_eq!(share.rows, [0, 1, 2, 3, 4]);
        let idle = [u32::MAX, u32::MAX - 1];
        let (first, second) = ([7, 8], [9, u32::MAX - 1]);
        assert_eq!(share.ids, [idle, first, idle, second, idle].concat());
    }

    #[test]
    fn a_pair_is_computed_by_one_copy_alone() {
        let mut state = 5u64;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let copies: [&[&[u32]]; 5] =
            [&[&[0], &[1]], &[&[2]], &[&[0, 1], &[2, 3]], &[&[3], &[0], &[1]], &[&[1, 2, 3]]];
        let routes = routes(4, &copies);
        for round in 0..200 {
            let rows = 1 + next(80) as usize;
            let ids: Vec<u32> = (0..rows)
                .flat_map(|_| {
                    let first = next(5) as u32;
                    [first, (first + 1 + next(4) as u32) % 5]
                })
                .collect();
            let shares = shares(&routes, &ids, 2, &[1.0, 2.0, 0.5, 1.0]);
            let mut by: Vec<Vec<u32>> = vec![Vec::new(); ids.len()];
            for (worker, share) in shares.iter().enumerate() {
                for (row, own) in share.rows.iter().zip(share.ids.chunks_exact(2)) {
                    for (k, id) in own.iter().enumerate() {
                        let at = *row as usize * 2 + k;
                        let held =
                            copies[ids[at] as usize].iter().any(|copy| copy.contains(&(worker as u32)));
                        if held && *id == ids[at] {
                            by[at].push(worker as u32);
                        }
                    }
                }
            }
            for (at, by) in by.iter().enumerate() {
                assert!(
                    copies[ids[at] as usize].contains(&&by[..]),
                    "round {round}: pair {at} is computed by {by:?}"
                );
            }
        }
    }

    #[test]
    fn copies_share_the_load() {
        // Expert 0 is on worker 0 alone; 1 has a copy on both: worker 1 takes it.
        let two = routes(2, &[&[&[0]], &[&[0], &[1]]]);
        let few = shares(&two, &[0, 1], 2, &[1.0; 2]);
        assert_eq!(few[0].ids, [0, u32::MAX - 1]);
        assert_eq!(few[1].ids, [0, 1]);
        // A slow worker gets what nobody else can do.
        let both: &[&[u32]] = &[&[0], &[1]];
        let slow = routes(2, &[both; 4]);
        let by_speed = shares(&slow, &[0, 1, 2, 3], 4, &[3.0, 1.0]);
        let taken = |share: &Share| share.ids.iter().filter(|id| **id < 4).count();
        assert_eq!((taken(&by_speed[0]), taken(&by_speed[1])), (3, 1));
        // Many rows of one expert are shared out.
        let many = shares(&slow, &[2; 64], 1, &[1.0; 2]);
        assert_eq!((many[0].rows.len(), many[1].rows.len()), (32, 32));
    }
}
