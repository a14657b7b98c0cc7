//! What control and the engine share: the plan in force, the channels to the workers, and what went wrong with them.
//!
//! Control writes, from threads and tasks of its own; the engine looks between two layers, and waits here when it cannot go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use gaterail_cluster::exchange::Channel;
use gaterail_model::weights::ExpertShard;
use gaterail_proto::{Epoch, Placement, WorkerId};

use super::own::free;
use super::routes::Routes;

/// A placement in force.
#[derive(Clone)]
pub struct Plan {
    pub epoch: Epoch,
    pub placement: Arc<Placement>,
    /// By worker of the placement, how fast it computes experts, in any unit: where there are copies, work follows it.
    pub speeds: Arc<[f64]>,
    /// What this process holds itself.
    pub own: Option<OwnShard>,
}

/// The router's own place in a placement.
#[derive(Clone)]
pub struct OwnShard {
    /// Index into `Placement::workers`.
    pub index: usize,
    pub shard: Arc<ExpertShard>,
}

/// The engine could not go on because of a worker.
#[derive(Clone, Debug)]
pub struct Fault {
    pub worker: WorkerId,
    /// The plan that it happened in.
    pub epoch: Epoch,
    pub why: String,
}

/// Shared by control and engine.
pub struct Plans {
    state: Mutex<State>,
    moved: Condvar,
    /// Counts changes, so that the engine sees without a lock that there are none.
    changes: AtomicU64,
    /// The epoch that the engine computes with; 0 before the first.
    in_use: AtomicU64,
    /// Whom the engine has been waiting for, and since when.
    waiting: Mutex<Option<(WorkerId, Instant)>>,
    faults: Mutex<Sender<Fault>>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    /// What the plan means for rows: made by who made the plan, so that the engine's step does not wait for it.
    routes: Option<Arc<Routes>>,
    /// What the engine may still use; letting it go takes long, and is not the engine's.
    replaced: Vec<(Plan, Option<Arc<Routes>>)>,
    /// Channels that the engine has not taken yet.
    joined: Vec<(WorkerId, Box<dyn Channel>)>,
    /// Workers whose channels the engine should drop.
    left: Vec<WorkerId>,
    closed: bool,
}

/// What has changed since the engine looked last.
pub(super) struct Changes {
    pub plan: Option<(Plan, Arc<Routes>)>,
    pub joined: Vec<(WorkerId, Box<dyn Channel>)>,
    pub left: Vec<WorkerId>,
}

impl Plans {
    /// No plan yet. Faults go to `faults`.
    pub fn new(faults: Sender<Fault>) -> Plans {
        let (state, moved) = (Mutex::default(), Condvar::new());
        Plans {
            state,
            moved,
            changes: AtomicU64::new(0),
            in_use: AtomicU64::new(0),
            waiting: Mutex::default(),
            faults: Mutex::new(faults),
        }
    }

    /// A channel to a worker; it must be there before a plan names the worker. It takes the place of an older one.
    pub fn join(&self, worker: WorkerId, channel: Box<dyn Channel>) {
        self.change(|state| {
            state.left.retain(|left| *left != worker);
            state.joined.push((worker, channel));
        });
    }

    /// A worker is gone. Waits for it end when its channel is cut; this only forgets it.
    pub fn leave(&self, worker: WorkerId) {
        self.change(|state| {
            state.joined.retain(|(joined, _)| *joined != worker);
            state.left.push(worker);
        });
    }

    /// A plan comes into force with the next layer. Panics if its epoch is not above the last one's.
    pub fn activate(&self, plan: Plan) {
        let routes = Arc::new(Routes::new(&plan.placement));
        self.change(|state| {
            assert!(state.plan.as_ref().is_none_or(|old| old.epoch < plan.epoch), "epochs only grow");
            let (plan, routes) = (state.plan.replace(plan), state.routes.replace(routes));
            state.replaced.extend(plan.map(|plan| (plan, routes)));
        });
    }

    /// Lets go what the engine does not use any more.
    pub(super) fn forget_replaced(&self, used: Epoch) {
        let mut state = self.lock();
        let unused: Vec<_> = state.replaced.extract_if(.., |(plan, _)| plan.epoch < used).collect();
        drop(state);
        // The router's own shard is among it.
        if !unused.is_empty() {
            free(unused);
        }
    }

    /// No more plans will come: whoever waits for one is told.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// The plan in force.
    pub fn newest(&self) -> Option<Plan> {
        self.lock().plan.clone()
    }

    /// The epoch that the engine has switched to: no call of an older one follows.
    pub fn in_use(&self) -> Option<Epoch> {
        let epoch = self.in_use.load(Ordering::Acquire);
        (epoch > 0).then_some(Epoch(epoch))
    }

    /// The worker whose reply the engine has been waiting for so long that it is worth a look, and since when.
    pub fn waiting(&self) -> Option<(WorkerId, Instant)> {
        *self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn waits_for(&self, worker: Option<(WorkerId, Instant)>) {
        *self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = worker;
    }

    pub(super) fn switched(&self, to: Epoch) {
        self.in_use.store(to.0, Ordering::Release);
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Everything that is new.
    pub(super) fn take(&self) -> Changes {
        let mut state = self.lock();
        Changes {
            plan: state.plan.clone().zip(state.routes.clone()),
            joined: std::mem::take(&mut state.joined),
            left: std::mem::take(&mut state.left),
        }
    }

    /// Waits for a plan above `epoch`; `false` where none came in time or none will.
    pub(super) fn wait_beyond(&self, epoch: Option<Epoch>, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if state.plan.as_ref().is_some_and(|plan| epoch.is_none_or(|epoch| plan.epoch > epoch)) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return false;
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    pub(super) fn report(&self, fault: Fault) {
        let faults = self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Nobody listens while the server ends; the wait for a plan ends then too.
        let _ = faults.send(fault);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // Before the lock is given up: who saw the change there sees it here.
        self.changes.fetch_add(1, Ordering::Release);
        drop(state);
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
