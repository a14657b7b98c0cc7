//! What the roster wants done, done: messages to workers, plans to the engine, words for the operator.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use gaterail_cluster::membership::{Action, Case, Event, Search};
use gaterail_proto::grpc::v1::from_router::What;
use gaterail_proto::grpc::v1::{FromRouter, Goodbye, Prepare, Retire};
use gaterail_proto::{Epoch, Placement, WorkerId};
use tokio::sync::mpsc;

use super::{Control, Input};
use crate::cluster::plans::{OwnShard, Plan};

/// The router's own process, dismissed because it could not load, tries again after this.
const OWN_AGAIN: Duration = Duration::from_secs(2);

impl Control {
    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Prepare { worker, epoch, shard } if self.is_own(worker) => {
                    self.own.iter_mut().for_each(|own| own.prepare(epoch, shard.clone()));
                }
                Action::Prepare { worker, epoch, shard } => {
                    let prepare = Prepare { epoch: epoch.0, layers: shard.to_message() };
                    if let Err(why) = self.send(worker, What::Prepare(prepare)) {
                        self.dismiss(worker, &why, true);
                        actions.extend(self.roster.on(Event::Lost { worker, why }, Instant::now()));
                    }
                }
                Action::Activate { epoch, placement } => {
                    let speeds = placement.workers.iter().map(|worker| self.speed(*worker)).collect();
                    let own = self.own_shard(epoch, &placement);
                    self.epoch = Some(epoch);
                    self.changes.activated(epoch, Instant::now());
                    self.plans.activate(Plan { epoch, placement, speeds, own });
                }
                Action::Retire { before } => {
                    self.own.iter_mut().for_each(|own| own.retire(before));
                    let all: Vec<WorkerId> = self.members.keys().copied().collect();
                    for worker in all {
                        // Who does not take it keeps more than it must, and is found when it has to prepare.
                        let _ = self.send(worker, What::Retire(Retire { before_epoch: before.0 }));
                    }
                }
                // This process cannot go; it is taken in again.
                Action::Dismiss { worker, .. } if self.is_own(worker) => {
                    self.own_again = Some(Instant::now() + OWN_AGAIN)
                }
                Action::Dismiss { worker, why, again } => self.dismiss(worker, &why, again),
                Action::Explain(case) => self.explain(case),
                Action::Search(search) => {
                    if let Err(search) = self.search(search) {
                        // Without a thread control has to wait for it.
                        actions.extend(self.roster.found(search.found(), Instant::now()));
                    }
                }
                Action::Note(note) => {
                    self.changes.note(&note, Instant::now());
                    self.notes.tell(note.to_string());
                }
            }
        }
    }

    pub(super) fn is_own(&self, worker: WorkerId) -> bool {
        self.own.as_ref().is_some_and(|own| own.about.id == worker)
    }

    /// Of reading experts, which is what few rows take.
    fn speed(&self, worker: WorkerId) -> f64 {
        self.roster.speed(worker).unwrap_or(1.0).max(1.0)
    }

    fn own_shard(&self, epoch: Epoch, placement: &Placement) -> Option<OwnShard> {
        let own = self.own.as_ref()?;
        let index = placement.workers.iter().position(|worker| *worker == own.about.id)?;
        Some(OwnShard { index, shard: own.of(epoch)? })
    }

    fn send(&self, worker: WorkerId, what: What) -> Result<(), String> {
        let member = self.members.get(&worker).ok_or("it is not there")?;
        let sent = member.outgoing.messages.try_send(Ok(FromRouter { what: Some(what) }));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "it takes no messages".to_string(),
            mpsc::error::TrySendError::Closed(_) => "its stream ended".to_string(),
        })
    }

    pub(super) fn dismiss(&mut self, worker: WorkerId, why: &str, again: bool) {
        let _ = self.send(worker, What::Goodbye(Goodbye { why: why.to_string(), again }));
        self.forget(worker);
    }

    /// Closes all that belongs to a worker's stream.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        let Some(member) = self.members.remove(&worker) else { return };
        member.cut.now();
        self.plans.leave(worker);
        self.stats.forget(worker);
    }

    pub(super) fn goodbye(&mut self) {
        self.plans.close();
        let all: Vec<WorkerId> = self.members.keys().copied().collect();
        all.into_iter().for_each(|worker| self.dismiss(worker, "the router ends", true));
    }

    /// Looks for a plan on a thread of its own, beside deaths and heartbeats; `Input::Found` says what came of it. Gives the search back
    /// where there is no thread.
    fn search(&self, search: Box<Search>) -> Result<(), Box<Search>> {
        let (inputs, copy, notes) = (self.inputs.clone(), search.clone(), self.notes.clone());
        let work = move || {
            // Whoever waits for an answer gets one.
            let nothing = copy.clone();
            let found = catch_unwind(AssertUnwindSafe(|| copy.found())).unwrap_or_else(|_| {
                notes.tell(
                    "looking for a plan failed, which is a defect; what is served is served on".to_string(),
                );
                nothing.nothing()
            });
            let found = Box::new(found);
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.blocking_send(Input::Found(found));
            }
        };
        let spawned = std::thread::Builder::new().name("cluster-search".into()).spawn(work);
        spawned.map(drop).map_err(|_| search)
    }

    /// Says what would fit, as soon as a thread has found it.
    fn explain(&self, case: Box<Case>) {
        let notes = self.notes.clone();
        let work = move || case.misfit().into_iter().for_each(|misfit| notes.tell(misfit.to_string()));
        if std::thread::Builder::new().name("cluster-ways".into()).spawn(work).is_err() {
            self.notes.tell("the experts do not fit as they should be spread".to_string());
        }
    }
}
