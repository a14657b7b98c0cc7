//! Who is there, and the step that moves all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gaterail_model::walk::Batch;
use tokio::sync::mpsc;

use super::apply::Ran;
use super::counters::{Counters, Pace};
use crate::admission::Admitted;
use crate::api::{EngineLimits, Event, Failure, TenantId};
use crate::engine::EngineParts;
use crate::kv::Pages;
use crate::model::Model;
use crate::schedule::{Fair, StepLimits, schedule};
use crate::sequence::{Active, Sequence, SequenceId};

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rows were computed.
    Ran,
    /// Requests are there, and none can go on: their clients do not read.
    Blocked,
    /// Nobody is there.
    Empty,
}

/// All sequences of one lane. A brain without hands: what time it is, it is told.
pub struct Core<M> {
    pub(super) parts: EngineParts<M>,
    pub(super) limits: EngineLimits,
    pub(super) pages: Pages,
    pub(super) fair: Fair,
    /// By arrival.
    pub(super) requests: BTreeMap<u64, Active>,
    /// Every choice that is not done: it waits, it runs, or it stands by until the prompt is read.
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    /// Sequences that wait, by the slot of their tenant.
    pub(super) waiting: Vec<BTreeSet<SequenceId>>,
    /// Sequences with pages, the oldest first.
    pub(super) running: BTreeSet<SequenceId>,
    pub(super) batch: Batch,
    pub(super) counters: Counters,
    pub(super) pace: Pace,
    /// Requests that left the queue since this was last asked: whose, and the tokens of the prompt.
    pub(super) dequeued: Vec<(TenantId, usize)>,
    arrivals: u64,
}

impl<M: Model> Core<M> {
    pub fn new(parts: EngineParts<M>, limits: EngineLimits) -> Core<M> {
        let pages = Pages::new(parts.runner.pages(), limits.prefix_cache);
        Core {
            parts,
            limits,
            pages,
            fair: Fair::default(),
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            waiting: Vec::new(),
            running: BTreeSet::new(),
            batch: Batch::default(),
            counters: Counters::default(),
            pace: Pace::default(),
            dequeued: Vec::new(),
            arrivals: 0,
        }
    }

    /// A request joins those who wait.
    pub fn accept(&mut self, admitted: Admitted, arrived: Instant, events: mpsc::Sender<Event>) {
        let tenant = self.fair.enter(&admitted.request.tenant);
        let request = self.arrivals;
        self.arrivals += 1;
        self.waiting.resize_with(self.fair.counters().len(), BTreeSet::new);
        self.waiting[tenant.0].insert(SequenceId { request, choice: 0 });
        let (active, sequences) = Active::new(admitted, tenant, arrived, events);
        self.requests.insert(request, active);
        let ids = (0..).map(|choice| SequenceId { request, choice });
        self.sequences.extend(ids.zip(sequences));
    }

    /// One step.
    pub fn step(&mut self, now: Instant) -> Outcome {
        self.sweep(now);
        if self.requests.is_empty() {
            return Outcome::Empty;
        }
        let seen = self.view();
        let plan = schedule(&seen.view);
        let ran = self.apply(&plan, seen, now);
        if ran.is_empty() {
            return Outcome::Blocked;
        }
        self.run(&ran, now);
        Outcome::Ran
    }

    /// Fails all that is left.
    pub fn fail_all(&mut self, failure: &Failure) {
        let all: Vec<u64> = self.requests.keys().copied().collect();
        all.into_iter().for_each(|request| self.fail(request, failure.clone()));
    }

    /// There is nothing to do for now.
    pub fn rest(&mut self) {
        self.parts.runner.rest();
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests that left the queue since the last call: whose, and the tokens of the prompt.
    pub fn take_dequeued(&mut self) -> Vec<(TenantId, usize)> {
        std::mem::take(&mut self.dequeued)
    }

    /// Checks that no page is lost or shared for writing, and that everybody is in one place. Returns what is wrong.
    pub fn audit(&self) -> Result<(), String> {
        let tables = self.sequences.values().map(|sequence| &sequence.table);
        self.pages.audit(tables.map(|table| (table.pages(), table.full())))?;
        for (id, sequence) in &self.sequences {
            let active = self.requests.get(&id.request).ok_or("the request of a sequence is gone")?;
            let waits = self.waiting[active.tenant.0].contains(id);
            let runs = self.running.contains(id);
            let stands_by = id.choice > 0 && !active.prompt_read;
            if u8::from(waits) + u8::from(runs) + u8::from(stands_by) != 1 {
                return Err(format!("{id:?} waits: {waits}, runs: {runs}, stands by: {stands_by}"));
            }
            let holds = !sequence.table.pages().is_empty() || sequence.computed > 0;
            if holds && !runs {
                return Err(format!("{id:?} has pages and does not run"));
            }
            if sequence.computed > sequence.table.capacity() || sequence.computed > sequence.tokens.len() {
                return Err(format!("{id:?} has computed more than it has pages or tokens for"));
            }
        }
        let placed = self.running.len() + self.waiting.iter().map(BTreeSet::len).sum::<usize>();
        let standing =
            self.sequences.keys().filter(|id| id.choice > 0 && !self.requests[&id.request].prompt_read);
        if placed + standing.count() != self.sequences.len() {
            return Err("somebody waits or runs who is done".to_string());
        }
        for (request, active) in &self.requests {
            let first = SequenceId { request: *request, choice: 0 };
            let last = SequenceId { request: *request, choice: u32::MAX };
            if active.open != self.sequences.range(first..=last).count() {
                return Err(format!("request {request} counts {} choices", active.open));
            }
        }
        Ok(())
    }

    fn run(&mut self, ran: &[Ran], now: Instant) {
        let started = Instant::now();
        let rows = self.batch.rows.len();
        // The batch is lent to the model beside the rest of us.
        let batch = std::mem::take(&mut self.batch);
        let outcome = self.compute(&batch, ran, now);
        self.batch = batch;
        self.batch.copies.clear();
        let time = started.elapsed();
        self.counters.steps += 1;
        self.counters.step_time += time;
        self.counters.last_step = time;
        self.pace.step(rows, time);
        if let Err(failure) = outcome {
            self.counters.failed_steps += 1;
            let requests: BTreeSet<u64> = ran.iter().map(|ran| ran.id.request).collect();
            requests.into_iter().for_each(|request| self.fail(request, failure.clone()));
        }
    }

    /// Ends a request with a failure.
    pub(super) fn fail(&mut self, request: u64, failure: Failure) {
        if let Some(active) = self.requests.get(&request) {
            active.send(Event::Failed(failure));
            self.counters.failed += 1;
            self.remove(request);
        }
    }

    /// Forgets a request; its pages are free.
    pub(super) fn remove(&mut self, request: u64) {
        let Some(active) = self.requests.remove(&request) else { return };
        self.fair.leave(active.tenant);
        if active.started.is_none() {
            self.dequeued.push((active.salt.tenant.clone(), active.prompt_tokens));
        }
        let first = SequenceId { request, choice: 0 };
        let last = SequenceId { request, choice: u32::MAX };
        let ids: Vec<SequenceId> = self.sequences.range(first..=last).map(|(id, _)| *id).collect();
        for id in ids {
            self.running.remove(&id);
            self.waiting[active.tenant.0].remove(&id);
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence.table.release(&mut self.pages);
            }
        }
        active.tails.into_iter().for_each(|tail| self.pages.forget_tail(tail));
    }

    pub(super) fn step_limits(&self) -> StepLimits {
        let sequences = self.limits.batch_max;
        StepLimits {
            sequences,
            rows: self.limits.rows_max.min(self.parts.runner.rows_max()).max(1),
            logits: self.limits.logits_rows_max.max(sequences),
        }
    }

    /// The gauges of this moment, but for the queue's.
    pub fn gauges(&self) -> Gauges {
        let paused = |id: &&SequenceId| self.requests.get(&id.request).is_some_and(|at| at.paused.is_some());
        Gauges {
            waiting: self.waiting.iter().map(BTreeSet::len).sum(),
            running: self.running.len(),
            paused: self.running.iter().filter(paused).count(),
            pages_total: self.pages.total(),
            pages_used: self.pages.total() - self.pages.available(),
            pages_cached: self.pages.idle(),
            counters: self.counters,
            pace: self.pace,
        }
    }

    /// The longest time that a blocked step may wait before the next look.
    pub fn poll_interval() -> Duration {
        Duration::from_millis(2)
    }
}

/// What can be seen of a core.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    pub waiting: usize,
    pub running: usize,
    pub paused: usize,
    pub pages_total: usize,
    pub pages_used: usize,
    pub pages_cached: usize,
    pub counters: Counters,
    pub pace: Pace,
}
