//! The plan carried out: pages taken away and given, and the batch that the model gets.

use std::time::Instant;

use gaterail_kernels::ops::{PAGE_POSITIONS, PageCopy};
use gaterail_model::walk::Row;

use super::core::Core;
use super::view::Seen;
use crate::api::Event;
use crate::kv::{Begun, Table};
use crate::model::Model;
use crate::schedule::{Plan, Who};
use crate::sequence::SequenceId;

/// Rows of one sequence in the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    pub id: SequenceId,
    /// The position of the first.
    pub start: usize,
    pub rows: usize,
    /// How many of them have their logits wanted.
    pub wanted: usize,
}

impl<M: Model> Core<M> {
    /// Makes the batch of a plan. Who is in it, in the batch's order.
    pub(super) fn apply(&mut self, plan: &Plan, seen: Seen, now: Instant) -> Vec<Ran> {
        plan.preempt.iter().for_each(|&at| self.preempt(seen.running[at]));
        // First all hits are held, then pages are taken for the rest: so that none is taken that is part of a hit.
        let mut copied = Vec::new();
        for &at in &plan.admit {
            let id = seen.waiting[at];
            copied.extend(self.begin(id, now).map(|page| (id, page)));
        }
        for &at in &plan.admit {
            let id = seen.waiting[at];
            let positions = self.sequences[&id].tokens.len();
            self.grow_or_put_back(id, positions);
        }
        copied.into_iter().for_each(|(id, page)| self.copy(id, page));
        self.batch.rows.clear();
        self.batch.logits.clear();
        self.batch.tables.clear();
        let mut ran = Vec::with_capacity(plan.rows.len());
        for share in &plan.rows {
            let id = match share.who {
                Who::Running(at) => seen.running[at],
                Who::Waiting(at) => seen.waiting[at],
            };
            let positions = self.sequences[&id].computed + share.rows;
            if self.running.contains(&id) && self.grow_or_put_back(id, positions) {
                ran.push(self.add(id, share.rows));
            }
        }
        ran
    }

    /// Takes a sequence's pages away. What it has said stays said; it waits until it can compute them again.
    fn preempt(&mut self, id: SequenceId) {
        self.running.remove(&id);
        let (active, sequence) = self.sequence_mut(id);
        let tenant = active.tenant;
        sequence.computed = 0;
        sequence.preemptions += 1;
        let table = std::mem::replace(&mut sequence.table, Table::new(&active.salt));
        table.release(&mut self.pages);
        self.waiting[tenant.0].insert(id);
        self.counters.preemptions += 1;
    }

    /// A sequence gets in, with what the cache has of it. The page that is held for it until it is copied.
    fn begin(&mut self, id: SequenceId, now: Instant) -> Option<u32> {
        // Who is in the view was looked up for it.
        let hit = self.sequence_mut(id).1.hit.take().expect("a hit of one who waits");
        let Begun { table, computed, copied } = Table::begin(hit, &mut self.pages);
        let cached = table.full() * PAGE_POSITIONS;
        let (active, sequence) = self.sequence_mut(id);
        (sequence.computed, sequence.table) = (computed, table);
        let (tenant, looked_up) = (active.tenant, sequence.tokens.len());
        let is_first = sequence.preemptions == 0;
        sequence.charged = sequence.charged.max(computed);
        if active.started.is_none() {
            active.started = Some(now);
            active.cached_tokens = cached;
            active.send(Event::Started { cached_tokens: cached });
            let left = (active.salt.tenant.clone(), active.prompt_tokens);
            self.dequeued.push(left);
        }
        if is_first && self.limits.prefix_cache {
            self.counters.prefix_queries += looked_up as u64;
            self.counters.prefix_hits += cached as u64;
        }
        self.waiting[tenant.0].remove(&id);
        self.running.insert(id);
        copied
    }

    /// Copies a page for a sequence that has got its own by now, unless that was taken from it.
    fn copy(&mut self, id: SequenceId, from: u32) {
        if let Some(to) = self.sequences.get(&id).and_then(|sequence| sequence.table.written_next()) {
            // With the next batch that is run, before all of its rows.
            self.batch.copies.push(PageCopy { from, to });
        }
        self.pages.release(vec![from]);
    }

    /// Gives a sequence pages for `positions`. Where the plan counted on pages that are not there the sequence loses its
    /// own and waits again: a plan is checked, and a wrong one ends nobody.
    fn grow_or_put_back(&mut self, id: SequenceId, positions: usize) -> bool {
        let sequence = self.sequences.get_mut(&id);
        let grown = sequence.is_some_and(|sequence| sequence.table.grow(positions, &mut self.pages));
        if !grown {
            self.counters.short_plans += 1;
            self.preempt(id);
        }
        grown
    }

    fn add(&mut self, id: SequenceId, rows: usize) -> Ran {
        let (active, sequence) = (&self.requests[&id.request], &self.sequences[&id]);
        let start = sequence.computed;
        let at = self.batch.tables.len() as u32;
        self.batch.tables.push(sequence.table.pages().to_vec());
        let before = self.batch.logits.len();
        for position in start..start + rows {
            if active.wants_logits(sequence, position) {
                self.batch.logits.push(self.batch.rows.len() as u32);
            }
            let token = sequence.tokens[position];
            self.batch.rows.push(Row { token, position: position as u32, sequence: at });
        }
        Ran { id, start, rows, wanted: self.batch.logits.len() - before }
    }
}
