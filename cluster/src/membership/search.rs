//! The next plan, looked for by others. That takes long for a large model, and whoever hears of deaths must not wait for it: so the
//! roster takes down what is to be found out (`Search`), whoever has the time finds it (`Search::found`), and the roster goes on
//! with what was found (`Roster::found`), unless something has happened meanwhile.

use std::collections::BTreeSet;
use std::time::Instant;

use gaterail_proto::{Epoch, Placement, WorkerId};

use super::case::{Case, has_room};
use super::penalty::Who;
use super::roster::Roster;
use super::wish::Spread;
use super::{Action, Note};
use crate::placement::{Misfit, Mode, Seat, Wanted, balance, fit, held, speeds};

/// What is to be found out, with all that it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// Which of all it is.
    pub(super) number: u64,
    pub(super) what: What,
    /// Beside what is active, where that is served meanwhile.
    pub(super) case: Case,
    /// What was the case when it was asked.
    pub(super) asked: Circumstances,
    /// How many had joined by then.
    pub(super) joins: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// All are served: is there anything better?
    Better,
    /// There is no plan, or somebody of it is gone; with these if there is no other way.
    Rest { seats: Vec<Seat> },
    /// Other experts are hot: a plan that follows them, if it makes the slowest faster by so much.
    Hot { gain_min: f64 },
}

/// What must not have changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Circumstances {
    pub epoch: Option<Epoch>,
    pub lost: BTreeSet<WorkerId>,
    /// All who are there, and those of them that can be planned with.
    pub all: Vec<Seat>,
    pub seats: Vec<Seat>,
    pub spread: Spread,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Found {
    search: Search,
    pub(super) plan: Plan,
    /// Why it is not as wanted.
    misfit: Option<Misfit>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// As wanted, or with as many copies as there is room for.
    Best(Placement),
    /// In another way, until there is a better one.
    Makeshift(Placement),
    Nothing,
}

impl Search {
    /// Finds it. Takes tens of milliseconds for large models.
    pub fn found(self) -> Found {
        let (plan, misfit) = match &self.what {
            What::Hot { gain_min } => (self.hot(*gain_min).map_or(Plan::Nothing, Plan::Best), None),
            What::Better | What::Rest { .. } => match self.case.best() {
                (Some(best), misfit) => (Plan::Best(best), misfit),
                (None, misfit) => (self.otherwise().map_or(Plan::Nothing, Plan::Makeshift), misfit),
            },
        };
        Found { search: self, plan, misfit }
    }

    /// Who may be in what is found.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        let rest = match &self.what {
            What::Rest { seats } => &seats[..],
            What::Better | What::Hot { .. } => &[],
        };
        rest.iter().chain(&self.case.seats).map(|seat| seat.worker)
    }

    /// The answer of whoever could not look.
    pub fn nothing(self) -> Found {
        Found { search: self, plan: Plan::Nothing, misfit: None }
    }

    fn hot(&self, gain_min: f64) -> Option<Placement> {
        let (case, all) = (&self.case, &self.asked.all);
        let (current, hits) = (case.current.as_deref()?, case.popularity.as_ref()?);
        let placement = fit(&case.wanted()).ok()?;
        let slowest = |placement: &Placement| {
            let held_by = Seat::of(&placement.workers, all);
            balance(&case.inventory, placement, hits, &speeds(&held_by)).slowest
        };
        let memory =
            |worker| all.iter().find(|seat| seat.worker == worker).map_or(0, |seat| seat.memory_bytes);
        let gains = slowest(&placement) < slowest(current) * (1.0 - gain_min);
        (gains && has_room(&case.inventory, Some(current), &placement, memory)).then_some(placement)
    }

    /// What is wanted cannot be.
    fn otherwise(&self) -> Option<Placement> {
        let (case, mode) = (&self.case, self.case.mode);
        let one = |mode| Wanted { mode, copies: 1, replica_bytes: 0, ..case.wanted() };
        match &self.what {
            // A mode that takes in who came, as a step on the way.
            What::Better => {
                let there =
                    |seat: &Seat| case.current.as_ref().is_some_and(|at| at.workers.contains(&seat.worker));
                if case.seats.iter().all(there) {
                    return None;
                }
                let mut modes = [Mode::Tp, Mode::Ep].into_iter().filter(|&other| other != mode);
                modes.find_map(|mode| fit(&one(mode)).ok())
            }
            // Anything that has every expert: in another mode, and with those who would like to leave.
            What::Rest { seats } => [mode, Mode::Ep, Mode::Tp]
                .into_iter()
                .find_map(|mode| fit(&Wanted { seats, ..one(mode) }).ok()),
            What::Hot { .. } => None,
        }
    }
}

impl Case {
    /// As wanted, or with as many copies as there is room for; and why not as wanted.
    fn best(&self) -> (Option<Placement>, Option<Misfit>) {
        if self.seats.is_empty() {
            return (None, None);
        }
        let wanted = self.wanted();
        match fit(&wanted) {
            Ok(placement) => (Some(placement), None),
            Err(misfit) => {
                let fewer = |copies| fit(&Wanted { copies, ..wanted }).ok();
                ((1..wanted.copies).rev().find_map(fewer), Some(misfit))
            }
        }
    }
}

impl Roster {
    pub(super) fn circumstances(&self) -> Circumstances {
        Circumstances {
            epoch: self.active.as_ref().map(|active| active.epoch),
            lost: self.active.as_ref().map_or_else(BTreeSet::new, |active| active.lost.clone()),
            all: self.seats(true),
            seats: self.seats(false),
            spread: Spread::of(&self.policy),
        }
    }

    /// Asks for a plan, unless one is being looked for that may do as well; whether it does.
    pub(super) fn search(&mut self, what: What) -> bool {
        let asked = self.circumstances();
        let recovers_on = match &what {
            What::Rest { seats } => Some(seats.iter().chain(&asked.seats).map(|seat| seat.worker).collect()),
            What::Better | What::Hot { .. } => None,
        };
        let members = &self.members;
        let Some(number) = self.searches.begin(recovers_on, |worker| members.contains_key(worker)) else {
            return false;
        };
        let case = match &what {
            What::Rest { .. } => self.case(&asked.seats, false),
            What::Hot { .. } => self.case(&asked.seats, true),
            What::Better => self.case(&self.steady(&asked.seats), true),
        };
        self.act(Action::Search(Box::new(Search { number, what, case, asked, joins: self.joins })));
        true
    }

    /// Those of them who stay while others come and go faster than a search takes; all of them where nobody does.
    pub(super) fn steady(&self, seats: &[Seat]) -> Vec<Seat> {
        let Some(last) = self.searches.late() else { return seats.to_vec() };
        let stays = |seat: &&Seat| self.members.get(&seat.worker).is_some_and(|at| at.joined <= last);
        let steady: Vec<Seat> = seats.iter().filter(stays).copied().collect();
        if steady.is_empty() { seats.to_vec() } else { steady }
    }

    /// What was looked for is followed, unless something has happened meanwhile: then it is thrown away, and looked for anew. Where
    /// things change faster than a search takes, it is followed all the same, if all whom it needs are there.
    pub fn found(&mut self, found: Found, now: Instant) -> Vec<Action> {
        self.excuse(now);
        let Found { search: Search { number, what, case, asked, joins }, plan, misfit } = found;
        if !self.searches.ended(number) {
            // Another one is waited for instead; or was, and there is a plan.
            self.searches.waste(number, self.joins);
            return self.settled(now);
        }
        let is_busy = self.pending.is_some() || self.retry.is_some();
        let (is_stale, is_part) = (self.circumstances() != asked, case.seats != asked.seats);
        if is_busy || is_stale || is_part {
            match what {
                What::Hot { .. } => self.heated = true,
                What::Better | What::Rest { .. } => self.changed = true,
            }
            if !is_busy && !is_stale {
                // It was for a part of those who are there, and it is calm again.
                self.searches.settled();
            } else if !is_busy {
                if self.searches.late().is_none() {
                    self.searches.waste(number, self.joins);
                }
                if self.searches.late().is_some() && !self.follow_late(&what, plan, &asked, now) {
                    self.searches.steady_since(joins);
                }
            }
            return self.settled(now);
        }
        // There was time enough to find it, whatever comes of it.
        self.searches.settled();
        if !matches!(what, What::Hot { .. }) && !case.seats.is_empty() {
            // What would fit takes long to find, so that others do it; and is said once.
            if misfit.is_some() && self.misfit != misfit {
                self.act(Action::Explain(Box::new(case)));
            }
            self.misfit = misfit;
        }
        match what {
            What::Better => self.better(plan, &asked.seats, now),
            What::Rest { .. } => self.rest(plan, now),
            What::Hot { .. } => {
                if let Plan::Best(placement) = plan {
                    self.prepare(placement, Some(asked.spread), "other experts are hot", now);
                }
            }
        }
        self.settled(now)
    }

    /// What was found for others than those who are there, if it can still be: what is better for these is looked for after it.
    /// Whether it can.
    fn follow_late(&mut self, what: &What, plan: Plan, asked: &Circumstances, now: Instant) -> bool {
        let (Plan::Best(placement) | Plan::Makeshift(placement)) = plan else { return false };
        let recovers = matches!(what, What::Rest { .. });
        let active = self.active.as_ref().map(|active| active.epoch);
        // For another plan in force it may be no better.
        if active != asked.epoch || recovers == self.whole() || !self.can_hold(&placement) {
            return false;
        }
        let why = "what was looked for meanwhile, while workers come and go";
        let seats = self.seats(false);
        if recovers {
            self.prepare_in_need(placement, None, why, now);
            return true;
        }
        let leaves = |worker| self.members.get(worker).is_some_and(|member| member.leaving);
        let is_better = asked.spread == Spread::of(&self.policy)
            && self.has_room(&placement)
            && !self.is_poorer(&placement, &seats)
            // It would be planned without them at once.
            && !placement.workers.iter().any(leaves)
            && self.active.as_ref().is_some_and(|active| *active.placement != placement);
        if is_better {
            self.prepare(placement, None, why, now);
        }
        is_better
    }

    /// Whether all workers of a placement are there and can be planned with, and have the memory for it.
    fn can_hold(&self, placement: &Placement) -> bool {
        let is_fit = |worker: &WorkerId| {
            let member = self.members.get(worker);
            member.is_some_and(|member| !self.penalties.is_hopeless(&Who::of(&member.about)))
        };
        let memory = |worker| self.members.get(worker).map_or(0, |at| at.about.machine.memory_bytes);
        let parts = held(&self.inventory, placement, None);
        let workers = || placement.workers.iter();
        workers().all(is_fit) && workers().zip(parts).all(|(worker, part)| part.bytes <= memory(worker))
    }

    /// The active plan is whole, and this is what could be instead.
    pub(super) fn better(&mut self, plan: Plan, seats: &[Seat], now: Instant) {
        let wanted = matches!(plan, Plan::Best(_)).then(|| Spread::of(&self.policy));
        self.makeshift = matches!(plan, Plan::Makeshift(_));
        let (Plan::Best(placement) | Plan::Makeshift(placement)) = plan else {
            if self.withdraw() {
                self.note(Note::Withdrawn);
            }
            return;
        };
        if self.is_poorer(&placement, seats) {
            return;
        }
        let same = self.active.as_ref().is_some_and(|active| *active.placement == placement);
        if !same || self.dregs {
            self.prepare(placement, wanted, "more or fewer workers, or another balance", now);
        } else {
            self.fallback = wanted.unwrap_or(self.fallback);
        }
    }

    /// There is no plan, or somebody of it is gone, and this is what can be.
    fn rest(&mut self, plan: Plan, now: Instant) {
        let why = if self.active.is_some() { "somebody is gone" } else { "the first" };
        let wanted = matches!(plan, Plan::Best(_)).then(|| Spread::of(&self.policy));
        match plan {
            Plan::Best(placement) | Plan::Makeshift(placement) => {
                self.prepare_in_need(placement, wanted, why, now);
            }
            Plan::Nothing if !std::mem::replace(&mut self.no_plan, true) => {
                let why = format!("{} workers do not suffice", self.members.len());
                self.note(Note::NoPlan { why });
            }
            Plan::Nothing => {}
        }
    }
}
