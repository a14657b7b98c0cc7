//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt;
use gaterail_model::sampler::SamplingParams;
use gaterail_model::text::ChatInput;
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Head, json_response, reason_word, refuse, stop_reason};
use super::body;
use super::layers::caller;
use super::logprobs::TokenNames;
use super::sse::{self, Chunks, Script};
use super::usage::UsageBody;
use crate::api::{Event, FinishReason, Piece};
use crate::openai::{ApiError, ChatRequest, Streaming};
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

/// A request that the engine works on.
struct Accepted {
    head: Head,
    admission: Admission,
    names: TokenNames,
    streaming: Option<Streaming>,
}

async fn accept(server: &Arc<Server>, request: Request, scope: &mut Scope) -> Result<Accepted, ApiError> {
    let request = body::unless(request, scope.enter())?;
    let chat = body::parsed(server, request, ChatRequest::parse).await?;
    let served = &server.served;
    let model = served.check_name(chat.generation.model.as_deref())?.to_owned();
    check_room(server, &scope.caller)?;
    let input = ChatInput {
        messages: chat.messages,
        add_generation_prompt: chat.add_generation_prompt,
        continue_final_message: chat.continue_final_message,
        extra: chat.template_arguments,
        ..ChatInput::default()
    };
    let prompt = served.encode_chat(input).await?;
    let names = TokenNames {
        tokenizer: served.tokenizer.clone(),
        as_ids: chat.generation.tokens_as_ids,
        skip_special: chat.generation.skip_special,
    };
    let streaming = chat.generation.streaming;
    let work =
        Work { prompts: vec![prompt], generation: chat.generation, prompt_logprobs: None, deadline: None };
    let admission = work.admit(server, scope)?;
    Ok(Accepted { head: Head::new("chatcmpl", &model), admission, names, streaming })
}

/// One choice while it grows.
#[derive(Default)]
struct Choice {
    text: String,
    /// With their log-probabilities, where those are wanted: written out they take a hundred times the room.
    pieces: Vec<Piece>,
    reason: Option<FinishReason>,
}

#[derive(Serialize)]
struct WholeChoice<'a> {
    index: usize,
    message: Value,
    logprobs: Option<WholeLogprobs<'a>>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
}

#[derive(Serialize)]
struct WholeLogprobs<'a> {
    content: Entries<'a>,
    refusal: (),
}

/// Each entry is made when it is written, and forgotten.
struct Entries<'a> {
    names: &'a TokenNames,
    pieces: &'a [Piece],
}

impl Serialize for Entries<'_> {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(self.pieces.iter().map(|piece| self.names.chat(piece)))
    }
}

impl Choice {
    fn written<'a>(
        &'a self,
        index: usize,
        names: &'a TokenNames,
        params: &SamplingParams,
    ) -> WholeChoice<'a> {
        let content = Entries { names, pieces: &self.pieces };
        WholeChoice {
            index,
            message: json!({"role": "assistant", "content": self.text, "refusal": null}),
            logprobs: params.logprobs.map(|_| WholeLogprobs { content, refusal: () }),
            finish_reason: self.reason.as_ref().map(reason_word),
            stop_reason: stop_reason(self.reason.as_ref(), params),
        }
    }
}

#[derive(Serialize)]
struct WholeAnswer<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<WholeChoice<'a>>,
    usage: UsageBody,
}

async fn whole(accepted: Accepted, mut scope: Scope) -> Response {
    let Accepted { head, admission, names, .. } = accepted;
    let Admission { tickets, params, choices, prompt_tokens } = admission;
    let mut all: Vec<Choice> = (0..choices).map(|_| Choice::default()).collect();
    let mut usage = UsageBody::new(prompt_tokens);
    let mut answers = events(tickets, choices);
    while let Some((choice, event)) = answers.next().await {
        scope.on(choice, &event);
        match event {
            Event::Started { cached_tokens } => usage.cached(cached_tokens),
            Event::Prompt { .. } => {}
            Event::Token(piece) => {
                usage.generated(1);
                all[choice].text.push_str(&piece.text);
                if params.logprobs.is_some() {
                    all[choice].pieces.push(Piece { text: String::new(), ..piece });
                }
            }
            Event::Finished { reason, .. } => all[choice].reason = Some(reason),
            Event::Failed(failure) => return refuse(scope, failed(&failure)),
        }
    }
    let choices = all.iter().enumerate().map(|(index, choice)| choice.written(index, &names, &params));
    let choices = choices.collect();
    let Head { id, created, model } = &head;
    json_response(&WholeAnswer { id, object: "chat.completion", created: *created, model, choices, usage })
}

fn stream(server: &Arc<Server>, accepted: Accepted, streaming: Streaming, scope: Scope) -> Response {
    let Accepted { head, admission, names, .. } = accepted;
    let Admission { tickets, params, choices, prompt_tokens } = admission;
    let usage = UsageBody::new(prompt_tokens);
    let script = ChatScript { head, names, params, streaming, usage, begun: vec![false; choices] };
    sse::response(events(tickets, choices), script, scope, server.options.keep_alive)
}

struct ChatScript {
    head: Head,
    names: TokenNames,
    params: SamplingParams,
    streaming: Streaming,
    usage: UsageBody,
    /// Choices whose role was said.
    begun: Vec<bool>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChunkChoice<'a>],
    /// Absent where nobody asked; null in all chunks but the last where somebody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl ChatScript {
    fn push(&self, choices: &[ChunkChoice<'_>], usage: Option<Option<UsageBody>>, out: &mut Chunks) {
        let Head { id, created, model } = &self.head;
        let object = "chat.completion.chunk";
        out.push(&Chunk { id, object, created: *created, model, choices, usage });
    }

    /// The usage in a chunk that has choices.
    fn usage(&self) -> Option<Option<UsageBody>> {
        let Streaming { include_usage, continuous_usage } = self.streaming;
        match (include_usage, continuous_usage) {
            (_, true) => Some(Some(self.usage)),
            (true, false) => Some(None),
            (false, false) => None,
        }
    }

    fn delta(&self, index: usize, delta: Delta<'_>, logprobs: Option<Value>, out: &mut Chunks) {
        let choice = ChunkChoice { index, delta, logprobs, finish_reason: None, stop_reason: None };
        self.push(&[choice], self.usage(), out);
    }

    /// The role comes with the first token, not before: who measures the first chunk measures the first token.
    fn begin(&mut self, choice: usize, out: &mut Chunks) {
        if !std::mem::replace(&mut self.begun[choice], true) {
            self.delta(choice, Delta { role: Some("assistant"), content: Some("") }, None, out);
        }
    }
}

impl Script for ChatScript {
    fn on(&mut self, choice: usize, event: Event, out: &mut Chunks) {
        match event {
            Event::Started { cached_tokens } => self.usage.cached(cached_tokens),
            Event::Token(piece) => {
                self.usage.generated(1);
                self.begin(choice, out);
                let logprobs = self
                    .params
                    .logprobs
                    .map(|_| json!({"content": [self.names.chat(&piece)], "refusal": null}));
                if !piece.text.is_empty() || logprobs.is_some() {
                    self.delta(choice, Delta { role: None, content: Some(&piece.text) }, logprobs, out);
                }
            }
            Event::Finished { reason, .. } => {
                self.begin(choice, out);
                let stop_reason =
                    Some(stop_reason(Some(&reason), &self.params)).filter(|cause| !cause.is_null());
                let finish_reason = Some(reason_word(&reason));
                let delta = Delta::default();
                let last = ChunkChoice { index: choice, delta, logprobs: None, finish_reason, stop_reason };
                self.push(&[last], self.usage(), out);
            }
            Event::Prompt { .. } | Event::Failed(_) => {}
        }
    }

    fn end(&mut self, out: &mut Chunks) {
        if self.streaming.include_usage {
            self.push(&[], Some(Some(self.usage)), out);
        }
    }
}
