//! What a roster is told, and what it wants done.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gaterail_proto::{Epoch, Placement, ShardSpec, WorkerId};

use super::WorkerAbout;
use super::case::Case;
use super::search::Search;
use crate::placement::{Misfit, Mode, Popularity};

/// Something happened.
///
/// A worker has one stream at a time. When a worker joins that is there already, its former stream is over, and whoever feeds
/// the roster tells nothing more of that one.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Joined(WorkerAbout),
    /// A heartbeat: calls computed since the start, and bytes of experts held.
    Heard {
        worker: WorkerId,
        calls: u64,
        held_bytes: u64,
    },
    /// The engine waits for a reply of this worker, or no longer.
    Waiting {
        worker: WorkerId,
        waiting: bool,
    },
    /// How far a worker is with what an epoch wants of it.
    Loading {
        worker: WorkerId,
        epoch: Epoch,
        bytes: u64,
        total: u64,
    },
    Prepared {
        worker: WorkerId,
        epoch: Epoch,
    },
    PrepareFailed {
        worker: WorkerId,
        epoch: Epoch,
        detail: String,
    },
    /// Its stream ended, its channel failed.
    Lost {
        worker: WorkerId,
        why: String,
    },
    /// It wants to go, and serves until the others do without it.
    Leaving {
        worker: WorkerId,
    },
    /// The engine has switched to this epoch, and sends nothing of those before.
    Switched {
        epoch: Epoch,
    },
    /// How often the experts were hit lately.
    Popularity(Popularity),
    /// Something else is wanted from now on. It is looked at whether it fits at once: see `Roster::consider` for who has no time.
    Rebalance(Wish),
}

/// What an operator wants from now on; `None` leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wish {
    pub mode: Option<Mode>,
    pub copies: Option<u32>,
    pub replica_bytes: Option<u64>,
}

/// Why a wish is not followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("no worker is there")]
    Nobody,
    /// What was found to fit was looked for among others.
    #[error("workers came or went meanwhile")]
    Changed,
    #[error("{mode} takes {wanted} workers, and there are {there}")]
    Workers { mode: Mode, wanted: usize, there: usize },
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// It would fit on workers that hold nothing.
    #[error("it fits, but not beside what is served until then: {0}")]
    Beside(String),
}

/// Something is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell the worker to load its part of an epoch, beside what it has.
    Prepare { worker: WorkerId, epoch: Epoch, shard: ShardSpec },
    /// All have prepared: the engine switches to it between two steps, or in the middle of a layer that failed.
    Activate { epoch: Epoch, placement: Arc<Placement> },
    /// Tell all workers that epochs below this one are over.
    Retire { before: Epoch },
    /// Say goodbye and close: the roster has forgotten the worker. `again`: joining again may help.
    Dismiss { worker: WorkerId, why: String, again: bool },
    /// What is wanted does not fit: to be said, with what would. That takes long to find.
    Explain(Box<Case>),
    /// A plan is to be looked for: what is found is told by `Roster::found`. Up to `SEARCHES_MAX` may run beside each other, for
    /// whoever recovers does not wait for another search.
    Search(Box<Search>),
    /// For the log.
    Note(Note),
}

/// What an operator wants to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    Joined {
        worker: WorkerId,
        name: String,
    },
    Lost {
        worker: WorkerId,
        name: String,
        why: String,
    },
    /// A plan is being prepared.
    Planned {
        epoch: Epoch,
        workers: usize,
        copies: u32,
        why: &'static str,
    },
    /// A plan was given up before it was active.
    GaveUp {
        epoch: Epoch,
        why: String,
        /// It was made for a wish: what was wanted before is wanted again.
        withdrawn: bool,
    },
    /// What a wish wants cannot be had any more.
    Withdrawn,
    /// Fewer copies than wanted, or more again.
    Copies {
        copies: u32,
        wanted: u32,
    },
    /// There is no plan, and requests wait.
    NoPlan {
        why: String,
    },
    /// A worker that cannot load what it should is left out for so long, unless it is needed.
    LeftOut {
        name: String,
        failures: u32,
        wait: Duration,
    },
    /// An operator's wish is not followed.
    Refused(Refused),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Joined { worker, name } => write!(f, "worker {name} ({worker}) joined"),
            Note::Lost { worker, name, why } => write!(f, "worker {name} ({worker}) is gone: {why}"),
            Note::Planned { epoch, workers, copies, why } => {
                write!(f, "epoch {epoch} on {workers} workers, {copies} copies: {why}")
            }
            Note::GaveUp { epoch, why, withdrawn } => {
                let back = if *withdrawn { "; what was wanted before is wanted again" } else { "" };
                write!(f, "epoch {epoch} is given up: {why}{back}")
            }
            Note::Withdrawn => {
                write!(f, "the wish does not fit any more: what was wanted before is wanted again")
            }
            Note::Copies { copies, wanted } => write!(f, "{copies} of {wanted} copies of every expert"),
            Note::NoPlan { why } => write!(f, "no plan, requests wait: {why}"),
            Note::LeftOut { name, failures, wait } => {
                let times = if *failures == 1 { "once".to_string() } else { format!("{failures} times") };
                write!(f, "{name} could not load {times}; it is left out for {wait:?}, unless it is needed")
            }
            Note::Refused(why) => why.fmt(f),
        }
    }
}
