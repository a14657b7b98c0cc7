//! The next plan, looked for by others. That takes long for a large model, and whoever hears of deaths must not wait for it: so the
//! roster takes down what is to be found out (`Search`), whoever has the time finds it (`Search::found`), and the roster goes on
//! with what was found (`Roster::found`), unless something has happened meanwhile.

use std::collections::BTreeSet;
use std::time::Instant;

use gaterail_proto::{Epoch, Placement, WorkerId};

use super::case::{Case, has_room};
use super::roster::Roster;
use super::wish::Spread;
use super::{Action, Note};
use crate::placement::{Misfit, Mode, Seat, Wanted, balance, fit, speeds};

/// What is to be found out, with all that it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    pub(super) what: What,
    /// Beside what is active, where that is served meanwhile.
    pub(super) case: Case,
    /// What was the case when it was asked.
    pub(super) asked: Circumstances,
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
    fn circumstances(&self) -> Circumstances {
        Circumstances {
            epoch: self.active.as_ref().map(|active| active.epoch),
            lost: self.active.as_ref().map_or_else(BTreeSet::new, |active| active.lost.clone()),
            all: self.seats(true),
            seats: self.seats(false),
            spread: Spread::of(&self.policy),
        }
    }

    /// Asks for a plan, unless one is being looked for; whether it does.
    pub(super) fn search(&mut self, what: What) -> bool {
        if self.searching {
            return false;
        }
        self.searching = true;
        let asked = self.circumstances();
        let case = self.case(&asked.seats, !matches!(what, What::Rest { .. }));
        self.act(Action::Search(Box::new(Search { what, case, asked })));
        true
    }

    /// What was looked for is followed, unless something has happened meanwhile: then it is thrown away, and looked for anew.
    pub fn found(&mut self, found: Found, now: Instant) -> Vec<Action> {
        self.excuse(now);
        self.searching = false;
        let Found { search: Search { what, case, asked }, plan, misfit } = found;
        if self.pending.is_some() || self.retry.is_some() || self.circumstances() != asked {
            match what {
                What::Hot { .. } => self.heated = true,
                What::Better | What::Rest { .. } => self.changed = true,
            }
            return self.settled(now);
        }
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
                let has_room = self.has_room(&placement);
                self.prepare(placement, wanted, why, now);
                if !has_room {
                    self.make_room();
                }
            }
            Plan::Nothing if !std::mem::replace(&mut self.no_plan, true) => {
                let why = format!("{} workers do not suffice", self.members.len());
                self.note(Note::NoPlan { why });
            }
            Plan::Nothing => {}
        }
    }
}
