//! What callers leave for the engine's thread, and what it lets them see. Locks are held for a few assignments.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::admission::Admitted;
use crate::api::{EngineLimits, Event, GenerateRequest, LoadSnapshot, Refusal, TenantId};
use crate::step::Gauges;

/// A request on its way to the thread.
pub struct Submission {
    pub admitted: Admitted,
    pub arrived: Instant,
    pub events: mpsc::Sender<Event>,
}

/// Who wants to be queued, with how many tokens.
#[derive(Clone, Copy, Debug)]
pub struct Entrant<'a> {
    pub tenant: &'a TenantId,
    pub shares_queue: bool,
    pub tokens: usize,
}

impl Entrant<'_> {
    pub fn of(request: &GenerateRequest) -> Entrant<'_> {
        let GenerateRequest { tenant, shares_queue, prompt, .. } = request;
        Entrant { tenant, shares_queue: *shares_queue, tokens: prompt.len() }
    }
}

/// What the thread finds when it looks.
pub struct Orders {
    pub new: Vec<Submission>,
    /// Nothing more is accepted; what is there has until then, where there is a time.
    pub ending: Option<Option<Instant>>,
}

/// How long the thread waits for something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    No,
    At(Duration),
    /// Until something comes, or somebody is told to end.
    Rest(Duration),
}

/// How the thread came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and nothing is left.
    Drained,
    /// It will answer nothing more; what it was is not to be trusted.
    Panicked,
}

/// Shared by the handles and the thread.
pub struct Inbox {
    ended: watch::Sender<Option<Ended>>,
    state: Mutex<State>,
    wake: Condvar,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct State {
    new: Vec<Submission>,
    /// Requests that have not started, `new` and those in the thread's hands.
    requests: usize,
    tokens: usize,
    /// The same of each tenant that has any.
    tenants: HashMap<TenantId, (usize, usize)>,
    draining: Option<Instant>,
    /// All handles are gone.
    abandoned: bool,
    stopped: bool,
    accepted: u64,
    refused: u64,
}

impl State {
    fn leave(&mut self, tenant: TenantId, tokens: usize) {
        self.requests -= 1;
        self.tokens -= tokens;
        if let Entry::Occupied(mut of_tenant) = self.tenants.entry(tenant) {
            let (requests, all) = *of_tenant.get();
            match requests {
                1 => _ = of_tenant.remove(),
                _ => *of_tenant.get_mut() = (requests - 1, all - tokens),
            }
        }
    }
}

struct Seen {
    gauges: Gauges,
    /// When the last step ended.
    at: Instant,
}

impl Inbox {
    pub fn new(now: Instant) -> Inbox {
        let seen = Mutex::new(Seen { gauges: Gauges::default(), at: now });
        Inbox { ended: watch::Sender::new(None), state: Mutex::default(), wake: Condvar::new(), seen }
    }

    /// Whether such a request would be queued now; counted where it is not.
    pub fn has_room(&self, entrant: Entrant, limits: &EngineLimits) -> Result<(), Refusal> {
        let mut state = lock(&self.state);
        let answer = self.room_in(&state, entrant, limits);
        state.refused += u64::from(answer.is_err());
        answer
    }

    /// Queues a request.
    pub fn put(&self, submission: Submission, limits: &EngineLimits) -> Result<(), Refusal> {
        let entrant = Entrant::of(&submission.admitted.request);
        let tokens = entrant.tokens;
        let mut state = lock(&self.state);
        if let Err(refusal) = self.room_in(&state, entrant, limits) {
            state.refused += 1;
            return Err(refusal);
        }
        state.accepted += 1;
        state.requests += 1;
        state.tokens += tokens;
        let of_tenant = state.tenants.entry(entrant.tenant.clone()).or_default();
        *of_tenant = (of_tenant.0 + 1, of_tenant.1 + tokens);
        state.new.push(submission);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// A request was refused for another reason.
    pub fn count_refusal(&self) {
        lock(&self.state).refused += 1;
    }

    /// Accepts nothing more.
    pub fn drain(&self, deadline: Instant) {
        let mut state = lock(&self.state);
        state.draining = Some(state.draining.map_or(deadline, |sooner| sooner.min(deadline)));
        drop(state);
        self.wake.notify_one();
    }

    /// The last handle is gone.
    pub fn abandon(&self) {
        lock(&self.state).abandoned = true;
        self.wake.notify_one();
    }

    /// What is new since the thread last looked; a request of each tenant in `started`, with so many tokens, has
    /// left the queue.
    pub fn take(&self, started: Vec<(TenantId, usize)>, wait: Wait) -> Orders {
        let mut state = lock(&self.state);
        started.into_iter().for_each(|(tenant, tokens)| state.leave(tenant, tokens));
        let nothing =
            |state: &mut State| state.new.is_empty() && state.draining.is_none() && !state.abandoned;
        let mut state = match wait {
            Wait::No => state,
            Wait::At(most) => self
                .wake
                .wait_timeout_while(state, most, |state| state.new.is_empty())
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state),
            Wait::Rest(most) => self
                .wake
                .wait_timeout_while(state, most, nothing)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state),
        };
        let ending = (state.draining.is_some() || state.abandoned).then_some(state.draining);
        Orders { new: std::mem::take(&mut state.new), ending }
    }

    /// The thread shows how it is.
    pub fn show(&self, gauges: Gauges, at: Instant) {
        *lock(&self.seen) = Seen { gauges, at };
    }

    /// The thread ends; what was left for it is dropped, and its channels are closed.
    pub fn stop(&self, how: Ended) {
        let mut state = lock(&self.state);
        state.stopped = true;
        (state.requests, state.tokens) = (0, 0);
        state.tenants.clear();
        state.new.clear();
        drop(state);
        self.ended.send_replace(Some(how));
    }

    /// Waits for the thread's end.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        let how = ended.wait_for(Option::is_some).await;
        // The sender lives as long as we do.
        how.ok().and_then(|how| *how).unwrap_or(Ended::Panicked)
    }

    pub fn load(&self, now: Instant) -> LoadSnapshot {
        // In this order: who has left the queue was shown before that, so that nobody is in neither.
        let state = lock(&self.state);
        let Seen { gauges, at } = *lock(&self.seen);
        let counters = gauges.counters;
        LoadSnapshot {
            alive: !state.stopped,
            draining: state.draining.is_some(),
            queued_requests: state.requests,
            queued_tokens: state.tokens,
            waiting: gauges.waiting,
            running: gauges.running,
            paused: gauges.paused,
            pages_total: gauges.pages_total,
            pages_used: gauges.pages_used,
            pages_cached: gauges.pages_cached,
            requests: state.accepted,
            refused: state.refused,
            cancelled: counters.cancelled,
            failed: counters.failed,
            finished_stop: counters.finished_stop,
            finished_length: counters.finished_length,
            prompt_tokens: counters.prompt_tokens,
            generated_tokens: counters.generated_tokens,
            prefix_queries: counters.prefix_queries,
            prefix_hits: counters.prefix_hits,
            preemptions: counters.preemptions,
            steps: counters.steps,
            failed_steps: counters.failed_steps,
            step_time: counters.step_time,
            last_step: counters.last_step,
            last_step_age: now.saturating_duration_since(at),
        }
    }

    fn room_in(&self, state: &State, entrant: Entrant, limits: &EngineLimits) -> Result<(), Refusal> {
        if state.stopped {
            return Err(Refusal::Stopped);
        }
        if state.draining.is_some() {
            return Err(Refusal::Draining);
        }
        let retry_after = |requests, tokens| lock(&self.seen).gauges.pace.retry_after(requests, tokens);
        let State { requests, tokens, .. } = *state;
        // A prompt that is longer than the queue may be is let in when nobody else waits.
        let too_many = requests >= limits.queue_requests_max;
        let too_long = requests > 0 && tokens + entrant.tokens > limits.queue_tokens_max;
        if too_many || too_long {
            let retry_after = retry_after(requests, tokens);
            return Err(Refusal::QueueFull { requests, tokens, retry_after });
        }
        let (own_requests, own_tokens) = state.tenants.get(entrant.tenant).copied().unwrap_or_default();
        // What it would have, and all would have with it: the rest has to be as much.
        let too_many = own_requests + 1 + requests + 1 > limits.queue_requests_max;
        let too_long = own_tokens + tokens + 2 * entrant.tokens > limits.queue_tokens_max;
        if entrant.shares_queue && own_requests > 0 && (too_many || too_long) {
            return Err(Refusal::TenantQueueFull {
                requests: own_requests,
                tokens: own_tokens,
                retry_after: retry_after(own_requests, own_tokens),
            });
        }
        Ok(())
    }
}

/// A lock whose holder panicked is taken all the same: only whole values are ever written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
