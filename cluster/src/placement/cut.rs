//! Each copy over the workers of its group: runs of units, as wide as the worker is fast.
//!
//! Where units do not divide, workers take turns at the rest from expert to expert, so that load and memory stay even; with
//! fewer units than workers some get nothing of an expert. What a worker holds stays in the runs it was loaded in.

use std::cmp::Ordering;

use gaterail_proto::UnitRange;

use super::Misfit;
use super::groups::proportional;
use super::job::{Balance, Job, Part};

const EPS: f64 = 1e-6;
/// Workers change units for the sums' sake when those differ by more than so many.
const UNITS_OFF_MAX: f64 = 2.0;

/// The runs of every copy, by expert.
pub(super) fn cut(job: &Job<'_>, at: &[Vec<usize>]) -> Result<Vec<Vec<Vec<Part>>>, Misfit> {
    let mut cutter = Cutter::new(job, at);
    let copies = at.iter().enumerate();
    copies.map(|(expert, groups)| groups.iter().map(|&group| cutter.copy(expert, group)).collect()).collect()
}

struct Cutter<'a> {
    job: &'a Job<'a>,
    /// By seat: its share of each copy of its group.
    shares: Vec<f64>,
    room: Vec<f64>,
    /// By seat: bytes of its group's copies that have been cut, times its share.
    due: Vec<f64>,
    given: Vec<f64>,
    /// How often a seat was weighed for a unit: what placing costs, and what a test holds it to.
    weighed: u64,
}

/// One copy on its way.
struct Copy<'a> {
    units: u32,
    unit_bytes: f64,
    seats: &'a [usize],
    /// Units of each of `seats`.
    widths: Vec<u32>,
    /// What stays of what is held now.
    parts: Vec<Part>,
    /// What lies packed on somebody's host.
    packed: &'a [Part],
}

impl<'a> Cutter<'a> {
    fn new(job: &'a Job<'a>, at: &[Vec<usize>]) -> Cutter<'a> {
        let seats = job.wanted.seats;
        let mut bytes = vec![0.0; job.groups.len()];
        for (expert, groups) in job.experts.iter().zip(at) {
            groups.iter().for_each(|&group| bytes[group] += expert.bytes);
        }
        let mut shares = vec![0.0; seats.len()];
        for (group, &bytes) in job.groups.iter().zip(&bytes) {
            let cap = |seat: usize| {
                if bytes > 0.0 { seats[seat].memory_bytes as f64 / bytes } else { 1.0 }
            };
            let caps: Vec<f64> = group.seats.iter().map(|&seat| cap(seat).min(1.0)).collect();
            let speeds: Vec<f64> = group.seats.iter().map(|&seat| job.speeds[seat]).collect();
            // Never more than there is room for: what the group got was checked. Rounding apart, that is.
            let parts = proportional(&speeds, &caps, 1.0).unwrap_or(caps);
            group.seats.iter().zip(parts).for_each(|(&seat, part)| shares[seat] = part);
        }
        let mut room = job.room();
        if !job.beside {
            for (expert, groups) in at.iter().enumerate() {
                for &group in groups {
                    let copy = Copy::new(job, expert, group);
                    copy.parts.iter().for_each(|part| {
                        room[part.seat] -= copy.unit_bytes * f64::from(part.len());
                    });
                }
            }
        }
        let none = vec![0.0; seats.len()];
        Cutter { job, shares, room, due: none.clone(), given: none, weighed: 0 }
    }

    fn copy(&mut self, expert: usize, group: usize) -> Result<Vec<Part>, Misfit> {
        let mut copy = Copy::new(self.job, expert, group);
        for (&seat, &width) in copy.seats.iter().zip(&copy.widths) {
            self.due[seat] += self.shares[seat] * f64::from(copy.units) * copy.unit_bytes;
            self.given[seat] += f64::from(width) * copy.unit_bytes;
        }
        self.give_shares(&mut copy);
        for _ in copy.widths.iter().sum::<u32>()..copy.units {
            let at = self.next(&copy).ok_or_else(|| {
                let what =
                    "units of an expert do not fit into what is left on any worker of a group".to_string();
                self.job.misfit(what, copy.unit_bytes)
            })?;
            self.give(&mut copy, at);
        }
        if self.job.balance != Balance::None {
            while let Some((from, to)) = self.uneven(&copy) {
                let seat = copy.seats[from];
                copy.widths[from] -= 1;
                self.given[seat] -= copy.unit_bytes;
                if !self.job.beside {
                    self.room[seat] += copy.unit_bytes;
                }
                self.give(&mut copy, to);
            }
        }
        Ok(copy.runs())
    }

    /// Whole units of everybody's share, if there are so many left: they come before all others, in whatever order they are given.
    fn give_shares(&mut self, copy: &mut Copy<'_>) {
        let whole = |at: usize| (self.fair(copy, at) + EPS) as u32;
        let lacks: Vec<u32> =
            copy.widths.iter().enumerate().map(|(at, width)| whole(at).saturating_sub(*width)).collect();
        let left = copy.units.saturating_sub(copy.widths.iter().sum());
        if lacks.iter().sum::<u32>() > left {
            return;
        }
        for (at, lacks) in lacks.into_iter().enumerate() {
            for _ in 0..lacks {
                if self.room[copy.seats[at]] + EPS < copy.unit_bytes {
                    break;
                }
                self.give(copy, at);
            }
        }
    }

    fn give(&mut self, copy: &mut Copy<'_>, at: usize) {
        let seat = copy.seats[at];
        copy.widths[at] += 1;
        self.given[seat] += copy.unit_bytes;
        self.room[seat] -= copy.unit_bytes;
    }

    /// Who gets the next unit: who is below its share of this copy, then who has more of it packed and has not had too much of those
    /// before, then who is behind with those.
    fn next(&mut self, copy: &Copy<'_>) -> Option<usize> {
        self.weighed += copy.seats.len() as u64;
        let open = (0..copy.seats.len()).filter(|&at| self.room[copy.seats[at]] + EPS >= copy.unit_bytes);
        let rank = |&at: &usize| {
            let (width, fair) = (f64::from(copy.widths[at]), self.fair(copy, at));
            let stage = match width {
                width if width + 1.0 <= fair + EPS => 2.0,
                width if width < fair - EPS => 1.0,
                _ => 0.0,
            };
            let behind = self.behind(copy, at);
            (stage, copy.has_more(at) && behind > -UNITS_OFF_MAX, behind)
        };
        let mut best: Option<(usize, (f64, bool, f64))> = None;
        for at in open {
            let (stage, packed, behind) = rank(&at);
            let is_better = |(_, (most, there, far)): (usize, (f64, bool, f64))| {
                // The first of equals.
                (stage, packed) > (most, there) || ((stage, packed) == (most, there) && behind > far + EPS)
            };
            if best.is_none_or(is_better) {
                best = Some((at, (stage, packed, behind)));
            }
        }
        best.map(|(at, _)| at)
    }

    /// Somebody who has a unit too many, and somebody who lacks one.
    fn uneven(&self, copy: &Copy<'_>) -> Option<(usize, usize)> {
        let seats = 0..copy.seats.len();
        let over = |at: usize| f64::from(copy.widths[at]) - self.fair(copy, at);
        let takers = seats.clone().filter(|&at| {
            let seat = copy.seats[at];
            self.job.may_take(seat) && self.room[seat] + EPS >= copy.unit_bytes
        });
        let givers = seats.filter(|&at| copy.widths[at] > 0);
        let behind = |at: usize| self.behind(copy, at);
        // Of equals, who had most of those before, and who had least.
        let order = |a: usize, b: usize| {
            let differ = (over(a) - over(b)).abs() > EPS;
            let by_over = if differ { over(a).total_cmp(&over(b)) } else { Ordering::Equal };
            by_over.then(behind(b).total_cmp(&behind(a)))
        };
        let from = givers.clone().max_by(|&a, &b| order(a, b))?;
        let to = takers.clone().min_by(|&a, &b| order(a, b))?;
        if over(from) - over(to) > 1.0 + EPS && (over(from) >= 1.0 - EPS || over(to) <= EPS - 1.0) {
            return Some((from, to));
        }
        // Within this copy all is well; over those before it may not be.
        let from = givers.filter(|&at| over(at) > EPS).min_by(|&a, &b| behind(a).total_cmp(&behind(b)))?;
        let to = takers.filter(|&at| over(at) < -EPS).max_by(|&a, &b| behind(a).total_cmp(&behind(b)))?;
        (behind(to) - behind(from) > UNITS_OFF_MAX && behind(to) > 1.0 && behind(from) < 0.0)
            .then_some((from, to))
    }

    /// Units of a copy that are a seat's share.
    fn fair(&self, copy: &Copy<'_>, at: usize) -> f64 {
        f64::from(copy.units) * self.shares[copy.seats[at]]
    }

    /// Units that a seat has had too little of so far.
    fn behind(&self, copy: &Copy<'_>, at: usize) -> f64 {
        let seat = copy.seats[at];
        (self.due[seat] - self.given[seat]) / copy.unit_bytes.max(f64::MIN_POSITIVE)
    }
}

impl<'a> Copy<'a> {
    fn new(job: &'a Job<'a>, expert: usize, group: usize) -> Copy<'a> {
        let at = &job.experts[expert];
        let seats = &job.groups[group].seats[..];
        let held = job.now[expert].iter().flatten().filter(|part| seats.contains(&part.seat));
        let parts = disjoint(held, at.units);
        let width = |&seat: &usize| parts.iter().filter(|part| part.seat == seat).map(Part::len).sum();
        let widths = seats.iter().map(width).collect();
        let packed = job.packed.get(expert).map_or(&[][..], |parts| parts);
        Copy {
            units: at.units,
            unit_bytes: at.bytes / f64::from(at.units.max(1)),
            seats,
            widths,
            parts,
            packed,
        }
    }

    /// Whether a seat's host has more units packed than it gets so far.
    fn has_more(&self, at: usize) -> bool {
        let packed = self.packed.iter().filter(|part| part.seat == self.seats[at]);
        packed.map(Part::len).sum::<u32>() > self.widths[at]
    }

    /// Runs of these widths: what is held is cut from its end, and what nobody holds is handed out in order, but for those who have
    /// packed what comes next.
    fn runs(mut self) -> Vec<Part> {
        let packed = self.packed;
        let mut wanting: Vec<(usize, u32)> = Vec::new();
        for (&seat, &width) in self.seats.iter().zip(&self.widths) {
            let held: u32 = self.parts.iter().filter(|part| part.seat == seat).map(Part::len).sum();
            let mut surplus = held.saturating_sub(width);
            for part in self.parts.iter_mut().rev().filter(|part| part.seat == seat) {
                let off = surplus.min(part.len());
                part.units.end -= off;
                surplus -= off;
            }
            wanting.push((seat, width.saturating_sub(held)));
        }
        self.parts.retain(|part| part.len() > 0);
        wanting.retain(|&(_, width)| width > 0);
        // Who has begun goes on.
        let mut begun: Option<usize> = None;
        for UnitRange { mut start, end } in gaps(&self.parts, self.units) {
            while start < end {
                let has = |&(seat, width): &(usize, u32)| {
                    let run = UnitRange { start, end: end.min(start + width) };
                    packed
                        .iter()
                        .any(|at| at.seat == seat && at.units.start <= start && at.units.end >= run.end)
                };
                let ready = || wanting.iter().position(has);
                let at = begun.or_else(ready).unwrap_or(0);
                // The widths are the units: somebody wants them.
                let (seat, width) = &mut wanting[at];
                let upto = end.min(start + *width);
                self.parts.push(Part { seat: *seat, units: UnitRange { start, end: upto } });
                *width -= upto - start;
                begun = (*width > 0).then_some(at);
                if begun.is_none() {
                    wanting.remove(at);
                }
                start = upto;
            }
        }
        self.parts.sort_by_key(|part| part.units.start);
        self.parts
    }
}

/// Parts of an expert without what two of them hold, in order.
fn disjoint<'p>(held: impl Iterator<Item = &'p Part>, units: u32) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for part in held {
        for gap in gaps(&parts, units) {
            let (start, end) = (gap.start.max(part.units.start), gap.end.min(part.units.end));
            if start < end {
                parts.push(Part { seat: part.seat, units: UnitRange { start, end } });
            }
        }
        parts.sort_by_key(|part| part.units.start);
    }
    parts
}

/// What parts, in order, leave of an expert's units.
fn gaps(parts: &[Part], units: u32) -> Vec<UnitRange> {
    let mut gaps = Vec::new();
    let mut next = 0;
    for part in parts {
        if part.units.start > next {
            gaps.push(UnitRange { start: next, end: part.units.start });
        }
        next = part.units.end;
    }
    if next < units {
        gaps.push(UnitRange { start: next, end: units });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use gaterail_proto::{ExpertInventory, LayerExperts, LayerId, WorkerId};

    use super::super::{Mode, Seat, Wanted, spread::spread};
    use super::*;

    /// Seats that are weighed, for each copy of an expert.
    fn weighed(mode: Mode, units: u32, seats: u64) -> f64 {
        let layer =
            |layer| LayerExperts { layer: LayerId(layer), experts: 256, units, expert_bytes: 24_000_000 };
        let inventory = ExpertInventory { layers: (0..58).map(layer).collect() };
        let seat = |id| Seat { worker: WorkerId(id), memory_bytes: 1 << 40, read_bytes_per_second: 2e12 };
        let seats: Vec<Seat> = (0..seats).map(seat).collect();
        let wanted = Wanted::new(&inventory, &seats, mode);
        let job = Job::new(&wanted, None, true);
        let at = spread(&job).expect("room").at;
        let mut cutter = Cutter::new(&job, &at);
        for (expert, groups) in at.iter().enumerate() {
            groups.iter().for_each(|&group| drop(cutter.copy(expert, group).expect("room")));
        }
        cutter.weighed as f64 / at.len() as f64
    }

    /// A unit that is somebody's share is given without asking all; only what does not divide is weighed.
    #[test]
    fn few_are_weighed() {
        assert_eq!(weighed(Mode::Ep, 16, 7), 0.0);
        assert_eq!(weighed(Mode::Tp, 16, 8), 0.0);
        assert_eq!(weighed(Mode::Tp, 16, 7), 2.0 * 7.0);
        assert_eq!(weighed(Mode::Mixed { ep: 2, tp: 3 }, 16, 6), 3.0);
    }
}
