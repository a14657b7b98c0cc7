//! A roster as others see it.

use std::time::{Duration, Instant};

use gaterail_proto::{Epoch, WorkerId};
use serde::Serialize;

use super::WorkerAbout;
use super::member::Member;
use super::penalty::Who;
use super::roster::{Active, Looked, Roster};
use crate::placement::{Held, copies, held, replicas};

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RosterView {
    /// As `--parallel` writes it.
    pub mode: String,
    /// Copies wanted of every expert.
    pub copies_wanted: u32,
    /// Copies that every expert has at least.
    pub copies: u32,
    /// Copies of hot experts beyond those, and their bytes.
    pub replicas: u64,
    pub replica_bytes: u64,
    /// The slowest worker's time over an even one's, by what was hit lately and summed up over layers; `None` before that is known.
    pub imbalance: Option<f64>,
    /// The last epoch that was activated.
    pub epoch: Option<Epoch>,
    /// Whether that one is whole: all of its workers are there. If not, requests wait.
    pub serving: bool,
    pub pending: Option<PendingView>,
    /// In the order in which they joined.
    pub workers: Vec<WorkerView>,
}

/// A plan that is being prepared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PendingView {
    pub epoch: Epoch,
    /// Those who have not answered.
    pub waits_for: Vec<WorkerId>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerView {
    #[serde(flatten)]
    pub about: WorkerAbout,
    pub state: WorkerState,
    /// Of the active epoch: experts of which it holds something.
    pub experts: u64,
    /// Of the active epoch: bytes of those.
    pub bytes: u64,
    /// Of the active epoch: its share of the work, from 0 to 1.
    pub share: f64,
    /// Experts of which something lies packed on its host.
    pub packed: u64,
    /// As the worker says.
    pub held_bytes: u64,
    pub calls: u64,
    pub loading: Option<Progress>,
    /// How often it could not load what it should since it last could, and for how much longer it is left out.
    pub failures: u32,
    pub left_out: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// In no plan yet.
    Joined,
    /// Loads what a plan wants of it, and serves nothing yet.
    Preparing,
    /// In the active plan.
    Serving,
    /// Could not load, and is not asked for a while.
    LeftOut,
    /// Will be dismissed when the others do without it.
    Leaving,
}

/// How far a worker is with what an epoch wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub epoch: Epoch,
    pub bytes: u64,
    pub total: u64,
}

impl Roster {
    /// For `gaterail status`.
    pub fn view(&self, now: Instant) -> RosterView {
        let hits = self.popularity.as_ref();
        let work_out = |active: &Active| Looked {
            parts: held(&self.inventory, &active.placement, hits),
            copies: copies(&active.placement),
            replicas: replicas(&self.inventory, &active.placement),
            balance: hits.map(|hits| self.balance(&active.placement, hits)),
        };
        let looked = self.active.as_ref().map(|active| active.looked.get_or_init(|| work_out(active)));
        let parts = looked.map_or(&[][..], |looked| &looked.parts);
        let (replicas, replica_bytes) = looked.map_or((0, 0), |looked| looked.replicas);
        let mut members: Vec<&Member> = self.members.values().collect();
        members.sort_by_key(|member| member.joined);
        RosterView {
            mode: self.policy.mode.to_string(),
            copies_wanted: self.policy.copies,
            copies: looked.map_or(0, |looked| looked.copies),
            replicas,
            replica_bytes,
            imbalance: looked.and_then(|looked| looked.balance).map(|balance| balance.imbalance()),
            epoch: self.active.as_ref().map(|active| active.epoch),
            serving: self.whole(),
            pending: self.pending.as_ref().map(|pending| PendingView {
                epoch: pending.epoch,
                waits_for: pending.open.iter().copied().collect(),
            }),
            workers: members.iter().map(|member| self.worker(member, parts, now)).collect(),
        }
    }

    fn worker(&self, member: &Member, parts: &[Held], now: Instant) -> WorkerView {
        let who = Who::of(&member.about);
        let penalty = self.penalties.of(&who);
        let id = member.about.id;
        let active = self.active.as_ref().filter(|active| !active.lost.contains(&id));
        let place = active.and_then(|active| active.placement.workers.iter().position(|&at| at == id));
        let pending = self.pending.as_ref().is_some_and(|pending| pending.placement.workers.contains(&id));
        let part = place.map(|place| parts[place]).unwrap_or_default();
        WorkerView {
            about: member.about.clone(),
            state: match place {
                _ if member.leaving => WorkerState::Leaving,
                Some(_) => WorkerState::Serving,
                None if self.penalties.leaves_out(&who) && !pending => WorkerState::LeftOut,
                None if pending => WorkerState::Preparing,
                None => WorkerState::Joined,
            },
            experts: part.experts,
            bytes: part.bytes,
            share: part.share,
            packed: member.packed,
            held_bytes: member.held_bytes,
            calls: member.calls,
            loading: member.loading,
            failures: penalty.map_or(0, |at| at.failures),
            left_out: penalty.map_or(Duration::ZERO, |at| at.until.saturating_duration_since(now)),
        }
    }
}
