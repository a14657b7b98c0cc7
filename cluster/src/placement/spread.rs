//! Experts to groups: each group gets its share of every layer, since a layer takes as long as its slowest worker.

use std::collections::HashMap;

use super::Misfit;
use super::groups::proportional;
use super::job::{Balance, Job, Part};

/// Which groups hold each expert.
pub(super) struct Spread {
    /// By expert, in an order that stays: the first are the copies that everybody has, then come replicas.
    pub at: Vec<Vec<usize>>,
    /// What may still be put into each group.
    pub room: Vec<f64>,
}

/// Times that differ by less are the same: speeds are measured.
const TIE: f64 = 1.05;
const EPS: f64 = 1e-6;
/// Where memory is short; else two are enough.
const ROUNDS_MAX: usize = 16;

pub(super) fn spread(job: &Job<'_>) -> Result<Spread, Misfit> {
    let mut spreader = Spreader::new(job)?;
    spreader.keep();
    for layer in 0..job.layers.len() {
        spreader.fill(layer)?;
    }
    if job.balance != Balance::None {
        spreader.even_out();
    }
    let Spreader { at, room, .. } = spreader;
    Ok(Spread { at, room })
}

/// The groups of a copy that is there already: one if all that is left of it is in one.
pub(super) fn group_of(job: &Job<'_>, copy: &[Part]) -> Option<usize> {
    let home = |part: &Part| job.groups.iter().position(|group| group.seats.contains(&part.seat));
    let first = home(copy.first()?)?;
    copy.iter().all(|part| home(part) == Some(first)).then_some(first)
}

struct Spreader<'a> {
    job: &'a Job<'a>,
    /// By group: of one copy of everything; together the number of copies.
    shares: Vec<f64>,
    room: Vec<f64>,
    at: Vec<Vec<usize>>,
    /// Experts by layer and group.
    count: Vec<Vec<usize>>,
    /// Hits by layer and group.
    hits: Vec<Vec<f64>>,
    /// Bytes by group, over the layers that are done.
    planned: Vec<f64>,
    /// What each group's share of those would be.
    due: Vec<f64>,
    /// Where experts were before they were moved in this round.
    before: HashMap<usize, Vec<usize>>,
}

impl<'a> Spreader<'a> {
    fn new(job: &'a Job<'a>) -> Result<Spreader<'a>, Misfit> {
        let total = job.total();
        let seats = job.wanted.seats;
        let memory = |group: &super::groups::Group| -> f64 {
            group.seats.iter().map(|&seat| seats[seat].memory_bytes as f64).sum()
        };
        let caps: Vec<f64> = job
            .groups
            .iter()
            .map(|group| if total > 0.0 { (memory(group) / total).min(1.0) } else { 1.0 })
            .collect();
        let speeds: Vec<f64> = job.groups.iter().map(|group| group.speed).collect();
        let copies = job.copies as f64;
        let shares = proportional(&speeds, &caps, copies).ok_or_else(|| {
            let missing = (copies - caps.iter().sum::<f64>()) * total;
            let what = format!(
                "{} of experts in {} copies, and {} of memory on {} workers",
                giga(total * copies),
                job.copies,
                giga(seats.iter().map(|seat| seat.memory_bytes as f64).sum()),
                seats.len()
            );
            job.misfit(what, missing)
        })?;
        let by_seat = job.room();
        let room =
            job.groups.iter().map(|group| group.seats.iter().map(|&seat| by_seat[seat]).sum()).collect();
        let groups = job.groups.len();
        Ok(Spreader {
            job,
            shares,
            room,
            at: vec![Vec::new(); job.experts.len()],
            count: vec![vec![0; groups]; job.layers.len()],
            hits: vec![vec![0.0; groups]; job.layers.len()],
            planned: vec![0.0; groups],
            due: vec![0.0; groups],
            before: HashMap::new(),
        })
    }

    /// What is there stays, as far as it is wanted.
    fn keep(&mut self) {
        for expert in 0..self.job.experts.len() {
            for copy in &self.job.now[expert] {
                let Some(group) = group_of(self.job, copy) else { continue };
                let wanted = self.at[expert].len() < self.job.copies && self.lacks(expert, group);
                if wanted && self.takes(expert, group) {
                    self.put(expert, group);
                }
            }
        }
    }

    /// Finds a group for every copy that has none.
    fn fill(&mut self, layer: usize) -> Result<(), Misfit> {
        let experts = self.job.layers[layer].clone();
        let Some(bytes) = experts.clone().next().map(|first| self.job.experts[first].bytes) else {
            return Ok(());
        };
        for group in 0..self.due.len() {
            self.due[group] += self.quota(layer, group) * bytes;
            self.planned[group] += self.count[layer][group] as f64 * bytes;
        }
        let mut open: Vec<usize> =
            experts.filter(|&expert| self.at[expert].len() < self.job.copies).collect();
        // The most popular first: the others even out what these leave.
        open.sort_by(|&a, &b| self.job.hits(b).total_cmp(&self.job.hits(a)));
        for expert in open {
            while self.at[expert].len() < self.job.copies {
                let group = self.choose(expert).or_else(|| self.make_room(expert));
                let group = group.ok_or_else(|| self.no_room(expert))?;
                self.put(expert, group);
                self.planned[group] += bytes;
            }
        }
        Ok(())
    }

    /// The group that would be done first with one expert more, of those that have not their share; among equals the one
    /// that has had least of the layers before.
    fn choose(&self, expert: usize) -> Option<usize> {
        let layer = self.job.experts[expert].layer;
        let open: Vec<usize> = (0..self.room.len())
            .filter(|&group| self.lacks(expert, group) && self.takes(expert, group))
            .collect();
        let below = |&group: &usize| (self.count[layer][group] as f64) < self.quota(layer, group) - EPS;
        let fair: Vec<usize> = open.iter().copied().filter(below).collect();
        let mut among = if fair.is_empty() { open } else { fair };
        // Where nobody knows what is hit, one expert of a layer is as good as another.
        if self.job.wanted.popularity.is_none() {
            self.prefer_packed(expert, &mut among);
        }
        let hits = self.job.hits(expert);
        let time = |group: usize| match self.job.wanted.popularity {
            Some(_) => (self.hits[layer][group] + hits) / self.shares[group],
            None => (self.count[layer][group] + 1) as f64 / self.shares[group],
        };
        let best = among.iter().map(|&group| time(group)).fold(f64::INFINITY, f64::min);
        let lacking = |group: usize| self.due[group] - self.planned[group];
        let mut equal: Vec<usize> = among.into_iter().filter(|&group| time(group) <= best * TIE).collect();
        self.prefer_packed(expert, &mut equal);
        // The first of equals, not the last.
        equal.into_iter().reduce(|a, b| if lacking(b) > lacking(a) + EPS { b } else { a })
    }

    /// Of several groups those where most of an expert lies packed.
    fn prefer_packed(&self, expert: usize, groups: &mut Vec<usize>) {
        if self.job.packed.is_empty() {
            return;
        }
        let packed = |group: usize| self.job.packed_in(expert, group);
        let most = groups.iter().map(|&group| packed(group)).max().unwrap_or(0);
        groups.retain(|&group| packed(group) == most);
    }

    /// Moves another expert out of a group's way, where groups with room have this one already.
    fn make_room(&mut self, expert: usize) -> Option<usize> {
        let groups = 0..self.room.len();
        for to in groups.clone().filter(|&to| self.lacks(expert, to)) {
            for other in 0..self.at.len() {
                let frees = self.at[other].contains(&to)
                    && self.room[to] + self.job.cost(other, to) + EPS >= self.job.cost(expert, to);
                if !frees || other == expert {
                    continue;
                }
                let free = |&out: &usize| self.lacks(other, out) && self.takes(other, out);
                if let Some(out) = groups.clone().find(free) {
                    self.shift(other, to, out);
                    return Some(to);
                }
            }
        }
        None
    }

    /// Until nothing moves: what one move frees may be room for another.
    fn even_out(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.before.clear();
            (0..self.job.layers.len()).for_each(|layer| self.even_layer(layer));
            self.even_total();
            if self.before.iter().all(|(expert, before)| self.at[*expert] == *before) {
                return;
            }
        }
    }

    /// Brings every group within one expert of its share of a layer.
    fn even_layer(&mut self, layer: usize) {
        let bytes = self.job.layers[layer].clone().next().map_or(0.0, |first| self.job.experts[first].bytes);
        loop {
            let over = |group: usize| self.count[layer][group] as f64 - self.quota(layer, group);
            let groups = 0..self.room.len();
            let off = groups.clone().any(|group| over(group).abs() > 1.0 - EPS);
            let mut pairs: Vec<(usize, usize)> = Vec::new();
            for from in groups.clone() {
                let further = |&to: &usize| over(from) - over(to) > 1.0 + EPS;
                let matters = |&to: &usize| over(from) >= 1.0 - EPS || over(to) <= EPS - 1.0;
                pairs.extend(
                    groups
                        .clone()
                        .filter(|&to| self.job.group_may_take(to))
                        .filter(further)
                        .filter(matters)
                        .map(|to| (from, to)),
                );
            }
            if !off || pairs.is_empty() {
                return;
            }
            // Of equals, those that are furthest apart over all layers.
            let apart = |&(from, to): &(usize, usize)| {
                let total = |group: usize| self.planned[group] - self.due[group];
                (((over(from) - over(to)) / EPS).round(), total(from) - total(to))
            };
            pairs.sort_by(|a, b| {
                let ((here_a, total_a), (here_b, total_b)) = (apart(a), apart(b));
                here_b.total_cmp(&here_a).then(total_b.total_cmp(&total_a))
            });
            let moved =
                pairs.into_iter().find_map(|(from, to)| Some((self.movable(layer, from, to)?, from, to)));
            let Some((expert, from, to)) = moved else { return };
            self.shift(expert, from, to);
            self.planned[from] -= bytes;
            self.planned[to] += bytes;
        }
    }

    /// Where fewer experts than groups, or a rest of them, leave somebody short in layer after layer: evens out the sums.
    fn even_total(&mut self) {
        let mut stuck = vec![false; self.room.len()];
        loop {
            let over = |group: usize| self.planned[group] - self.due[group];
            let needy = (0..self.room.len()).filter(|&group| !stuck[group] && self.job.group_may_take(group));
            let Some(to) = needy.min_by(|&a, &b| over(a).total_cmp(&over(b))) else { return };
            let mut donors: Vec<usize> = (0..self.room.len()).filter(|&group| over(group) > EPS).collect();
            donors.sort_by(|&a, &b| over(b).total_cmp(&over(a)));
            let found = donors.into_iter().find_map(|from| {
                let layers = 0..self.job.layers.len();
                let layer = layers.into_iter().find(|&layer| self.may_even(layer, from, to))?;
                Some((self.movable(layer, from, to)?, from))
            });
            let Some((expert, from)) = found else {
                stuck[to] = true;
                continue;
            };
            let bytes = self.job.experts[expert].bytes;
            self.shift(expert, from, to);
            self.planned[from] -= bytes;
            self.planned[to] += bytes;
        }
    }

    /// Whether an expert of this layer may move for the sums' sake: the layer takes no longer, and both stay near their share.
    fn may_even(&self, layer: usize, from: usize, to: usize) -> bool {
        let Some(first) = self.job.layers[layer].clone().next() else { return false };
        let bytes = self.job.experts[first].bytes;
        let over = |group: usize| self.planned[group] - self.due[group];
        let time = |group: usize, more: usize| (self.count[layer][group] + more) as f64 / self.shares[group];
        let longest = (0..self.room.len()).map(|group| time(group, 0)).fold(0.0, f64::max);
        let (count, quota) = (&self.count[layer], |group| self.quota(layer, group));
        over(from) - over(to) > bytes * (1.0 + EPS)
            && over(to) <= -bytes * (1.0 - EPS)
            && (count[to] as f64) < quota(to) - EPS
            && (count[from] as f64) > quota(from) + EPS
            && time(to, 1) <= longest * TIE
    }

    /// An expert of a layer that one group can give to another: the one that evens out their hits best.
    fn movable(&self, layer: usize, from: usize, to: usize) -> Option<usize> {
        let gives = |expert: &usize| {
            self.at[*expert].contains(&from) && self.lacks(*expert, to) && self.takes(*expert, to)
        };
        let gap = (self.hits[layer][from] - self.hits[layer][to]) / 2.0;
        let off = |expert: usize| (self.job.hits(expert) - gap).abs();
        self.job.layers[layer].clone().filter(gives).min_by(|&a, &b| off(a).total_cmp(&off(b)))
    }

    /// Experts of a layer that a group should have.
    fn quota(&self, layer: usize, group: usize) -> f64 {
        self.shares[group] * self.job.layers[layer].len() as f64
    }

    fn lacks(&self, expert: usize, group: usize) -> bool {
        !self.at[expert].contains(&group)
    }

    fn takes(&self, expert: usize, group: usize) -> bool {
        self.job.cost(expert, group) <= self.room[group] + EPS
    }

    fn put(&mut self, expert: usize, group: usize) {
        self.room[group] -= self.job.cost(expert, group);
        self.at[expert].push(group);
        let layer = self.job.experts[expert].layer;
        self.count[layer][group] += 1;
        self.hits[layer][group] += self.job.hits(expert);
    }

    fn shift(&mut self, expert: usize, from: usize, to: usize) {
        self.room[from] += self.job.cost(expert, from);
        let layer = self.job.experts[expert].layer;
        self.before.entry(expert).or_insert_with(|| self.at[expert].clone());
        self.count[layer][from] -= 1;
        self.hits[layer][from] -= self.job.hits(expert);
        self.at[expert].retain(|&group| group != from);
        self.put(expert, to);
    }

    fn no_room(&self, expert: usize) -> Misfit {
        let at = &self.job.wanted.inventory.layers[self.job.experts[expert].layer];
        let bytes = self.job.experts[expert].bytes;
        let most = self.room.iter().copied().fold(0.0, f64::max);
        let what = format!("no place is left for an expert of layer {} with {}", at.layer.0, giga(bytes));
        self.job.misfit(what, (bytes - most).max(0.0))
    }
}

fn giga(bytes: f64) -> String {
    format!("{:.2} GB", bytes / 1e9)
}
