//! Workers that cannot load what they should: left out for a while, and for longer after each failure, unless they are needed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::WorkerAbout;

/// The wait grows to so many times its first length.
const GROWTH_MAX: u32 = 16;
/// Workers that are remembered; the ones whose time is over first are forgotten first.
const REMEMBERED_MAX: usize = 256;

/// A worker whatever process it is: its id is another one after every start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    host: String,
    name: String,
}

impl Who {
    pub fn of(about: &WorkerAbout) -> Who {
        Who { host: about.host.clone(), name: about.name.clone() }
    }
}

/// Who has failed: joining again, or as another process, does not make it good; preparing something does.
#[derive(Default)]
pub(super) struct Penalties(BTreeMap<Who, Penalty>);

/// One worker's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Penalty {
    pub failures: u32,
    pub until: Instant,
    /// It serves what it holds: planned with until it has failed twice.
    serves: bool,
    /// Its time is over, and that was told.
    over: bool,
}

impl Penalties {
    /// It failed once more: how often so far, and how long it is left out.
    pub fn failed(&mut self, worker: Who, serves: bool, first: Duration, now: Instant) -> (u32, Duration) {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&worker) {
            let oldest = self.0.iter().min_by_key(|(_, at)| at.until).map(|(worker, _)| worker.clone());
            oldest.map(|worker| self.0.remove(&worker));
        }
        let at = self.0.entry(worker).or_insert(Penalty { failures: 0, until: now, serves, over: false });
        at.failures = at.failures.saturating_add(1);
        let wait = first * 2u32.saturating_pow(at.failures - 1).min(GROWTH_MAX);
        (at.until, at.serves, at.over) = (now + wait, serves, false);
        (at.failures, wait)
    }

    /// It has prepared what was wanted.
    pub fn forgive(&mut self, worker: &Who) {
        self.0.remove(worker);
    }

    /// Whether somebody's time is over since this was asked last.
    pub fn ended(&mut self, now: Instant) -> bool {
        let mut any = false;
        for at in self.0.values_mut().filter(|at| !at.over && at.until <= now) {
            at.over = true;
            any = true;
        }
        any
    }

    /// Whether plans are made without it.
    pub fn leaves_out(&self, worker: &Who) -> bool {
        self.0.get(worker).is_some_and(|at| !at.over && (!at.serves || at.failures > 1))
    }

    /// Whether it has failed again and again: not even those who need it wait for it before its time.
    pub fn is_hopeless(&self, worker: &Who) -> bool {
        self.0.get(worker).is_some_and(|at| !at.over && at.failures > 1)
    }

    pub fn of(&self, worker: &Who) -> Option<Penalty> {
        self.0.get(worker).copied()
    }
}
