//! A request that is being answered, and the sequence of each of its choices.

use std::time::{Duration, Instant};

use gaterail_model::sampler::{SamplingParams, TokenCounts};
use gaterail_model::text::AnswerText;
use tokio::sync::mpsc;

use crate::admission::{Admitted, choice_seed, has_penalties};
use crate::api::{Event, RequestId, Timing, Usage};
use crate::kv::{Hit, Salt, Table, Tail};
use crate::schedule::TenantSlot;

/// Events that one choice may have in one step, and those that a request has beside them.
const EVENTS_PER_CHOICE: usize = 3;
const EVENTS_BESIDE: usize = 2;

/// Which sequence: requests count up in the order of their arrival, so that the smallest is the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    pub request: u64,
    pub choice: u32,
}

/// A request, from the queue to its end.
pub struct Active {
    pub id: RequestId,
    pub tenant: TenantSlot,
    pub salt: Salt,
    pub deadline: Option<Instant>,
    pub prompt_logprobs: Option<u8>,
    pub prompt_tokens: usize,
    pub max_generated: usize,
    pub events: mpsc::Sender<Event>,
    pub arrived: Instant,
    pub started: Option<Instant>,
    pub cached_tokens: usize,
    /// Since when its events are not taken.
    pub paused: Option<Instant>,
    /// Choices that are not done.
    pub open: usize,
    /// The KV of the prompt is there: from then on all choices run.
    pub prompt_read: bool,
    /// What its choices find of the prompt beside what the cache has.
    pub tails: Vec<Tail>,
}

/// One choice.
pub struct Sequence {
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    /// Positions whose KV is there.
    pub computed: usize,
    /// Its pages; those of a sequence that waits are none.
    pub table: Table,
    /// What the cache had of it when it was last looked at, while it waits.
    pub hit: Option<Hit>,
    /// The request's, with the choice's own seed.
    pub params: SamplingParams,
    pub counts: TokenCounts,
    pub text: AnswerText,
    /// The token of the prompt whose log-probability is sent next.
    pub next_logprob: usize,
    /// Positions that its tenant has been charged for.
    pub charged: usize,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub preemptions: u32,
}

/// Events that have room in the channel of a request with `n` choices, when `asked` are wanted.
pub fn events_room(asked: usize, n: u32) -> usize {
    asked.max(2 * (EVENTS_PER_CHOICE * n as usize + EVENTS_BESIDE))
}

impl Active {
    /// A request, and the sequence of each of its choices.
    pub fn new(
        admitted: Admitted,
        tenant: TenantSlot,
        arrived: Instant,
        events: mpsc::Sender<Event>,
    ) -> (Active, Vec<Sequence>) {
        let Admitted { request, max_generated, text, counts } = admitted;
        let salt = Salt { tenant: request.tenant, extra: request.cache_salt };
        let sequence = |choice: u32| Sequence {
            tokens: request.prompt.clone(),
            computed: 0,
            table: Table::new(&salt),
            hit: None,
            params: SamplingParams {
                seed: choice_seed(request.params.seed, choice),
                ..request.params.clone()
            },
            counts: counts.clone(),
            text: text.clone(),
            // Only the first choice reads the prompt for all.
            next_logprob: if choice == 0 { 1 } else { request.prompt.len() },
            charged: 0,
            first_token: None,
            last_token: None,
            preemptions: 0,
        };
        let sequences: Vec<Sequence> = (0..request.n).map(sequence).collect();
        let active = Active {
            id: request.id,
            tenant,
            salt: salt.clone(),
            deadline: request.deadline,
            prompt_logprobs: request.prompt_logprobs,
            prompt_tokens: request.prompt.len(),
            max_generated,
            events,
            arrived,
            started: None,
            cached_tokens: 0,
            paused: None,
            open: sequences.len(),
            prompt_read: false,
            tails: Vec::new(),
        };
        (active, sequences)
    }

    /// Whether all that one step may say has room.
    pub fn has_room(&self) -> bool {
        self.events.capacity() >= EVENTS_PER_CHOICE * self.open + EVENTS_BESIDE
    }

    /// Sends an event. Room was made sure of before the step; a client that is gone is noticed before the next one.
    pub fn send(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// The tokens of a sequence whose KV may come out of the cache: all but the one whose logits are wanted, and none
    /// whose log-probability is still to be sent.
    pub fn cacheable(&self, sequence: &Sequence) -> usize {
        let before_last = sequence.tokens.len() - 1;
        match self.wants_every_logit(sequence) {
            true => before_last.min(sequence.next_logprob - 1),
            false => before_last,
        }
    }

    /// Whether the row at `position` says how likely the next token of the prompt was.
    pub fn wants_logprob(&self, sequence: &Sequence, position: usize) -> bool {
        self.wants_every_logit(sequence)
            && position + 1 >= sequence.next_logprob
            && position + 1 < self.prompt_tokens
    }

    /// Whether the logits of the row at `position` are wanted: for that, or to sample what follows the last token.
    pub fn wants_logits(&self, sequence: &Sequence, position: usize) -> bool {
        let samples = position + 1 == sequence.tokens.len() && self.max_generated > 0;
        samples || self.wants_logprob(sequence, position)
    }

    /// Whether logits of every row are wanted.
    pub fn wants_every_logit(&self, sequence: &Sequence) -> bool {
        self.prompt_logprobs.is_some() && sequence.next_logprob < self.prompt_tokens
    }

    pub fn usage(&self, sequence: &Sequence) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            generated_tokens: sequence.tokens.len() - self.prompt_tokens,
        }
    }

    pub fn timing(&self, sequence: &Sequence, now: Instant) -> Timing {
        let started = self.started.unwrap_or(now);
        let first = sequence.first_token.unwrap_or(now);
        let last = sequence.last_token.unwrap_or(first);
        Timing {
            queued: started.saturating_duration_since(self.arrived),
            prefill: first.saturating_duration_since(started),
            decode: last.saturating_duration_since(first),
            preemptions: sequence.preemptions,
        }
    }

    /// How long its events have not been taken.
    pub fn paused_for(&self, now: Instant) -> Duration {
        self.paused.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Sequence {
    /// Takes a token that was sampled.
    pub fn push(&mut self, token: u32, now: Instant) {
        self.tokens.push(token);
        if has_penalties(&self.params) {
            self.counts.push(token);
        }
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Tokens whose KV is not there.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }
}
