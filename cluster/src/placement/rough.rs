//! A placement that takes no search: one copy of every expert, at once. Mode, further copies and what is hot are for later.
//!
//! What is held stays where it is. The rest goes, expert by expert, to whoever would be done with the layer first, and is cut only
//! where nobody has room for all of it. Linear in experts times workers: a small part of what a search takes.

use std::collections::HashMap;

use gaterail_proto::{ExpertCopy, ExpertInventory, ExpertPlace, Placement, UnitRange, UnitRun, WorkerId};

use super::groups::speeds;
use super::{Seat, run_bytes};

/// Every expert on these seats, within their memory; `None` if it does not fit in this way.
pub(crate) fn rough(
    inventory: &ExpertInventory,
    seats: &[Seat],
    current: Option<&Placement>,
) -> Option<Placement> {
    let mut hand = Hand::new(seats);
    let layers: HashMap<_, _> = inventory.layers.iter().map(|at| (at.layer, at.expert_bytes)).collect();
    let slices: Vec<_> = inventory.slices().collect();
    let expert =
        |index: usize| Expert { bytes: layers[&slices[index].layer], units: slices[index].units.end };
    // First what is there, so that nobody is given what its holder has room for alone.
    let mut runs = vec![Vec::new(); slices.len()];
    if let Some(current) = current.filter(|current| current.check(inventory).is_ok()) {
        let seat_of: HashMap<WorkerId, u32> = seats.iter().map(|seat| seat.worker).zip(0..).collect();
        let places: Vec<Option<u32>> =
            current.workers.iter().map(|worker| seat_of.get(worker).copied()).collect();
        for (index, place) in current.experts.iter().enumerate() {
            runs[index] = hand.keep(expert(index), place, &places);
        }
    }
    for (index, runs) in runs.iter_mut().enumerate() {
        if index == 0 || slices[index].layer != slices[index - 1].layer {
            hand.begin_layer();
        }
        hand.deal(expert(index), runs)?;
    }
    let experts = slices.iter().zip(runs).map(|(slice, runs)| ExpertPlace {
        layer: slice.layer,
        expert: slice.expert,
        copies: vec![ExpertCopy { runs }],
    });
    let workers = seats.iter().map(|seat| seat.worker).collect();
    let placement = Placement { experts: experts.collect(), workers };
    debug_assert_eq!(placement.check(inventory), Ok(()));
    Some(placement)
}

#[derive(Clone, Copy)]
struct Expert {
    bytes: u64,
    units: u32,
}

impl Expert {
    fn bytes(self, units: UnitRange) -> u64 {
        run_bytes(self.bytes, self.units, units)
    }
}

/// What has been dealt to whom; all by seat.
struct Hand {
    speeds: Vec<f64>,
    /// Bytes that are free.
    room: Vec<u64>,
    /// Bytes of the layer at hand, and of all.
    of_layer: Vec<u64>,
    of_all: Vec<u64>,
}

impl Hand {
    fn new(seats: &[Seat]) -> Hand {
        let none = vec![0; seats.len()];
        let room = seats.iter().map(|seat| seat.memory_bytes).collect();
        Hand { speeds: speeds(seats), room, of_layer: none.clone(), of_all: none }
    }

    fn begin_layer(&mut self) {
        self.of_layer.fill(0);
    }

    /// The runs of the copy of which most is still there; `places` are the seats of the workers that the place names.
    fn keep(&mut self, expert: Expert, place: &ExpertPlace, places: &[Option<u32>]) -> Vec<UnitRun> {
        let there = |copy: &ExpertCopy| -> Vec<UnitRun> {
            let runs = copy.runs.iter();
            runs.filter_map(|run| Some(UnitRun { worker: places[run.worker as usize]?, ..*run })).collect()
        };
        let units = |runs: &Vec<UnitRun>| runs.iter().map(|run| run.units.end - run.units.start).sum::<u32>();
        let mut kept = place.copies.iter().map(there).max_by_key(units).unwrap_or_default();
        // A worker that came again may have less memory than it had.
        kept.retain(|run| {
            let (seat, bytes) = (run.worker as usize, expert.bytes(run.units));
            let fits = bytes <= self.room[seat];
            self.room[seat] -= if fits { bytes } else { 0 };
            fits
        });
        kept
    }

    /// Completes the runs of an expert.
    fn deal(&mut self, expert: Expert, runs: &mut Vec<UnitRun>) -> Option<()> {
        runs.sort_by_key(|run| run.units.start);
        runs.iter().for_each(|run| self.count(run.worker as usize, expert.bytes(run.units)));
        let (mut gaps, mut next) = (Vec::new(), 0);
        for run in runs.iter() {
            gaps.push(UnitRange { start: next, end: run.units.start });
            next = run.units.end;
        }
        gaps.push(UnitRange { start: next, end: expert.units });
        for UnitRange { mut start, end } in gaps {
            while start < end {
                let run = self.next(expert, UnitRange { start, end })?;
                start = run.units.end;
                runs.push(run);
            }
        }
        runs.sort_by_key(|run| run.units.start);
        Some(())
    }

    /// Who takes these units, or the first of them.
    fn next(&mut self, expert: Expert, units: UnitRange) -> Option<UnitRun> {
        let whole = expert.bytes(units);
        let done = |hand: &Hand, bytes: &[u64], seat: usize| (bytes[seat] + whole) as f64 / hand.speeds[seat];
        let sooner = |&a: &usize, &b: &usize| {
            let by_layer = done(self, &self.of_layer, a).total_cmp(&done(self, &self.of_layer, b));
            by_layer.then(done(self, &self.of_all, a).total_cmp(&done(self, &self.of_all, b)))
        };
        let seats = 0..self.room.len();
        let first = seats.clone().filter(|&seat| whole <= self.room[seat]).min_by(sooner);
        let (seat, units) = match first {
            Some(seat) => (seat, units),
            None => {
                let roomiest = seats.max_by_key(|&seat| self.room[seat])?;
                let fits = |&end: &u32| expert.bytes(UnitRange { end, ..units }) <= self.room[roomiest];
                let end = (units.start + 1..units.end).rev().find(fits)?;
                (roomiest, UnitRange { end, ..units })
            }
        };
        let bytes = expert.bytes(units);
        self.room[seat] -= bytes;
        self.count(seat, bytes);
        Some(UnitRun { worker: seat as u32, units })
    }

    fn count(&mut self, seat: usize, bytes: u64) {
        self.of_layer[seat] += bytes;
        self.of_all[seat] += bytes;
    }
}

#[cfg(test)]
mod tests {
    use gaterail_proto::{LayerExperts, LayerId};

    use super::super::{Mode, Wanted, held, place};
    use super::*;

    fn inventory(experts: u32, units: u32) -> ExpertInventory {
        let layer = |layer| LayerExperts { layer: LayerId(layer), experts, units, expert_bytes: 1200 };
        ExpertInventory { layers: (0..3).map(layer).collect() }
    }

    fn seats(memory: &[u64]) -> Vec<Seat> {
        let seat =
            |(id, &memory_bytes)| Seat { worker: WorkerId(id), memory_bytes, read_bytes_per_second: 1e10 };
        (1..).zip(memory).map(seat).collect()
    }

    fn bytes(inventory: &ExpertInventory, placement: &Placement) -> Vec<u64> {
        held(inventory, placement, None).iter().map(|part| part.bytes).collect()
    }

    #[test]
    fn all_are_dealt_evenly_and_within_memory() {
        let whole = inventory(8, 4);
        let dealt = |memory: &[u64]| rough(&whole, &seats(memory), None);
        let placement = dealt(&[1 << 20; 3]).expect("room");
        placement.check(&whole).expect("a whole placement");
        // 24 experts: eight for each, and of every layer three or two.
        assert_eq!(bytes(&whole, &placement), [9600; 3]);
        // Who has little room gets little; what fits nowhere whole is cut.
        let placement = dealt(&[1500, 2400 + 300, 1 << 20]).expect("room");
        placement.check(&whole).expect("a whole placement");
        let tight = dealt(&[9_900, 9_900, 9_000]).expect("just room");
        tight.check(&whole).expect("a whole placement");
        for (bytes, memory) in bytes(&whole, &tight).into_iter().zip([9_900, 9_900, 9_000]) {
            assert!(bytes <= memory, "{bytes} of {memory}");
        }
        assert_eq!(dealt(&[9_900, 9_900, 8_900]), None);
        assert_eq!(dealt(&[]), None);
    }

    #[test]
    fn what_is_held_stays() {
        let whole = inventory(8, 4);
        for mode in [Mode::Ep, Mode::Tp] {
            let before = seats(&[1 << 20; 3]);
            let current = place(&Wanted::new(&whole, &before, mode)).expect("room");
            let after: Vec<Seat> = [&before[1..], &seats(&[1 << 20; 4])[3..]].concat();
            let placement = rough(&whole, &after, Some(&current)).expect("room");
            placement.check(&whole).expect("a whole placement");
            for (index, seat) in after.iter().enumerate().take(2) {
                let held = current.shard(index + 1).slices;
                let kept = placement.shard(index).slices;
                let covers = |slice: &gaterail_proto::ExpertSlice| {
                    kept.iter().any(|at| (at.layer, at.expert) == (slice.layer, slice.expert))
                };
                assert!(held.iter().all(covers), "{mode}: {:?} loads anew what it has", seat.worker);
            }
        }
    }
}
