//! The account of one request for tokens: what it took, how long, and how it ended. Dropping it closes the account, which
//! is also how a client that went away is noticed.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::admit::check_room;
use super::server::Server;
use crate::api::{Event, FinishReason, RequestId};
use crate::auth::{Caller, StreamPermit, TokenCharge};
use crate::metrics::{Metrics, Outcome};
use crate::openai::{ApiError, ErrorKind};

/// Who asks for what, as it came in.
#[derive(Clone)]
pub struct Meta {
    pub id: RequestId,
    /// The W3C `traceparent`.
    pub trace: Option<Arc<str>>,
    pub route: &'static str,
    pub started: Instant,
}

pub struct Scope {
    server: Arc<Server>,
    pub meta: Meta,
    pub caller: Caller,
    /// Choices that have to finish, all prompts together.
    choices: usize,
    finished: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    /// Times that a choice lost its pages, of those that are done.
    preemptions: u32,
    first_token: Option<Instant>,
    /// By choice.
    last_token: Vec<Option<Instant>>,
    end: Option<(Outcome, Option<ApiError>)>,
    charges: Vec<TokenCharge>,
    /// Its place among the requests that its key may have at once.
    permit: Option<StreamPermit>,
}

impl Scope {
    pub fn open(server: Arc<Server>, meta: Meta, caller: Caller) -> Scope {
        Scope {
            server,
            meta,
            caller,
            choices: 0,
            finished: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            preemptions: 0,
            first_token: None,
            last_token: Vec::new(),
            end: None,
            charges: Vec::new(),
            permit: None,
        }
    }

    /// Counts the request, and refuses it where nothing of its body has to be known for that: too many a minute, too many
    /// at once, a full queue.
    pub fn enter(&mut self) -> Result<(), ApiError> {
        self.caller.count_request(Instant::now())?;
        self.permit = Some(self.caller.open_stream()?);
        check_room(&self.server, &self.caller)
    }

    /// The request was accepted.
    pub fn admitted(&mut self, choices: usize, prompt_tokens: usize, charge: TokenCharge) {
        self.choices = choices;
        self.last_token = vec![None; choices];
        self.prompt_tokens = prompt_tokens;
        self.charges.push(charge);
    }

    /// Something happened to choice `choice` of all prompts together.
    pub fn on(&mut self, choice: usize, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Started { cached_tokens } => self.cached_tokens += cached_tokens,
            Event::Prompt { .. } => {}
            Event::Token(_) => {
                self.generated_tokens += 1;
                if self.first_token.is_none() {
                    self.first_token = Some(now);
                    Metrics::seconds(&self.server.entrance.metrics.first_token, now - self.meta.started);
                }
                if let Some(last) = self.last_token.get_mut(choice).and_then(|last| last.replace(now)) {
                    Metrics::seconds(&self.server.entrance.metrics.between_tokens, now - last);
                }
            }
            Event::Finished { reason, usage, timing, .. } => {
                self.finished += 1;
                self.preemptions += timing.preemptions;
                self.server.entrance.metrics.timing(timing, usage.generated_tokens);
                self.server.entrance.metrics.generated_tokens.record(usage.generated_tokens as f64);
                if self.finished == self.choices {
                    let outcome = match reason {
                        FinishReason::Length => Outcome::Length,
                        FinishReason::Stop(_) => Outcome::Stop,
                    };
                    self.end = Some((outcome, None));
                }
            }
            Event::Failed(_) => {}
        }
    }

    /// The request was refused or failed.
    pub fn fail(&mut self, error: &ApiError) {
        let ours = matches!(error.kind, ErrorKind::Internal | ErrorKind::Deadline | ErrorKind::Timeout);
        let outcome = if ours || self.choices > 0 { Outcome::Failed } else { Outcome::Refused };
        self.end.get_or_insert((outcome, Some(error.clone())));
    }

    fn line(&self, outcome: Outcome, error: Option<&ApiError>) -> Map<String, Value> {
        let now = Instant::now();
        let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        let mut line = Map::new();
        let mut put = |name: &str, value: Value| drop(line.insert(name.to_owned(), value));
        put("event", json!("request"));
        put("id", json!(&*self.meta.id.0));
        put("route", json!(self.meta.route));
        put("tenant", json!(&*self.caller.tenant.0));
        if let Some(key) = self.caller.key_id() {
            put("key", json!(key));
        }
        if let Some(trace) = &self.meta.trace {
            put("traceparent", json!(&**trace));
        }
        put("outcome", json!(outcome.word()));
        if let Some(error) = error {
            put("status", json!(error.kind.status().as_u16()));
            put("code", json!(error.kind.code().unwrap_or("invalid")));
            // Only our own words about the request's form; a message may quote what the client wrote in a field's place.
            put("param", json!(error.param));
            if error.kind == ErrorKind::Internal {
                put("error", json!(error.message));
            }
        }
        put("choices", json!(self.choices));
        put("prompt_tokens", json!(self.prompt_tokens));
        put("cached_tokens", json!(self.cached_tokens));
        put("generated_tokens", json!(self.generated_tokens));
        if self.preemptions > 0 {
            put("preemptions", json!(self.preemptions));
        }
        if let Some(first) = self.first_token {
            put("ttft_ms", json!(ms(first - self.meta.started)));
            let rest = (now - first).as_secs_f64();
            if self.generated_tokens > self.choices && rest > 0.0 {
                let rate = (self.generated_tokens - self.choices) as f64 / rest;
                put("tokens_per_second", json!((rate * 10.0).round() / 10.0));
            }
        }
        put("ms", json!(ms(now - self.meta.started)));
        line
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let (outcome, error) = self.end.take().unwrap_or((Outcome::Cancelled, None));
        let now = Instant::now();
        let used = (self.prompt_tokens + self.generated_tokens) as u64;
        for charge in &mut self.charges {
            charge.settle(used, now);
        }
        let metrics = &self.server.entrance.metrics;
        metrics.outcome(outcome);
        if let Some(error) = &error {
            metrics.refusal(error.kind.code().unwrap_or("invalid"));
        }
        if matches!(outcome, Outcome::Stop | Outcome::Length) {
            Metrics::seconds(&metrics.whole, now - self.meta.started);
            metrics.prompt_tokens.record(self.prompt_tokens as f64);
        }
        self.server.log.write(self.line(outcome, error.as_ref()));
    }
}
