//! What an operator wants while others are served: followed if it fits, and refused before anything is loaded if not.

use std::time::Instant;

use gaterail_proto::Epoch;

use super::roster::Roster;
use super::{Action, Policy, Refused, Wish};
use crate::placement::{Misfit, Wanted, fit, place};

impl Roster {
    /// Follows a wish from now on, or says why not. With the epoch that is being prepared for it; `None` where all is as wished
    /// already, or has to wait: for what is being prepared, for somebody who is gone.
    pub fn rebalance(&mut self, wish: Wish, now: Instant) -> (Result<Option<Epoch>, Refused>, Vec<Action>) {
        self.excuse(now);
        let wished = self.wish(wish);
        let actions = self.settled(now);
        let coming = self.pending.as_ref().map(|pending| pending.epoch);
        (wished.map(|()| coming), actions)
    }

    pub(super) fn wish(&mut self, wish: Wish) -> Result<(), Refused> {
        let policy = Policy {
            mode: wish.mode.unwrap_or(self.policy.mode),
            copies: wish.copies.unwrap_or(self.policy.copies),
            replica_bytes: wish.replica_bytes.unwrap_or(self.policy.replica_bytes),
            ..self.policy.clone()
        };
        self.check(&policy)?;
        self.policy = policy;
        self.changed = true;
        self.weighed = None;
        Ok(())
    }

    /// Whether something can be had with those who are there.
    fn check(&self, policy: &Policy) -> Result<(), Refused> {
        let seats = self.seats(false);
        if seats.is_empty() {
            return Ok(());
        }
        if let Some(wanted) = policy.mode.workers().filter(|wanted| *wanted > seats.len()) {
            return Err(Refused::Workers { mode: policy.mode, wanted, there: seats.len() });
        }
        let wanted = Wanted {
            mode: policy.mode,
            copies: policy.copies,
            replica_bytes: policy.replica_bytes,
            // While others are served nobody may need more memory than it has.
            beside: self.whole(),
            ..self.wanted(&seats)
        };
        match fit(&wanted) {
            // Runs that differ from those that are held are loaded anew, whatever they have in common.
            Ok(placement) if self.whole() && !self.has_room(&placement) => {
                Err(Refused::Beside("some worker would hold more than its memory".to_string()))
            }
            Ok(_) => Ok(()),
            Err(Misfit { what, .. }) if fit(&Wanted { beside: false, ..wanted }).is_ok() => {
                Err(Refused::Beside(what))
            }
            Err(_) => place(&wanted).map(drop).map_err(Refused::from),
        }
    }
}
