//! What is to be placed, by number: experts in the inventory's order, workers by their seats, and what each seat holds now.

use std::collections::HashMap;

use gaterail_proto::{LayerId, Placement, UnitRange, WorkerId};

use super::groups::{Group, Now, groups, speeds};
use super::{Misfit, Wanted};

/// One expert.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expert {
    /// Index into the inventory's layers.
    pub layer: usize,
    pub bytes: f64,
    pub units: u32,
}

/// Units that a seat holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub seat: usize,
    pub units: UnitRange,
}

impl Part {
    pub fn len(&self) -> u32 {
        self.units.end - self.units.start
    }
}

/// What may move although it need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balance {
    /// Somebody died and nobody came: nothing.
    None,
    /// Somebody came: what they take.
    Newcomers,
    All,
}

/// A whole task of placing.
pub(super) struct Job<'a> {
    pub wanted: &'a Wanted<'a>,
    pub copies: usize,
    pub experts: Vec<Expert>,
    /// Experts of each layer, by number.
    pub layers: Vec<std::ops::Range<usize>>,
    /// Bytes a second of each seat, positive.
    pub speeds: Vec<f64>,
    pub groups: Vec<Group>,
    /// By expert and copy: what is held now on seats that are still there. Copies of which nothing is left are left out.
    pub now: Vec<Vec<Vec<Part>>>,
    /// By expert: what lies packed on a seat's host; empty where nobody has anything.
    pub packed: Vec<Vec<Part>>,
    /// Whether what is held now and not wanted any more still takes its room.
    pub beside: bool,
    pub balance: Balance,
    /// By seat: whether it is new.
    new: Vec<bool>,
}

impl<'a> Job<'a> {
    pub fn new(wanted: &'a Wanted<'a>, current: Option<&Placement>, beside: bool) -> Job<'a> {
        let mut experts = Vec::new();
        let mut layers = Vec::new();
        for (layer, at) in wanted.inventory.layers.iter().enumerate() {
            let first = experts.len();
            let expert = Expert { layer, bytes: at.expert_bytes as f64, units: at.units };
            experts.extend((0..at.experts).map(|_| expert));
            layers.push(first..experts.len());
        }
        let seat_of: HashMap<WorkerId, usize> =
            wanted.seats.iter().enumerate().map(|(seat, at)| (at.worker, seat)).collect();
        let current = current.filter(|current| current.check(wanted.inventory).is_ok());
        let now = match current {
            Some(current) => held_now(current, &seat_of),
            None => vec![Vec::new(); experts.len()],
        };
        let workers = current.map_or(&[][..], |current| &current.workers);
        let died = workers.iter().any(|worker| !seat_of.contains_key(worker));
        let new: Vec<bool> = wanted.seats.iter().map(|seat| !workers.contains(&seat.worker)).collect();
        let balance = match (died, new.contains(&true)) {
            (true, false) => Balance::None,
            (_, true) => Balance::Newcomers,
            (false, false) => Balance::All,
        };
        let copies = wanted.copies.max(1) as usize;
        let speeds = speeds(wanted.seats);
        let lead = current.map_or_else(Vec::new, together);
        let mut together = vec![None; wanted.seats.len()];
        for (worker, lead) in workers.iter().zip(lead) {
            if let Some(&seat) = seat_of.get(worker) {
                together[seat] = lead;
            }
        }
        let made_after = Now { copies: &now, together: &together, balance: balance != Balance::None };
        let groups = groups(wanted.seats, &speeds, wanted.mode, copies, made_after);
        let packed = packed(wanted, &layers, &seat_of);
        Job { wanted, copies, experts, layers, speeds, groups, now, packed, beside, balance, new }
    }

    /// Units of an expert that lie packed where a group is.
    pub fn packed_in(&self, expert: usize, group: usize) -> u32 {
        let parts = self.packed.get(expert).into_iter().flatten();
        parts.filter(|part| self.groups[group].seats.contains(&part.seat)).map(Part::len).sum()
    }

    /// Bytes that a copy of an expert takes of a group's room: beside what is held now, or anew.
    pub fn cost(&self, expert: usize, group: usize) -> f64 {
        let Expert { bytes, units, .. } = self.experts[expert];
        if !self.beside {
            return bytes;
        }
        let parts = self.now[expert].iter().flatten();
        let held = parts.filter(|part| self.groups[group].seats.contains(&part.seat));
        let held: u32 = held.map(Part::len).sum();
        bytes * f64::from(units.saturating_sub(held)) / f64::from(units.max(1))
    }

    /// Room of each seat, for what `cost` counts.
    pub fn room(&self) -> Vec<f64> {
        let mut room: Vec<f64> = self.wanted.seats.iter().map(|seat| seat.memory_bytes as f64).collect();
        if self.beside {
            for (expert, copies) in self.experts.iter().zip(&self.now) {
                for part in copies.iter().flatten() {
                    room[part.seat] -= expert.bytes * f64::from(part.len()) / f64::from(expert.units.max(1));
                }
            }
        }
        room
    }

    /// Whether a seat may get what somebody else could keep.
    pub fn may_take(&self, seat: usize) -> bool {
        match self.balance {
            Balance::None => false,
            Balance::Newcomers => self.new[seat],
            Balance::All => true,
        }
    }

    /// As `may_take`, for a group.
    pub fn group_may_take(&self, group: usize) -> bool {
        self.groups[group].seats.iter().any(|&seat| self.may_take(seat))
    }

    /// Bytes of one copy of everything.
    pub fn total(&self) -> f64 {
        self.experts.iter().map(|expert| expert.bytes).sum()
    }

    /// How often an expert is hit, on any scale.
    pub fn hits(&self, expert: usize) -> f64 {
        let hits = self.wanted.popularity.and_then(|hits| hits.0.get(expert)).copied();
        hits.filter(|hits| hits.is_finite() && *hits >= 0.0).unwrap_or(1.0)
    }

    pub fn misfit(&self, what: String, missing: f64) -> Misfit {
        Misfit { what, missing_bytes: missing.ceil() as u64, ways: Vec::new() }
    }
}

/// Nothing for slices that the inventory does not have.
fn packed(
    wanted: &Wanted<'_>,
    layers: &[std::ops::Range<usize>],
    seat_of: &HashMap<WorkerId, usize>,
) -> Vec<Vec<Part>> {
    if wanted.packed.iter().all(|(worker, _)| !seat_of.contains_key(worker)) {
        return Vec::new();
    }
    let first_of: HashMap<LayerId, &std::ops::Range<usize>> =
        wanted.inventory.layers.iter().map(|at| at.layer).zip(layers).collect();
    let mut packed = vec![Vec::new(); layers.last().map_or(0, |last| last.end)];
    for (worker, shard) in wanted.packed {
        let Some(&seat) = seat_of.get(worker) else { continue };
        for slice in &shard.slices {
            let experts = first_of.get(&slice.layer).map_or(0..0, |experts| (*experts).clone());
            if let Some(expert) = experts.clone().nth(slice.expert.0 as usize) {
                packed[expert].push(Part { seat, units: slice.units });
            }
        }
    }
    packed
}

fn held_now(current: &Placement, seat_of: &HashMap<WorkerId, usize>) -> Vec<Vec<Vec<Part>>> {
    let parts = |copy: &gaterail_proto::ExpertCopy| {
        let part = |run: &gaterail_proto::UnitRun| {
            let seat = *seat_of.get(&current.workers[run.worker as usize])?;
            Some(Part { seat, units: run.units })
        };
        copy.runs.iter().filter_map(part).collect::<Vec<_>>()
    };
    let copies = |at: &gaterail_proto::ExpertPlace| {
        at.copies.iter().map(parts).filter(|parts: &Vec<_>| !parts.is_empty()).collect()
    };
    current.experts.iter().map(copies).collect()
}

/// By worker: the first of those with whom it holds experts, those included that are gone; `None` for who holds nothing.
fn together(current: &Placement) -> Vec<Option<usize>> {
    let mut lead: Vec<Option<usize>> = vec![None; current.workers.len()];
    for copy in current.experts.iter().flat_map(|at| &at.copies) {
        let workers = || copy.runs.iter().map(|run| run.worker as usize);
        let Some(first) = workers().map(|worker| lead[worker].unwrap_or(worker)).min() else { continue };
        if workers().all(|worker| lead[worker] == Some(first)) {
            continue;
        }
        let merged: Vec<usize> = workers().filter_map(|worker| lead[worker]).collect();
        workers().for_each(|worker| lead[worker] = Some(first));
        lead.iter_mut()
            .filter(|at| at.is_some_and(|at| merged.contains(&at)))
            .for_each(|at| *at = Some(first));
    }
    lead
}
