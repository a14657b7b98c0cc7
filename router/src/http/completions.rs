//! `POST /v1/completions`: one or several prompts, each with its choices.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt;
use gaterail_model::sampler::SamplingParams;
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Head, json_response, reason_word, refuse, stop_reason};
use super::body;
use super::echo::{Echo, Reading};
use super::layers::caller;
use super::logprobs::{CompletionLogprobs, TokenNames};
use super::sse::{self, Chunks, Script};
use super::usage::UsageBody;
use crate::api::{Event, Piece, PromptLogprob};
use crate::openai::{ApiError, CompletionRequest, Streaming};
use crate::serving::admit::{check_room, failed};
use crate::serving::{Admission, Scope, Server, Work, events};

pub async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (caller, meta) = caller(&request);
    let mut scope = Scope::open(server.clone(), meta, caller);
    match accept(&server, request, &mut scope).await {
        Ok(accepted) => match accepted.streaming {
            Some(streaming) => stream(&server, accepted, streaming, scope),
            None => whole(accepted, scope).await,
        },
        Err(error) => refuse(scope, error),
    }
}

struct Accepted {
    head: Head,
    admission: Admission,
    writer: Writer,
    streaming: Option<Streaming>,
}

async fn accept(server: &Arc<Server>, request: Request, scope: &mut Scope) -> Result<Accepted, ApiError> {
    let request = body::unless(request, scope.enter())?;
    let asked = body::parsed(server, request, CompletionRequest::parse).await?;
    let CompletionRequest { generation, prompts, echo, add_special_tokens } = asked;
    let served = &server.served;
    let model = served.check_name(generation.model.as_deref())?.to_owned();
    check_room(server, &scope.caller)?;
    let names = TokenNames {
        tokenizer: served.tokenizer.clone(),
        as_ids: generation.tokens_as_ids,
        skip_special: generation.skip_special,
    };
    let logprobs = generation.sampling.logprobs.is_some();
    let reading = Reading { served, names: &names, add_special: add_special_tokens, echo, logprobs };
    let (mut tokens, mut echoes) = (Vec::with_capacity(prompts.len()), Vec::new());
    let several = prompts.len() > 1;
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = if several { format!("prompt[{index}]") } else { "prompt".to_owned() };
        let (ids, echo) = reading.read(&param, prompt).await?;
        tokens.push(ids);
        echoes.extend(echo);
    }
    let streaming = generation.streaming;
    let prompt_logprobs = generation.sampling.logprobs.filter(|_| echo);
    let work = Work { prompts: tokens, generation, prompt_logprobs, deadline: None };
    let admission = work.admit(server, scope)?;
    let writer = Writer::new(&admission, names, echoes);
    Ok(Accepted { head: Head::new("cmpl", &model), admission, writer, streaming })
}

/// Turns events into the text and the logprobs of their choices.
struct Writer {
    names: TokenNames,
    /// Of every prompt, or of none.
    echoes: Vec<Echo>,
    params: SamplingParams,
    /// Choices of one prompt.
    choices: usize,
    /// Of all prompts, as far as they came.
    prompt_logprobs: Vec<Vec<PromptLogprob>>,
    logprobs: Vec<CompletionLogprobs>,
    begun: Vec<bool>,
}

impl Writer {
    fn new(admission: &Admission, names: TokenNames, echoes: Vec<Echo>) -> Writer {
        let prompts = admission.tickets.len();
        let all = prompts * admission.choices;
        Writer {
            names,
            echoes,
            params: admission.params.clone(),
            choices: admission.choices,
            prompt_logprobs: vec![Vec::new(); prompts],
            logprobs: vec![CompletionLogprobs::default(); all],
            begun: vec![false; all],
        }
    }

    /// The beginning of a choice, once: the prompt where it is echoed, with its logprobs, which are all there by then.
    fn begin(&mut self, choice: usize) -> String {
        if std::mem::replace(&mut self.begun[choice], true) {
            return String::new();
        }
        let prompt = choice / self.choices;
        let Some(echo) = self.echoes.get(prompt) else { return String::new() };
        if self.params.logprobs.is_some() {
            let written = &mut self.logprobs[choice];
            let mut widths = echo.widths.iter().copied();
            if let Some(first) = echo.first {
                written.first(&self.names, first, widths.next().unwrap_or(0));
            }
            for (token, width) in self.prompt_logprobs[prompt].iter().zip(widths) {
                written.prompt(&self.names, token, width);
            }
        }
        echo.text.clone()
    }

    fn piece(&mut self, choice: usize, piece: &Piece) -> String {
        let begin = self.begin(choice);
        if self.params.logprobs.is_some() {
            self.logprobs[choice].piece(&self.names, piece);
        }
        begin + &piece.text
    }

    fn take_logprobs(&mut self, choice: usize) -> Option<Value> {
        self.params.logprobs.map(|_| self.logprobs[choice].take())
    }
}

async fn whole(accepted: Accepted, mut scope: Scope) -> Response {
    let Accepted { head, admission, mut writer, .. } = accepted;
    let Admission { tickets, params, choices, prompt_tokens } = admission;
    let mut texts = vec![String::new(); writer.begun.len()];
    let mut reasons = vec![None; texts.len()];
    let mut usage = UsageBody::new(prompt_tokens);
    let mut answers = events(tickets, choices);
    while let Some((choice, event)) = answers.next().await {
        scope.on(choice, &event);
        match event {
            Event::Started { cached_tokens } => usage.cached(cached_tokens),
            Event::Prompt { logprobs, .. } => writer.prompt_logprobs[choice / choices].extend(logprobs),
            Event::Token(piece) => {
                usage.generated(1);
                texts[choice].push_str(&writer.piece(choice, &piece));
            }
            Event::Finished { reason, .. } => {
                texts[choice].push_str(&writer.begin(choice));
                reasons[choice] = Some(reason);
            }
            Event::Failed(failure) => return refuse(scope, failed(&failure)),
        }
    }
    let body = |(index, text): (usize, String)| {
        json!({
            "index": index,
            "text": text,
            "logprobs": writer.take_logprobs(index),
            "finish_reason": reasons[index].as_ref().map(reason_word),
            "stop_reason": stop_reason(reasons[index].as_ref(), &params),
        })
    };
    let choices: Vec<Value> = texts.into_iter().enumerate().map(body).collect();
    let Head { id, created, model } = head;
    json_response(&json!({
        "id": id, "object": "text_completion", "created": created, "model": model,
        "choices": choices, "usage": usage,
    }))
}

fn stream(server: &Arc<Server>, accepted: Accepted, streaming: Streaming, scope: Scope) -> Response {
    let Accepted { head, admission, writer, .. } = accepted;
    let usage = UsageBody::new(admission.prompt_tokens);
    let script = CompletionScript { head, writer, streaming, usage };
    sse::response(events(admission.tickets, admission.choices), script, scope, server.options.keep_alive)
}

struct CompletionScript {
    head: Head,
    writer: Writer,
    streaming: Streaming,
    usage: UsageBody,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChunkChoice],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    text: String,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

impl CompletionScript {
    fn push(&self, choices: &[ChunkChoice], last: bool, out: &mut Chunks) {
        let Head { id, created, model } = &self.head;
        let Streaming { include_usage, continuous_usage } = self.streaming;
        let usage = match (include_usage, continuous_usage || last) {
            (_, true) => Some(Some(self.usage)),
            (true, false) => Some(None),
            (false, false) => None,
        };
        out.push(&Chunk { id, object: "text_completion", created: *created, model, choices, usage });
    }
}

impl Script for CompletionScript {
    fn on(&mut self, choice: usize, event: Event, out: &mut Chunks) {
        match event {
            Event::Started { cached_tokens } => self.usage.cached(cached_tokens),
            Event::Prompt { logprobs, .. } => {
                self.writer.prompt_logprobs[choice / self.writer.choices].extend(logprobs);
            }
            Event::Token(piece) => {
                self.usage.generated(1);
                let text = self.writer.piece(choice, &piece);
                let logprobs = self.writer.take_logprobs(choice);
                if !text.is_empty() || logprobs.is_some() {
                    let delta =
                        ChunkChoice { index: choice, text, logprobs, finish_reason: None, stop_reason: None };
                    self.push(&[delta], false, out);
                }
            }
            Event::Finished { reason, .. } => {
                let begun = self.writer.begun[choice];
                let text = self.writer.begin(choice);
                let logprobs = if begun { None } else { self.writer.take_logprobs(choice) };
                let cause = stop_reason(Some(&reason), &self.writer.params);
                let last = ChunkChoice {
                    index: choice,
                    text,
                    logprobs,
                    finish_reason: Some(reason_word(&reason)),
                    stop_reason: Some(cause).filter(|cause| !cause.is_null()),
                };
                self.push(&[last], false, out);
            }
            Event::Failed(_) => {}
        }
    }

    fn end(&mut self, out: &mut Chunks) {
        if self.streaming.include_usage {
            self.push(&[], true, out);
        }
    }
}
