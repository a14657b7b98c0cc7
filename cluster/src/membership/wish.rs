//! What an operator wants while others are served: followed if it fits, and refused before anything is loaded if not.
//!
//! Whether it fits, and what would instead, takes long to find for a large model. So the roster only takes down what is to be
//! found out (`consider`), whoever has time finds it (`Considered::check`), and the roster follows what was found (`rebalance`).

use std::time::Instant;

use gaterail_proto::{Epoch, Placement};

use super::case::{Case, has_room};
use super::roster::Roster;
use super::search::Plan;
use super::{Action, Policy, Refused, Wish};
use crate::placement::{Misfit, Mode, Seat, Wanted, fit};

/// How experts are to be spread: what a wish may change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub mode: Mode,
    pub copies: u32,
    pub replica_bytes: u64,
}

impl Spread {
    pub fn of(policy: &Policy) -> Spread {
        Spread { mode: policy.mode, copies: policy.copies, replica_bytes: policy.replica_bytes }
    }
}

/// A wish, and who was there to follow it.
#[derive(Clone, Debug)]
pub struct Considered {
    wish: Wish,
    case: Case,
    /// The plan in force.
    epoch: Option<Epoch>,
}

/// A wish that fits.
#[derive(Clone, Debug)]
#[must_use]
pub struct Fitting {
    wish: Wish,
    seats: Vec<Seat>,
    epoch: Option<Epoch>,
    /// How, where it was looked for beside what is served.
    placement: Option<Placement>,
}

/// A wish that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The plan that is being prepared for it; `None` where all is as wished already, or has to wait: for what is being prepared,
    /// for somebody who is gone.
    pub epoch: Option<Epoch>,
    /// The last plan before the wish, whatever became of it: those for the wish are above.
    pub planned: Epoch,
}

impl Considered {
    /// Whether it can be had with those who are there, or why not, with what could. Takes seconds for large models.
    pub fn check(self) -> Result<Fitting, Refused> {
        let Considered { wish, case, epoch } = self;
        let placement = match case.seats.is_empty() {
            true => None,
            false => case.check()?.filter(|_| case.beside),
        };
        Ok(Fitting { wish, seats: case.seats, epoch, placement })
    }
}

impl Case {
    fn check(&self) -> Result<Option<Placement>, Refused> {
        let wanted = self.wanted();
        let memory = |worker| {
            let seat = self.seats.iter().find(|seat| seat.worker == worker);
            seat.map_or(0, |seat| seat.memory_bytes)
        };
        match fit(&wanted) {
            // Runs that differ from those that are held are loaded anew, whatever they have in common.
            Ok(placement)
                if self.beside && !has_room(&self.inventory, self.current.as_deref(), &placement, memory) =>
            {
                Err(Refused::Beside("some worker would hold more than its memory".to_string()))
            }
            Ok(placement) => Ok(Some(placement)),
            Err(Misfit { what, .. }) if fit(&Wanted { beside: false, ..wanted }).is_ok() => {
                Err(Refused::Beside(what))
            }
            Err(_) => self.misfit().map_or(Ok(None), |misfit| Err(misfit.into())),
        }
    }
}

impl Roster {
    /// What there is to find out about a wish; refused where that shows at once.
    pub fn consider(&self, wish: Wish) -> Result<Considered, Refused> {
        if self.members.is_empty() {
            return Err(Refused::Nobody);
        }
        let seats = self.seats(false);
        let mode = wish.mode.unwrap_or(self.policy.mode);
        if let Some(wanted) = mode.workers().filter(|wanted| *wanted > seats.len()) {
            return Err(Refused::Workers { mode, wanted, there: seats.len() });
        }
        let case = Case {
            mode,
            copies: wish.copies.unwrap_or(self.policy.copies),
            replica_bytes: wish.replica_bytes.unwrap_or(self.policy.replica_bytes),
            // While others are served nobody may need more memory than it has.
            ..self.case(&seats, self.whole())
        };
        Ok(Considered { wish, case, epoch: self.active.as_ref().map(|active| active.epoch) })
    }

    /// Follows a wish from now on, if all is as it was when it was considered.
    pub fn rebalance(&mut self, fitting: Fitting, now: Instant) -> (Result<Begun, Refused>, Vec<Action>) {
        self.excuse(now);
        let planned = self.epoch;
        let followed = self.follow_wish(fitting, now);
        let actions = self.settled(now);
        // What was being prepared before is for somebody else.
        let coming = self.pending.as_ref().map(|pending| pending.epoch).filter(|epoch| *epoch > planned);
        (followed.map(|()| Begun { epoch: coming, planned }), actions)
    }

    pub(super) fn wish(&mut self, wish: Wish, now: Instant) -> Result<(), Refused> {
        let fitting = self.consider(wish)?.check()?;
        self.follow_wish(fitting, now)
    }

    fn follow_wish(&mut self, fitting: Fitting, now: Instant) -> Result<(), Refused> {
        let Fitting { wish, seats, epoch, placement } = fitting;
        if self.active.as_ref().map(|active| active.epoch) != epoch || self.seats(false) != seats {
            return Err(Refused::Changed);
        }
        self.policy.mode = wish.mode.unwrap_or(self.policy.mode);
        self.policy.copies = wish.copies.unwrap_or(self.policy.copies);
        self.policy.replica_bytes = wish.replica_bytes.unwrap_or(self.policy.replica_bytes);
        self.changed = true;
        self.weighed = None;
        // What failed before was another plan.
        self.retry = None;
        self.retry_wait = self.policy.retry_wait;
        let is_free = self.pending.is_none() && self.active.as_ref().is_some_and(|at| at.retire.is_empty());
        if let Some(placement) = placement.filter(|_| is_free && self.whole()) {
            // It has been looked for already.
            self.changed = false;
            self.misfit = None;
            self.better(Plan::Best(placement), &seats, now);
        }
        Ok(())
    }

    /// What a wish wants cannot be had: what was in force before is wanted again. `false` where there is no such wish.
    pub(super) fn withdraw(&mut self) -> bool {
        let Spread { mode, copies, replica_bytes } = self.fallback;
        let differs = Spread::of(&self.policy) != self.fallback;
        (self.policy.mode, self.policy.copies, self.policy.replica_bytes) = (mode, copies, replica_bytes);
        self.changed |= differs;
        differs
    }
}
