//! From logits to tokens, text and events.

use std::collections::BTreeMap;
use std::time::Instant;

use gaterail_model::sampler::{FinishReason, Sampled, SamplerError, Step, logprob_of, sample};
use gaterail_model::text::Ending;
use gaterail_model::walk::Batch;

use super::apply::Ran;
use super::core::Core;
use crate::api::{Event, Failure, Piece, PromptLogprob};
use crate::model::Model;
use crate::schedule::fair::{ANSWER_WEIGHT, PROMPT_WEIGHT};
use crate::sequence::{Active, Sequence, SequenceId};

/// What the logits of one sequence said.
struct Heard {
    prompt: Vec<PromptLogprob>,
    sampled: Option<Sampled>,
    /// Where the prompt was read for several choices: the others' first tokens, from the same logits.
    others: Vec<(SequenceId, Sampled)>,
}

impl<M: Model> Core<M> {
    /// Runs the batch and hands out what came of it. Fails where the step itself did.
    pub(super) fn compute(&mut self, batch: &Batch, ran: &[Ran], now: Instant) -> Result<(), Failure> {
        let started = Instant::now();
        let vocab = self.parts.runner.vocab();
        let logits = self.parts.runner.step(batch);
        let logits = logits.map_err(|error| Failure::Step { detail: error.to_string() })?;
        let mut rows = logits.chunks_exact_mut(vocab);
        let mut heard = Vec::with_capacity(ran.len());
        for ran in ran {
            let (active, sequence) = (&self.requests[&ran.id.request], &self.sequences[&ran.id]);
            let others = stand_by(&self.sequences, active, ran);
            let listener = Listener { active, sequence, others, stop_ids: &self.parts.stop_ids };
            let mut wanted = rows.by_ref().take(ran.wanted);
            let outcome = listener.hear(ran, &mut wanted);
            // A row that was not looked at belongs to nobody else.
            wanted.for_each(drop);
            heard.push(outcome);
        }
        let now = now + started.elapsed();
        for (ran, heard) in ran.iter().zip(heard) {
            // A choice that failed takes the others of its request along.
            if self.sequences.contains_key(&ran.id) {
                match heard {
                    Ok(heard) => self.take(ran, heard, now),
                    Err(error) => self.fail(ran.id.request, Failure::Sampler(error)),
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, ran: &Ran, heard: Heard, now: Instant) {
        self.advance(ran);
        let id = ran.id;
        let (active, sequence) = self.sequence_mut(id);
        if !heard.prompt.is_empty() {
            let start = sequence.next_logprob;
            sequence.next_logprob += heard.prompt.len();
            active.send(Event::Prompt { start, logprobs: heard.prompt });
        }
        if !active.prompt_read && sequence.computed >= active.prompt_tokens {
            self.prompt_read(id.request, now);
        }
        if let Some(sampled) = heard.sampled {
            self.say(id, sampled, now);
        }
        heard.others.into_iter().for_each(|(id, sampled)| self.join(id, sampled, now));
    }

    /// A choice that stood by has its first token, and goes on when it finds a place.
    fn join(&mut self, id: SequenceId, sampled: Sampled, now: Instant) {
        // One that failed took the others along.
        if self.sequences.contains_key(&id) {
            self.say(id, sampled, now);
        }
        if self.sequences.contains_key(&id) {
            let tenant = self.sequence(id).0.tenant;
            self.waiting[tenant.0].insert(id);
        }
    }

    /// The rows are computed: full pages can be found, and the tenant has had them.
    fn advance(&mut self, ran: &Ran) {
        let active = &self.requests[&ran.id.request];
        let Some(sequence) = self.sequences.get_mut(&ran.id) else { return };
        sequence.computed = ran.start + ran.rows;
        sequence.table.written(&sequence.tokens, sequence.computed, &mut self.pages);
        let read = sequence.computed.min(active.prompt_tokens).saturating_sub(sequence.charged);
        self.fair.charge(active.tenant, read, PROMPT_WEIGHT);
        sequence.charged = sequence.charged.max(sequence.computed);
        self.counters.prompt_tokens += read as u64;
    }

    /// The prompt's KV is there: the other choices find its full pages in the cache, and copy what is behind them.
    fn prompt_read(&mut self, request: u64, now: Instant) {
        let Some(active) = self.requests.get_mut(&request) else { return };
        active.prompt_read = true;
        if let Some(first) = self.sequences.get(&SequenceId { request, choice: 0 })
            && active.open > 1
        {
            active.tails = self.pages.mark(first.table.pages(), active.prompt_tokens);
        }
        if active.max_generated == 0 {
            let choices = active.open as u32;
            (0..choices).for_each(|choice| {
                self.finish(SequenceId { request, choice }, FinishReason::Length, now);
            });
        }
    }

    /// A token was sampled.
    fn say(&mut self, id: SequenceId, sampled: Sampled, now: Instant) {
        let Sampled { token, logprob, top } = sampled;
        let active = &self.requests[&id.request];
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.push(token, now);
        let ending = Ending {
            params: &sequence.params,
            stop_ids: &self.parts.stop_ids,
            max_generated: active.max_generated,
        };
        let generated = sequence.tokens.len() - active.prompt_tokens;
        let taken = sequence.text.take(self.parts.tokenizer.as_deref(), token, generated, ending);
        self.counters.generated_tokens += 1;
        self.fair.charge(active.tenant, 1, ANSWER_WEIGHT);
        match taken {
            Ok((text, reason)) => {
                active.send(Event::Token(Piece { choice: id.choice, token, text, logprob, top }));
                if let Some(reason) = reason {
                    self.finish(id, reason, now);
                }
            }
            Err(error) => self.fail(id.request, Failure::Text { detail: error.to_string() }),
        }
    }

    /// A choice is done; with the last one the request is.
    fn finish(&mut self, id: SequenceId, reason: FinishReason, now: Instant) {
        let Some(active) = self.requests.get_mut(&id.request) else { return };
        let Some(sequence) = self.sequences.remove(&id) else { return };
        let (usage, timing) = (active.usage(&sequence), active.timing(&sequence, now));
        active.send(Event::Finished { choice: id.choice, reason, usage, timing });
        active.open -= 1;
        match reason {
            FinishReason::Stop(_) => self.counters.finished_stop += 1,
            FinishReason::Length => self.counters.finished_length += 1,
        }
        self.pace.finished(usage.generated_tokens);
        let is_last = active.open == 0;
        self.running.remove(&id);
        sequence.table.release(&mut self.pages);
        if is_last {
            self.remove(id.request);
        }
    }
}

/// The choices for which the last row of `ran` reads the prompt, beside its own.
fn stand_by<'a>(
    sequences: &'a BTreeMap<SequenceId, Sequence>,
    active: &Active,
    ran: &Ran,
) -> Vec<(SequenceId, &'a Sequence)> {
    if active.open < 2 || active.prompt_read || ran.start + ran.rows < active.prompt_tokens {
        return Vec::new();
    }
    let SequenceId { request, choice } = ran.id;
    let others = SequenceId { request, choice: choice + 1 }..=SequenceId { request, choice: u32::MAX };
    sequences.range(others).map(|(id, sequence)| (*id, sequence)).collect()
}

/// Who listens to the logits of one sequence.
struct Listener<'a> {
    active: &'a Active,
    sequence: &'a Sequence,
    others: Vec<(SequenceId, &'a Sequence)>,
    stop_ids: &'a [u32],
}

impl Listener<'_> {
    /// Reads the wanted rows of `ran`.
    fn hear<'a>(
        &self,
        ran: &Ran,
        rows: &mut impl Iterator<Item = &'a mut [f32]>,
    ) -> Result<Heard, SamplerError> {
        let mut heard = Heard { prompt: Vec::new(), sampled: None, others: Vec::new() };
        let wanted = (ran.start..ran.start + ran.rows)
            .filter(|&position| self.active.wants_logits(self.sequence, position));
        for (position, logits) in wanted.zip(rows) {
            if let Some(count) = self.active.prompt_logprobs
                && self.active.wants_logprob(self.sequence, position)
            {
                let token = self.sequence.tokens[position + 1];
                let (logprob, top) = logprob_of(logits, token, count)?;
                heard.prompt.push(PromptLogprob { token, logprob, top });
            } else {
                for (id, other) in &self.others {
                    // Bias and penalties change them in place.
                    heard.others.push((*id, self.sample(other, &mut logits.to_vec())?));
                }
                heard.sampled = Some(self.sample(self.sequence, logits)?);
            }
        }
        Ok(heard)
    }

    fn sample(&self, sequence: &Sequence, logits: &mut [f32]) -> Result<Sampled, SamplerError> {
        let position = sequence.tokens.len() as u64;
        let generated = sequence.tokens.len() - self.active.prompt_tokens;
        let step = Step { counts: &sequence.counts, position, generated, stop_ids: self.stop_ids };
        sample(logits, &sequence.params, &step)
    }
}
