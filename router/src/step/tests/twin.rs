//! A model of hashes, and what a request gives alone.

use std::collections::BTreeMap;

use gaterail_kernels::KernelError;
use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::sampler::{
    FinishReason, SamplingParams, Step, StopCause, TokenCounts, logprob_of, sample,
};
use gaterail_model::walk::{Batch, StepError};

use crate::admission::choice_seed;
use crate::api::*;
use crate::model::Model;

pub(super) const VOCAB: usize = 40;
pub(super) const STOP: u32 = 1;
/// A token whose rows have NaN logits.
pub(super) const POISON: u32 = 39;

pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// What KV stores for a token behind `before`.
pub(super) fn stored(before: u64, token: u32) -> u64 {
    mix(before, u64::from(token) + 1)
}

pub(super) fn logits_of(history: impl Iterator<Item = u64>, token: u32) -> Vec<f32> {
    let seen = history.fold(3, mix);
    let logit = |v: usize| (mix(seen, v as u64) >> 40) as f32 / (1 << 21) as f32 - 4.0;
    let value = |v: usize| match (token, v as u32) {
        (POISON, _) => f32::NAN,
        (_, POISON) => f32::NEG_INFINITY,
        _ => logit(v),
    };
    (0..VOCAB).map(value).collect()
}

/// A model of hashes.
pub(super) struct Twin {
    pub(super) kv: Vec<u64>,
    pub(super) rows_max: usize,
    pub(super) logits: Vec<f32>,
    /// Steps that fail, by number.
    pub(super) failing: Vec<u64>,
    pub(super) steps: u64,
    pub(super) rows: u64,
    /// Of those the ones at positions below this.
    pub(super) below: (u32, u64),
}

impl Model for Twin {
    fn architecture(&self) -> &str {
        "Twin"
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn context(&self) -> usize {
        1 << 20
    }

    fn pages(&self) -> usize {
        self.kv.len() / PAGE_POSITIONS
    }

    fn rows_max(&self) -> usize {
        self.rows_max
    }

    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        self.steps += 1;
        self.rows += batch.rows.len() as u64;
        let (below, count) = &mut self.below;
        *count += batch.rows.iter().filter(|row| row.position < *below).count() as u64;
        assert!(batch.rows.len() <= self.rows_max);
        self.logits.clear();
        for copy in &batch.copies {
            let from = copy.from as usize * PAGE_POSITIONS;
            self.kv.copy_within(from..from + PAGE_POSITIONS, copy.to as usize * PAGE_POSITIONS);
        }
        let slot = |table: &[u32], position: usize| {
            table[position / PAGE_POSITIONS] as usize * PAGE_POSITIONS + position % PAGE_POSITIONS
        };
        for (index, row) in batch.rows.iter().enumerate() {
            let (table, position) = (&batch.tables[row.sequence as usize], row.position as usize);
            let before = if position == 0 { 0 } else { self.kv[slot(table, position - 1)] };
            self.kv[slot(table, position)] = stored(before, row.token);
            if batch.logits.contains(&(index as u32)) {
                let history = (0..=position).map(|position| self.kv[slot(table, position)]);
                self.logits.extend(logits_of(history, row.token));
            }
        }
        if self.failing.contains(&self.steps) {
            return Err(KernelError::Device { op: "twin", detail: "it was told to fail".to_string() }.into());
        }
        Ok(&mut self.logits)
    }
}

/// A token, the bits of its log-probability, and how many alternatives came with it.
pub(super) type Heard = (u32, Option<u32>, usize);

/// What a request gives alone: its choices' tokens with log-probabilities, and those of its prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) prompt: Vec<PromptLogprob>,
    pub(super) choices: BTreeMap<u32, (Vec<Heard>, Option<FinishReason>)>,
}

pub(super) fn alone(request: &GenerateRequest, context: usize) -> Answer {
    let mut answer = Answer::default();
    let history = |tokens: &[u32]| {
        let mut kv = Vec::new();
        tokens.iter().for_each(|&token| kv.push(stored(kv.last().copied().unwrap_or(0), token)));
        kv
    };
    if let Some(count) = request.prompt_logprobs {
        for next in 1..request.prompt.len() {
            let kv = history(&request.prompt[..next]);
            let logits = logits_of(kv.into_iter(), request.prompt[next - 1]);
            let token = request.prompt[next];
            let (logprob, top) = logprob_of(&logits, token, count).unwrap();
            answer.prompt.push(PromptLogprob { token, logprob, top });
        }
    }
    let most = request.max_tokens.unwrap_or(context - request.prompt.len());
    for choice in 0..request.n {
        let seed = choice_seed(request.params.seed, choice);
        let params = SamplingParams { seed, ..request.params.clone() };
        let (mut tokens, mut said, mut reason) = (request.prompt.clone(), Vec::new(), None);
        let mut counts = TokenCounts::new(&request.prompt);
        while reason.is_none() && said.len() < most {
            let mut logits = logits_of(history(&tokens).into_iter(), tokens[tokens.len() - 1]);
            let step = Step {
                counts: &counts,
                position: tokens.len() as u64,
                generated: said.len(),
                stop_ids: &[STOP],
            };
            let sampled = sample(&mut logits, &params, &step).unwrap();
            said.push((sampled.token, sampled.logprob.map(f32::to_bits), sampled.top.len()));
            counts.push(sampled.token);
            tokens.push(sampled.token);
            if sampled.token == STOP && !params.ignore_eos && said.len() >= params.min_tokens {
                reason = Some(FinishReason::Stop(StopCause::Token(STOP)));
            }
        }
        answer.choices.insert(choice, (said, reason.or(Some(FinishReason::Length))));
    }
    answer
}
