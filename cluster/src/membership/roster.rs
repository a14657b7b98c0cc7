//! The roster: who is there, which plan is active, which is being prepared.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gaterail_proto::{Epoch, ExpertInventory, Placement, ShardSpec, WorkerId};

use super::member::Member;
use super::penalty::{Penalties, Who};
use super::running::Running;
use super::search::Circumstances;
use super::wish::Spread;
use super::{Action, Event, Note, Policy, Progress, WorkerAbout};
use crate::placement::{Balance, Held, Misfit, Popularity};

/// All that is known of the workers of one router.
pub struct Roster {
    pub(super) policy: Policy,
    /// What was wanted when the last plan came into force that was made for it: what a wish falls back to.
    pub(super) fallback: Spread,
    pub(super) inventory: ExpertInventory,
    pub(super) members: BTreeMap<WorkerId, Member>,
    /// What lies packed on the hosts of members, and of some who are gone.
    pub(super) packed: Vec<(WorkerId, Arc<ShardSpec>)>,
    pub(super) popularity: Option<Popularity>,
    /// The last that was given out.
    pub(super) epoch: Epoch,
    pub(super) active: Option<Active>,
    pub(super) pending: Option<Pending>,
    /// Since when somebody has been there without a plan ever.
    pub(super) first_joined: Option<Instant>,
    /// Whether something happened that may ask for another plan.
    pub(super) changed: bool,
    /// Plans that are being looked for.
    pub(super) searches: Running,
    /// Whether other experts are hot than before; when a plan that follows them was looked for last.
    pub(super) heated: bool,
    pub(super) weighed: Option<Instant>,
    /// When to try again what failed.
    pub(super) retry: Option<Instant>,
    pub(super) retry_wait: Duration,
    /// Workers hold pieces of a plan that was given up: only an activation rids them of it.
    pub(super) dregs: bool,
    /// The pending plan is not in the mode that is wanted.
    pub(super) makeshift: bool,
    pub(super) penalties: Penalties,
    /// What was noted last, so that it is noted once.
    pub(super) misfit: Option<Misfit>,
    pub(super) no_plan: bool,
    /// Where nothing could be had at once.
    pub(super) no_rough: Option<Circumstances>,
    pub(super) joins: u64,
    /// When it was last told anything.
    told: Option<Instant>,
    out: Vec<Action>,
}

/// The last plan that was activated.
pub(super) struct Active {
    pub epoch: Epoch,
    pub placement: Arc<Placement>,
    /// Those of it that are gone: it is not whole any more.
    pub lost: BTreeSet<WorkerId>,
    /// What it means; worked out when somebody looks.
    pub looked: OnceCell<Looked>,
    /// Epochs up to it that wait for what is below them to be retired, and when that is done in any case.
    pub retire: Vec<(Epoch, Instant)>,
}

/// What a placement means.
pub(super) struct Looked {
    /// For each of its workers.
    pub parts: Vec<Held>,
    /// Of every expert, at least.
    pub copies: u32,
    /// Beyond those, and their bytes.
    pub replicas: (u64, u64),
    /// Where it is known what is hit.
    pub balance: Option<Balance>,
}

/// A plan that is being prepared.
pub(super) struct Pending {
    pub epoch: Epoch,
    pub placement: Arc<Placement>,
    /// Those who have not answered.
    pub open: BTreeSet<WorkerId>,
    /// What was wanted, where it is that.
    pub wanted: Option<Spread>,
}

impl Roster {
    pub fn new(policy: Policy, inventory: ExpertInventory) -> Roster {
        let (retry_wait, fallback) = (policy.retry_wait, Spread::of(&policy));
        Roster {
            policy,
            fallback,
            inventory,
            members: BTreeMap::new(),
            packed: Vec::new(),
            popularity: None,
            epoch: Epoch(0),
            active: None,
            pending: None,
            first_joined: None,
            changed: false,
            searches: Running::default(),
            heated: false,
            weighed: None,
            retry: None,
            retry_wait,
            dregs: false,
            makeshift: false,
            penalties: Penalties::default(),
            misfit: None,
            no_plan: false,
            no_rough: None,
            joins: 0,
            told: None,
            out: Vec::new(),
        }
    }

    /// Something happened. What concerns an unknown worker or another epoch is passed over.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        self.excuse(now);
        match event {
            Event::Joined(about) => self.join(about, now),
            Event::Heard { worker, calls, held_bytes } => {
                self.member(worker, |member| member.heard(calls, held_bytes, now));
            }
            Event::Waiting { worker, waiting } => {
                self.member(worker, |member| member.waiting(waiting, now));
            }
            Event::Loading { worker, epoch, bytes, total } => {
                if self.pending.as_ref().is_some_and(|pending| pending.epoch == epoch) {
                    let progress = Progress { epoch, bytes, total };
                    self.member(worker, |member| member.loading(progress, now));
                }
            }
            Event::Prepared { worker, epoch } => self.prepared(worker, epoch, now),
            Event::PrepareFailed { worker, epoch, detail } => {
                if self.awaits(worker, epoch) {
                    self.failed(worker, &detail, now);
                }
            }
            Event::Lost { worker, why } => self.lose(worker, &why, now),
            Event::Leaving { worker } => {
                self.changed |= self.members.contains_key(&worker);
                self.member(worker, |member| member.leaving = true);
            }
            Event::Switched { epoch } => {
                self.retire(|at, _| at <= epoch);
            }
            Event::Popularity(hits) => {
                self.popularity = Some(hits);
                self.active.iter_mut().for_each(|active| active.looked = OnceCell::new());
                self.heated = self.policy.replica_bytes > 0;
            }
            Event::Rebalance(wish) => {
                if let Err(why) = self.wish(wish, now) {
                    self.note(Note::Refused(why));
                }
            }
        }
        self.settled(now)
    }

    /// Time has passed: who is silent, stuck, or prepares for too long, is found here. Wants to be called several times in
    /// `silence_max`.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        self.excuse(now);
        for (worker, why) in self.overdue(now) {
            self.dismiss(worker, why, true, now);
        }
        while let Some(worker) = self.late(now) {
            let why = format!("no progress in preparing for {:?}", self.policy.prepare_max);
            self.failed(worker, &why, now);
        }
        self.retire(|_, at| at <= now);
        self.changed |= self.penalties.ended(now);
        self.settled(now)
    }

    /// What is to be done now.
    pub(super) fn settled(&mut self, now: Instant) -> Vec<Action> {
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// Whoever feeds the roster was late itself: what workers said meanwhile is still to come, so that nobody is silent for it.
    pub(super) fn excuse(&mut self, now: Instant) {
        let gap = self.told.map_or(Duration::ZERO, |told| now.saturating_duration_since(told));
        self.told = Some(now);
        if gap > self.policy.silence_max / 2 {
            self.deaf(gap);
        }
    }

    /// For so long nobody could be heard, for a reason that is no worker's: it does not count.
    pub fn deaf(&mut self, gap: Duration) {
        self.members.values_mut().for_each(|member| member.excuse(gap));
    }

    pub(super) fn note(&mut self, note: Note) {
        self.out.push(Action::Note(note));
    }

    pub(super) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    /// Whether the active plan has all of its workers.
    pub(super) fn whole(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.lost.is_empty())
    }

    fn member(&mut self, worker: WorkerId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.get_mut(&worker) {
            change(member);
        }
    }

    fn join(&mut self, about: WorkerAbout, now: Instant) {
        let (worker, name) = (about.id, about.name.clone());
        self.lose(worker, "it joined again", now);
        self.joins += 1;
        // Whoever comes again and again after it has failed does not hurry anybody.
        if !self.penalties.leaves_out(&Who::of(&about)) {
            self.retry = None;
        }
        self.packed.retain(|(there, _)| self.members.contains_key(there));
        if !about.packed.slices.is_empty() {
            self.packed.push((worker, about.packed.clone()));
        }
        self.members.insert(worker, Member::new(about, self.joins, now));
        self.first_joined.get_or_insert(now);
        self.changed = true;
        self.note(Note::Joined { worker, name });
    }

    fn prepared(&mut self, worker: WorkerId, epoch: Epoch, now: Instant) {
        if !self.awaits(worker, epoch) {
            return;
        }
        self.member(worker, |member| member.loading = None);
        if let Some(member) = self.members.get(&worker) {
            self.penalties.forgive(&Who::of(&member.about));
        }
        let Some(pending) = &mut self.pending else { return };
        pending.open.remove(&worker);
        if pending.open.is_empty() {
            self.activate(now);
        }
    }

    /// Whether a plan waits for what a worker says of it.
    pub fn awaits(&self, worker: WorkerId, epoch: Epoch) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.epoch == epoch && pending.open.contains(&worker))
    }

    fn activate(&mut self, now: Instant) {
        let Some(Pending { epoch, placement, wanted, .. }) = self.pending.take() else { return };
        self.fallback = wanted.unwrap_or(self.fallback);
        self.act(Action::Activate { epoch, placement: placement.clone() });
        // After a death there may be something better than what could be had quickly.
        self.changed |= !self.whole() || std::mem::take(&mut self.makeshift);
        // What older ones replaced is still retired when its time comes, however many plans follow.
        let mut retire = self.active.take().map_or_else(Vec::new, |active| active.retire);
        retire.push((epoch, now + self.policy.retire_max));
        self.active =
            Some(Active { epoch, placement, lost: BTreeSet::new(), looked: OnceCell::new(), retire });
        self.dregs = false;
        self.retry = None;
        self.retry_wait = self.policy.retry_wait;
        self.no_plan = false;
    }

    /// What is below the epochs that are due is over.
    fn retire(&mut self, due: impl Fn(Epoch, Instant) -> bool) {
        let Some(active) = &mut self.active else { return };
        let before =
            active.retire.iter().filter(|(epoch, at)| due(*epoch, *at)).map(|(epoch, _)| *epoch).max();
        if let Some(before) = before {
            active.retire.retain(|(epoch, _)| *epoch > before);
            self.act(Action::Retire { before });
        }
    }

    /// A worker could not prepare. What is active goes on without the plan if it is whole; else without the worker.
    fn failed(&mut self, worker: WorkerId, why: &str, now: Instant) {
        let Some(about) = self.members.get(&worker).map(|at| &at.about) else { return };
        let serves = |active: &Active| active.placement.workers.contains(&worker);
        if !self.whole() || !self.active.as_ref().is_some_and(serves) {
            return self.dismiss(worker, format!("it could not prepare: {why}"), true, now);
        }
        let (who, name) = (Who::of(about), about.name.clone());
        let (failures, wait) = self.penalties.failed(who, true, self.policy.retry_wait, now);
        self.give_up(&format!("{name}: {why}"));
        if failures > 1 {
            // The others do without it, if they can, rather than wait for it.
            self.changed = true;
            self.retry = None;
            self.note(Note::LeftOut { name, failures, wait });
            return;
        }
        self.retry = Some(now + self.retry_wait);
        self.retry_wait = (self.retry_wait * 2).min(self.policy.retry_wait * RETRY_GROWTH_MAX);
    }

    fn dismiss(&mut self, worker: WorkerId, why: String, again: bool, now: Instant) {
        self.lose(worker, &why, now);
        self.act(Action::Dismiss { worker, why, again });
    }

    fn lose(&mut self, worker: WorkerId, why: &str, now: Instant) {
        let Some(member) = self.members.remove(&worker) else { return };
        let (who, name) = (Who::of(&member.about), member.about.name);
        self.note(Note::Lost { worker, name: name.clone(), why: why.to_string() });
        // Whatever it was, what it should load may have been the reason.
        if self.pending.as_ref().is_some_and(|pending| pending.open.contains(&worker)) {
            let (failures, wait) = self.penalties.failed(who, false, self.policy.retry_wait, now);
            self.note(Note::LeftOut { name, failures, wait });
        }
        if let Some(active) = &mut self.active
            && active.placement.workers.contains(&worker)
        {
            active.lost.insert(worker);
        }
        if self.pending.as_ref().is_some_and(|pending| pending.placement.workers.contains(&worker)) {
            self.give_up(&format!("worker {worker} is gone"));
        }
        self.changed = true;
        self.retry = None;
        if self.members.is_empty() {
            self.first_joined = None;
        }
    }

    pub(super) fn give_up(&mut self, why: &str) {
        let Some(pending) = self.pending.take() else { return };
        self.dregs = true;
        self.members.values_mut().for_each(|member| member.loading = None);
        // Unless somebody wishes something else already.
        let is_wanted = pending.wanted == Some(Spread::of(&self.policy));
        let withdrawn = is_wanted && self.withdraw();
        self.note(Note::GaveUp { epoch: pending.epoch, why: why.to_string(), withdrawn });
    }

    /// Who is silent or stuck, and why that is said.
    fn overdue(&self, now: Instant) -> Vec<(WorkerId, String)> {
        let Policy { silence_max, stuck_max, .. } = self.policy;
        let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) > limit;
        // A prompt's call may take long, and the next one longer.
        let slowest = self.members.values().map(|member| member.slowest).max().unwrap_or_default();
        let stuck_max = stuck_max + slowest * STUCK_CALLS;
        let why = |member: &Member| {
            if over(member.heard, silence_max) {
                return Some(format!("nothing heard for {silence_max:?}"));
            }
            let stuck = member.waiting.is_some_and(|since| over(since, stuck_max));
            stuck.then(|| format!("stuck: no call computed for {stuck_max:?}"))
        };
        self.members.iter().filter_map(|(&worker, member)| Some((worker, why(member)?))).collect()
    }

    /// Somebody who has prepared for too long.
    fn late(&self, now: Instant) -> Option<WorkerId> {
        let late = |worker: &WorkerId| {
            let moved = self.members.get(worker).map(|member| member.moved);
            moved.is_some_and(|at| now.saturating_duration_since(at) > self.policy.prepare_max)
        };
        self.pending.as_ref()?.open.iter().copied().find(late)
    }
}

/// A worker may take so many times as long for a call as the slowest so far.
const STUCK_CALLS: u32 = 4;
/// The wait before another attempt grows to so many times its first length.
const RETRY_GROWTH_MAX: u32 = 16;
