//! Which plan comes next: what a roster does when nothing more happens.

use std::sync::Arc;
use std::time::Instant;

use gaterail_proto::{Epoch, Placement, WorkerId};

use super::about::seats;
use super::case::{self, Case};
use super::member::Member;
use super::penalty::Who;
use super::roster::{Pending, Roster};
use super::search::What;
use super::wish::Spread;
use super::{Action, Note, Policy, WorkerAbout};
use crate::placement::{Balance, Popularity, Seat, balance, copies, rough, speeds, without};

impl Roster {
    /// Begins what is to be begun, and lets go who is not needed.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.pending.is_none() {
            if self.retry.is_some_and(|at| at <= now) {
                self.retry = None;
                self.changed = true;
            }
            if self.whole() {
                self.improve(now);
            } else {
                self.recover(now);
            }
        }
        self.let_go();
    }

    /// Those who can be planned with, in the order in which they joined; or all who are there.
    pub(super) fn seats(&self, all: bool) -> Vec<Seat> {
        let wanted = |at: &&Member| !at.leaving && !self.penalties.leaves_out(&Who::of(&at.about));
        let mut members: Vec<_> = self.members.values().filter(|at| all || wanted(at)).collect();
        members.sort_by_key(|member| member.joined);
        let abouts: Vec<&WorkerAbout> = members.iter().map(|member| &member.about).collect();
        seats(&abouts)
    }

    /// The share of the work of a worker that is there follows this: bytes a second.
    pub fn speed(&self, worker: WorkerId) -> Option<f64> {
        let seats = self.seats(true);
        seats.iter().find(|seat| seat.worker == worker).map(|seat| seat.read_bytes_per_second)
    }

    /// What is wanted, to be taken along.
    pub(super) fn case(&self, seats: &[Seat], beside: bool) -> Case {
        let Policy { mode, copies, replica_bytes, .. } = self.policy;
        Case {
            inventory: self.inventory.clone(),
            seats: seats.to_vec(),
            mode,
            copies: copies.max(1),
            replica_bytes,
            popularity: self.popularity.clone(),
            packed: self.packed.clone(),
            current: self.active.as_ref().map(|active| active.placement.clone()),
            beside,
        }
    }

    /// The active plan is whole: is there a better one?
    fn improve(&mut self, now: Instant) {
        // Workers that hold what it replaced have no room for what is next.
        let retired = self.active.as_ref().is_none_or(|active| active.retire.is_empty());
        if self.retry.is_some() || !retired {
            return;
        }
        if !self.changed {
            return self.follow(now);
        }
        // What is being looked for may be for other circumstances: it is looked at again when that is here.
        if self.search(What::Better) {
            self.changed = false;
        }
    }

    /// Whether copies would be lost only because somebody who serves cannot load anything else.
    pub(super) fn is_poorer(&self, placement: &Placement, seats: &[Seat]) -> bool {
        let Some(active) = &self.active else { return false };
        let left_out = |worker: &&WorkerId| seats.iter().all(|seat| seat.worker != **worker);
        let stays = |worker: &WorkerId| self.members.get(worker).is_some_and(|member| !member.leaving);
        let mut left_out = active.placement.workers.iter().filter(left_out);
        left_out.any(stays) && copies(placement) < copies(&active.placement)
    }

    /// Nothing happened but that other experts are hot: a plan that follows them has to be worth its loading, and is not made
    /// too often.
    fn follow(&mut self, now: Instant) {
        let early =
            self.weighed.is_some_and(|at| now.saturating_duration_since(at) < self.policy.rebalance_every);
        if early || !self.heated || self.active.is_none() || self.popularity.is_none() {
            return;
        }
        if self.search(What::Hot { gain_min: self.policy.rebalance_gain_min }) {
            self.heated = false;
            // Looking for a plan takes long, too.
            self.weighed = Some(now);
        }
    }

    /// How evenly a placement spreads what is hit.
    pub(super) fn balance(&self, placement: &Placement, hits: &Popularity) -> Balance {
        let seats = self.seats(true);
        let held_by = Seat::of(&placement.workers, &seats);
        balance(&self.inventory, placement, hits, &speeds(&held_by))
    }

    /// There is no plan, or somebody of it is gone: what is left is served at once if it has every expert.
    fn recover(&mut self, now: Instant) {
        if self.members.is_empty() {
            // Who comes from here on is planned for anew, and with time.
            self.searches.settled();
            if !std::mem::replace(&mut self.no_plan, true) && self.active.is_some() {
                self.note(Note::NoPlan { why: "all workers are gone".to_string() });
            }
            return;
        }
        let ready = self.active.is_some() || self.enough(now);
        if !ready || !self.changed {
            return;
        }
        let alive = |worker| self.members.contains_key(&worker);
        let rest = self.active.as_ref().and_then(|active| {
            let still = |worker| alive(worker) && !active.lost.contains(&worker);
            without(&active.placement, still)
        });
        if let Some(placement) = rest {
            self.changed = false;
            self.prepare(placement, None, "copies are left", now);
            return;
        }
        let hopeless = |worker: &WorkerId| {
            let member = self.members.get(worker);
            member.is_some_and(|member| self.penalties.is_hopeless(&Who::of(&member.about)))
        };
        let seats: Vec<Seat> = self.seats(true).into_iter().filter(|at| !hopeless(&at.worker)).collect();
        if self.searches.late().is_some() && self.make_do(&seats, now) {
            return;
        }
        if self.search(What::Rest { seats }) {
            self.changed = false;
        }
    }

    /// Things change faster than a search takes: what can be had at once is, and something better is looked for when that is
    /// active. `false` where it cannot.
    fn make_do(&mut self, seats: &[Seat], now: Instant) -> bool {
        let circumstances = self.circumstances();
        if self.no_rough.as_ref() == Some(&circumstances) {
            return false;
        }
        let current = self.active.as_ref().map(|active| &*active.placement);
        let wanted = &circumstances.seats;
        let mut groups = vec![self.steady(wanted), wanted.clone(), seats.to_vec()];
        groups.dedup();
        let found = groups.iter().find_map(|seats| rough(&self.inventory, seats, current));
        let Some(placement) = found else {
            self.no_rough = Some(circumstances);
            return false;
        };
        (self.changed, self.makeshift) = (false, true);
        self.prepare_in_need(placement, None, "what can be had at once, while workers come and go", now);
        true
    }

    /// As `prepare`, where what is held may have to make room.
    pub(super) fn prepare_in_need(
        &mut self,
        placement: Placement,
        wanted: Option<Spread>,
        why: &'static str,
        now: Instant,
    ) {
        let has_room = self.has_room(&placement);
        self.prepare(placement, wanted, why, now);
        if !has_room {
            self.make_room();
        }
    }

    /// Whether all workers can hold a plan beside the active one.
    pub(super) fn has_room(&self, placement: &Placement) -> bool {
        let memory = |worker| self.members.get(&worker).map_or(0, |member| member.about.machine.memory_bytes);
        let current = self.active.as_ref().map(|active| &*active.placement);
        case::has_room(&self.inventory, current, placement, memory)
    }

    /// What is held for any but the pending plan is over. It cannot compute all layers any more.
    fn make_room(&mut self) {
        let (Some(active), Some(pending)) = (&mut self.active, &self.pending) else { return };
        active.retire.clear();
        let before = pending.epoch;
        self.act(Action::Retire { before });
    }

    /// Whether the first plan may be made.
    fn enough(&mut self, now: Instant) -> bool {
        let waited = self.first_joined.is_some_and(|at| at + self.policy.join_wait <= now);
        // Time alone is a change here.
        if waited && self.first_joined.take().is_some() {
            self.changed = true;
        }
        self.first_joined.is_none() || self.members.len() >= self.policy.expected
    }

    pub(super) fn prepare(
        &mut self,
        placement: Placement,
        wanted: Option<Spread>,
        why: &'static str,
        now: Instant,
    ) {
        self.searches.settled();
        self.epoch = Epoch(self.epoch.0 + 1);
        let epoch = self.epoch;
        let workers = placement.workers.len();
        self.note(Note::Planned { epoch, workers, copies: copies(&placement), why });
        for (index, worker) in placement.workers.iter().enumerate() {
            self.act(Action::Prepare { worker: *worker, epoch, shard: placement.shard(index) });
            if let Some(member) = self.members.get_mut(worker) {
                member.moved = now;
                member.loading = None;
            }
        }
        let open = placement.workers.iter().copied().collect();
        self.pending = Some(Pending { epoch, placement: Arc::new(placement), open, wanted });
    }

    /// Who wants to leave, and is in no plan that counts, may go.
    fn let_go(&mut self) {
        // Whom the next plan needs is not known yet.
        if self.searches.any() {
            return;
        }
        let mut needed: Vec<_> = Vec::new();
        if let Some(active) = &self.active {
            if !active.retire.is_empty() {
                return;
            }
            needed.extend(&active.placement.workers);
        }
        needed.extend(self.pending.iter().flat_map(|pending| &pending.placement.workers));
        let free = |worker: &_| !needed.contains(worker);
        let leaving = self.members.iter().filter(|(worker, member)| member.leaving && free(worker));
        for worker in leaving.map(|(&worker, _)| worker).collect::<Vec<_>>() {
            self.members.remove(&worker);
            self.act(Action::Dismiss { worker, why: "drained".to_string(), again: false });
        }
    }
}
