//! From a checked request to the engine, and what comes back: every prompt is a ticket, all choices are counted through.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, StreamExt};

use super::scope::Scope;
use super::server::Server;
use crate::api::{Event, Failure, GenerateRequest, Refusal};
use crate::auth::Caller;
use crate::engine::Ticket;
use crate::openai::{ApiError, ErrorKind, Generation, RequestLimits};
use gaterail_model::sampler::{SamplerError, SamplingParams};

/// What a client of a full server is told to wait at least.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is to be generated, with its prompts in tokens.
pub struct Work {
    pub prompts: Vec<Vec<u32>>,
    pub generation: Generation,
    /// Log-probabilities of the prompts' own tokens, with so many others.
    pub prompt_logprobs: Option<u8>,
    /// The client's own deadline.
    pub deadline: Option<Instant>,
}

/// An accepted request.
pub struct Admission {
    pub tickets: Vec<Ticket>,
    /// As it is sampled; the stop strings of an answer are found here by their place.
    pub params: SamplingParams,
    /// Choices of every prompt.
    pub choices: usize,
    pub prompt_tokens: usize,
}

/// Refuses before any work on a text what the engine would refuse after it.
pub fn check_room(server: &Server, caller: &Caller) -> Result<(), ApiError> {
    let room = server.served.engine.has_room(&caller.tenant, caller.shares_queue);
    room.map_err(|refusal| of_server(server, refusal))
}

/// Events of all choices of all prompts: choice c of prompt p is number p · choices + c.
pub type Answers = BoxStream<'static, (usize, Event)>;

impl Work {
    /// Asks the engine, for a request that has entered. All prompts are taken, or none.
    pub fn admit(self, server: &Server, scope: &mut Scope) -> Result<Admission, ApiError> {
        let now = Instant::now();
        self.check_logprobs(server.served.context(), &server.options.requests)?;
        let generation = self.generation;
        let choices = generation.choices as usize;
        let prompt_tokens: usize = self.prompts.iter().map(Vec::len).sum();
        // More than the context is refused by the engine; it must not run up a debt before.
        let longest = generation.max_tokens.unwrap_or(0).min(server.served.context());
        let asked = longest.saturating_mul(choices).saturating_mul(self.prompts.len());
        let charge = scope.caller.charge_tokens(prompt_tokens.saturating_add(asked) as u64, now)?;
        let params = generation.sampling.resolve(&server.served.defaults, random_seed());
        let deadline = now + server.options.request_time_max;
        let salt: Option<Arc<str>> = generation.cache_salt.map(Into::into);
        let mut tickets = Vec::with_capacity(self.prompts.len());
        for prompt in self.prompts {
            let request = GenerateRequest {
                shares_queue: scope.caller.shares_queue,
                n: generation.choices,
                max_tokens: generation.max_tokens,
                prompt_logprobs: self.prompt_logprobs,
                skip_special: generation.skip_special,
                include_stop: generation.include_stop,
                deadline: Some(self.deadline.map_or(deadline, |own| own.min(deadline))),
                cache_salt: salt.clone(),
                trace: scope.meta.trace.clone(),
                ..GenerateRequest::new(
                    scope.meta.id.clone(),
                    scope.caller.tenant.clone(),
                    prompt,
                    params.clone(),
                )
            };
            // Tickets that were given out already are cancelled when they are dropped here.
            let ticket = server.served.engine.submit(request);
            tickets.push(ticket.map_err(|refusal| of_server(server, refusal))?);
        }
        scope.admitted(choices * tickets.len(), prompt_tokens, charge);
        Ok(Admission { tickets, params, choices, prompt_tokens })
    }
}

impl Work {
    /// Refuses log-probabilities that no memory could hold.
    fn check_logprobs(&self, context: usize, limits: &RequestLimits) -> Result<(), ApiError> {
        let choices = self.generation.choices as usize;
        let read: usize = self.prompts.iter().map(Vec::len).sum();
        if let Some(others) = self.prompt_logprobs {
            // Each choice writes all of them.
            let entries = entries(read, choices, others);
            let max = limits.prompt_logprobs_max;
            if entries > max {
                let message = format!(
                    "echo with logprobs would write {entries} log-probabilities (prompt tokens x n x (logprobs + 1)); at most {max} go in one answer"
                );
                return Err(ApiError::invalid("logprobs", message));
            }
        }
        // A stream holds only what its client has not taken.
        let Some(others) = self.generation.sampling.logprobs.filter(|_| self.generation.streaming.is_none())
        else {
            return Ok(());
        };
        let asked = self.generation.max_tokens;
        let most = |prompt: &Vec<u32>| asked.unwrap_or(usize::MAX).min(context.saturating_sub(prompt.len()));
        let entries = entries(self.prompts.iter().map(most).sum(), choices, others);
        let max = limits.logprobs_max;
        if entries <= max {
            return Ok(());
        }
        let missing = if asked.is_none() { ", which is not set," } else { "" };
        let message = format!(
            "logprobs of up to {entries} tokens and alternatives were asked for (prompts x n x max_tokens{missing} x (top logprobs + 1)); at most {max} go in one answer that is not a stream: set a smaller max_tokens, or stream: true"
        );
        Err(ApiError::invalid("max_tokens", message))
    }
}

/// Log-probabilities of so many tokens in every choice, with the others beside each.
fn entries(tokens: usize, choices: usize, others: u8) -> usize {
    tokens.saturating_mul(choices).saturating_mul(usize::from(others) + 1)
}

/// The events of several tickets as they come. One that ends before its choices are finished yields a failure.
pub fn events(tickets: Vec<Ticket>, choices: usize) -> Answers {
    let of_one = |(prompt, ticket): (usize, Ticket)| {
        stream::unfold((Some(ticket), choices), move |(ticket, left)| async move {
            let mut ticket = ticket?;
            if left == 0 {
                return None;
            }
            let first = prompt * choices;
            match ticket.next().await {
                Some(event) => {
                    let (choice, left) = match &event {
                        Event::Token(piece) => (piece.choice, left),
                        Event::Finished { choice, .. } => (*choice, left - 1),
                        Event::Failed(_) => (0, 0),
                        Event::Started { .. } | Event::Prompt { .. } => (0, left),
                    };
                    Some(((first + choice as usize, event), (Some(ticket), left)))
                }
                None => {
                    let stopped = Failure::Step { detail: "the engine has stopped".into() };
                    Some(((first, Event::Failed(stopped)), (None, 0)))
                }
            }
        })
        .boxed()
    };
    stream::select_all(tickets.into_iter().enumerate().map(of_one)).boxed()
}

fn of_server(server: &Server, refusal: Refusal) -> ApiError {
    match refusal {
        // It has stopped because the server does.
        Refusal::Stopped if server.is_retired() => draining(),
        refusal => refused(refusal),
    }
}

/// What the engine did not take.
pub fn refused(refusal: Refusal) -> ApiError {
    let message = refusal.to_string();
    match refusal {
        Refusal::QueueFull { retry_after, .. } => {
            ApiError::new(ErrorKind::Overloaded, message).retry_after(retry_after.max(RETRY_AFTER))
        }
        // Its own doing, so that it is told what whoever asks too often is told.
        Refusal::TenantQueueFull { retry_after, .. } => {
            ApiError::new(ErrorKind::RateLimit, message).retry_after(retry_after.max(RETRY_AFTER))
        }
        Refusal::TooLong { prompt, max } => too_long(format!(
            "the model's context is {max} tokens, but the prompt has {prompt}, which leaves no room for an answer"
        )),
        Refusal::NoRoom { prompt, asked, max } => too_long(format!(
            "the model's context is {max} tokens, but {} were asked for: {prompt} of the prompt and {asked} of the answer",
            prompt + asked
        )),
        Refusal::Empty => ApiError::invalid("prompt", message),
        Refusal::Token { .. } => ApiError::invalid("prompt", message),
        Refusal::Choices { .. } => ApiError::invalid("n", message),
        Refusal::NoTokenizer | Refusal::Text(_) => ApiError::invalid("stop", message),
        Refusal::Sampler(error) => sampler_error(&error),
        Refusal::Draining => draining(),
        Refusal::Stopped => ApiError::internal(message),
    }
}

/// What was accepted and failed.
pub fn failed(failure: &Failure) -> ApiError {
    let message = failure.to_string();
    match failure {
        Failure::Deadline => ApiError::new(ErrorKind::Deadline, message),
        Failure::Sampler(error) => sampler_error(error),
        Failure::Step { .. } | Failure::Text { .. } => ApiError::internal(message),
        Failure::Stalled { .. } => ApiError::new(ErrorKind::Timeout, message),
        Failure::Draining => draining(),
    }
}

pub fn draining() -> ApiError {
    ApiError::new(ErrorKind::Draining, "the server is shutting down").retry_after(RETRY_AFTER)
}

fn too_long(message: String) -> ApiError {
    ApiError::new(ErrorKind::ContextLength, message)
}

fn sampler_error(error: &SamplerError) -> ApiError {
    let message = error.to_string();
    match error {
        SamplerError::OutOfRange { field, .. }
        | SamplerError::TooMany { field, .. }
        | SamplerError::UnknownToken { field, .. } => ApiError::invalid(*field, message),
        SamplerError::NothingLeft => ApiError::invalid("logit_bias", message),
        SamplerError::BadLogits | SamplerError::Empty => ApiError::internal(message),
    }
}

/// For requests without a seed. Not a secret: a counter of the clock would do, where the system has no random numbers.
fn random_seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| since.as_nanos() as u64)
    })
}
