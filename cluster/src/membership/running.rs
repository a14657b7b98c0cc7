//! Which searches run, and which of them is waited for.
//!
//! One is waited for at a time. What recovery needs does not wait for another one to end: it is looked for beside it, and what that
//! one finds is thrown away. Nobody can stop a search that runs, so that there is a limit to them.

use std::collections::BTreeSet;

use gaterail_proto::WorkerId;

/// Searches that run beside each other, those included for which nobody waits any more.
pub const SEARCHES_MAX: usize = 3;
/// Results thrown away, one after another, before what comes is made do with.
const WASTED_MAX: u32 = 2;

#[derive(Default)]
pub(super) struct Running {
    /// By number.
    all: BTreeSet<u64>,
    last: u64,
    awaited: Option<Awaited>,
    /// Results thrown away that were asked for since a plan was made last.
    wasted: u32,
    /// The last that was asked for before that.
    settled: u64,
    /// Who had joined when the first of them was thrown away, or when one was asked for that was of no use: the number of the last.
    steady: Option<u64>,
}

struct Awaited {
    number: u64,
    /// Who may be in what is found, if that is to recover.
    recovers_on: Option<BTreeSet<WorkerId>>,
}

impl Running {
    /// Whether a result is waited for.
    pub fn any(&self) -> bool {
        self.awaited.is_some()
    }

    /// Begins a search, if it may begin now; its number. `recovers_on` are the workers of one for recovery, and `there` says who is
    /// there.
    pub fn begin(
        &mut self,
        recovers_on: Option<BTreeSet<WorkerId>>,
        there: impl Fn(&WorkerId) -> bool,
    ) -> Option<u64> {
        let is_free = match (&self.awaited, &recovers_on) {
            (None, _) => true,
            // With somebody who is gone a plan is none. One that lacks who came may still do.
            // One from before the last plan is for what was.
            (Some(Awaited { number, recovers_on: Some(workers) }), Some(_)) => {
                *number <= self.settled || !workers.iter().all(there)
            }
            (Some(_), recovers) => recovers.is_some(),
        };
        if !is_free || self.all.len() >= SEARCHES_MAX {
            return None;
        }
        self.last += 1;
        self.all.insert(self.last);
        self.awaited = Some(Awaited { number: self.last, recovers_on });
        Some(self.last)
    }

    /// A search has ended: whether it was waited for.
    pub fn ended(&mut self, number: u64) -> bool {
        self.all.remove(&number);
        let is_awaited = self.awaited.as_ref().is_some_and(|awaited| awaited.number == number);
        if is_awaited {
            self.awaited = None;
        }
        is_awaited
    }

    /// What was found is of no use any more; so many workers have joined so far.
    pub fn waste(&mut self, number: u64, joins: u64) {
        if number > self.settled {
            self.wasted = self.wasted.saturating_add(1);
            self.steady.get_or_insert(joins);
        }
    }

    /// While a search went on so many had joined before it: who of them is still there has been for as long as it took.
    pub fn steady_since(&mut self, joins: u64) {
        self.steady = self.steady.max(Some(joins));
    }

    /// A plan was made, or there is time enough to find one.
    pub fn settled(&mut self) {
        (self.wasted, self.settled, self.steady) = (0, self.last, None);
    }

    /// Where so much was thrown away that things change faster than a search takes: who joined up to this one has been there for
    /// longer than that.
    pub fn late(&self) -> Option<u64> {
        self.steady.filter(|_| self.wasted >= WASTED_MAX)
    }
}
