//! What the schedule is made from.

use gaterail_kernels::ops::PAGE_POSITIONS;

use super::core::Core;
use crate::kv::Hit;
use crate::model::Model;
use crate::schedule::{Running, Shared, View, Waiting};
use crate::sequence::{Active, Sequence, SequenceId};

/// A view, and who is meant by its places.
pub(super) struct Seen {
    pub view: View,
    pub running: Vec<SequenceId>,
    /// Each knows what the cache has of it.
    pub waiting: Vec<SequenceId>,
}

impl<M: Model> Core<M> {
    pub(super) fn view(&mut self) -> Seen {
        let mut seen = Seen {
            view: View {
                limits: self.step_limits(),
                counters: self.fair.counters().to_vec(),
                running: Vec::with_capacity(self.running.len()),
                waiting: Vec::new(),
                pages: self.pages.available(),
            },
            running: self.running.iter().copied().collect(),
            waiting: Vec::new(),
        };
        self.see_waiting(&mut seen);
        // What somebody would leave behind matters only where somebody may have to leave.
        let crowded = !seen.waiting.is_empty() || self.pages.available() < self.running.len();
        for id in &self.running {
            let (active, sequence) = self.sequence(*id);
            seen.view.running.push(Running {
                tenant: active.tenant,
                pending: sequence.pending(),
                every_logit: active.wants_every_logit(sequence),
                short: sequence.table.short_of(sequence.tokens.len()),
                held: if crowded { self.pages.held_once(sequence.table.pages()) } else { 0 },
                paused: active.paused.is_some(),
            });
        }
        seen
    }

    /// Those who may get in, with what the cache has of them.
    fn see_waiting(&mut self, seen: &mut Seen) {
        seen.waiting = self.next_in_line(seen.view.limits.sequences);
        for id in &seen.waiting {
            // Whoever waits is there: `audit` checks it.
            let active = self.requests.get(&id.request).expect("a request that is there");
            let sequence = self.sequences.get_mut(id).expect("a choice that is not done");
            let tokens = &sequence.tokens[..active.cacheable(sequence)];
            let mut hit = match sequence.hit.take() {
                Some(mut hit) => {
                    self.pages.find_again(&mut hit, &active.salt, tokens);
                    hit
                }
                None => self.pages.find(&active.salt, tokens),
            };
            self.pages.find_tails(&mut hit, &active.tails, tokens.len());
            let all = sequence.tokens.len().div_ceil(PAGE_POSITIONS);
            let pending = sequence.tokens.len() - hit.positions();
            let cost = all - hit.pages.len() + hit.idle + hit.beside();
            let (tenant, every_logit) = (active.tenant, active.wants_every_logit(sequence));
            let shared = self.shared(&hit, &seen.running);
            seen.view.waiting.push(Waiting { tenant, pending, every_logit, cost, shared });
            self.sequence_mut(*id).1.hit = Some(hit);
        }
    }

    /// As many of each tenant as there are places, and one that may take somebody else's.
    fn next_in_line(&self, sequences: usize) -> Vec<SequenceId> {
        let places = sequences.saturating_sub(self.running.len());
        let paused = self.running.iter().filter(|id| self.sequence(**id).0.paused.is_some()).count();
        let mut next = Vec::new();
        for (tenant, queue) in self.waiting.iter().enumerate().filter(|(_, queue)| !queue.is_empty()) {
            let runs = || self.running.iter().any(|id| self.sequence(*id).0.tenant.0 == tenant);
            let most = match places + paused {
                0 => usize::from(!runs()),
                some => some,
            };
            let ready = queue.iter().filter(|id| self.sequence(**id).0.paused.is_none());
            next.extend(ready.take(most));
        }
        next
    }

    /// The pages of a hit that one who runs holds alone. They lie between those of several and those of nobody.
    fn shared(&self, hit: &Hit, running: &[SequenceId]) -> Option<Shared> {
        let first = hit.pages.len().checked_sub(hit.idle + hit.held_once)?;
        let page = hit.pages.get(first).filter(|_| hit.held_once > 0)?;
        let holds = |id: &SequenceId| self.sequences[id].table.pages().get(first) == Some(page);
        // Whoever has pages runs: `audit` checks it.
        running.iter().position(holds).map(|with| Shared { with, pages: hit.held_once })
    }

    pub(super) fn sequence(&self, id: SequenceId) -> (&Active, &Sequence) {
        // Whoever runs or waits is there: `audit` checks it.
        let active = self.requests.get(&id.request).expect("a request that is there");
        (active, self.sequences.get(&id).expect("a choice that is not done"))
    }

    pub(super) fn sequence_mut(&mut self, id: SequenceId) -> (&mut Active, &mut Sequence) {
        // As above.
        let active = self.requests.get_mut(&id.request).expect("a request that is there");
        (active, self.sequences.get_mut(&id).expect("a choice that is not done"))
    }
}
