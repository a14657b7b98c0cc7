//! For tests: a whole server without a socket. Its model says the same token for ever.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::response::Response;
use futures_util::stream::{self, StreamExt};
use gaterail_model::text::{ChatTemplate, Tokenizer};
use gaterail_model::walk::{Batch, StepError};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Map, Value, json};

use super::*;
use crate::api::EngineLimits;
use crate::auth::Gate;
use crate::engine::{Engine, EngineParts};
use crate::grpc;
use crate::http::listen::Peer;
use crate::model::Model;
use crate::openai::ServerDefaults;

/// Printable ASCII, then `<s>`.
const CHARACTERS: std::ops::RangeInclusive<u8> = b' '..=b'~';
pub const BOS: u32 = 95;
pub const CONTEXT: usize = 4096;
/// What the model says: `A`.
const SAID: usize = 33;

struct Flat {
    /// A step takes so long.
    step: Duration,
    logits: Vec<f32>,
}

impl Model for Flat {
    fn architecture(&self) -> &str {
        "Flat"
    }

    fn vocab(&self) -> usize {
        BOS as usize + 1
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn pages(&self) -> usize {
        128
    }

    fn rows_max(&self) -> usize {
        64
    }

    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        std::thread::sleep(self.step);
        self.logits.clear();
        for _ in &batch.logits {
            self.logits.extend((0..self.vocab()).map(|token| if token == SAID { 60.0 } else { 0.0 }));
        }
        Ok(&mut self.logits)
    }
}

/// One token for every character, and `<s>` in front of a text.
fn tokenizer() -> Tokenizer {
    // A space is written as GPT-2's table has it.
    let written = |c: u8| if c == b' ' { 'Ġ' } else { char::from(c) };
    let characters = CHARACTERS.enumerate();
    let vocab: Map<String, Value> = characters.map(|(id, c)| (written(c).to_string(), id.into())).collect();
    let bos = json!({"id": BOS, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false});
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let around = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}});
    let whole = json!({"version": "1.0", "normalizer": null, "post_processor": around, "added_tokens": [bos],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    Tokenizer::from_bytes("tokenizer.json", whole.to_string().as_bytes()).expect("a tokenizer")
}

const TEMPLATE: &str =
    "{% for message in messages %}{{ message.reasoning_content }}{{ message.content }}{% endfor %}";

pub struct House {
    pub server: Arc<Server>,
    pub http: Router,
    pub grpc: Router,
}

impl House {
    /// Inside an event loop.
    pub async fn new(gate: Gate, options: ServerOptions) -> House {
        House::with_steps(Duration::ZERO, gate, options).await
    }

    async fn with_steps(step: Duration, gate: Gate, options: ServerOptions) -> House {
        let build = move || {
            let runner = Flat { step, logits: Vec::new() };
            Ok::<_, ()>(EngineParts { runner, tokenizer: Some(Arc::new(tokenizer())), stop_ids: Vec::new() })
        };
        let (engine, _) = Engine::start(build, EngineLimits::default()).expect("an engine");
        let served = Served::new(ServedParts {
            engine,
            names: vec!["flat".into()],
            tokenizer: Some(Arc::new(tokenizer())),
            template: Some(ChatTemplate::from_source("template", TEMPLATE, Map::new()).expect("a template")),
            defaults: ServerDefaults::default(),
            about: ModelAbout::default(),
            text_jobs_max: 2,
        });
        let entrance = Entrance::new(gate, &options);
        let rig = Rig { steps: StepMeter::new(Arc::default(), None), cluster: None };
        let server = Arc::new(Server::new(served, rig, entrance, RequestLog::off(), options));
        let health = grpc::Health::not_serving().await;
        House {
            http: crate::http::routes(server.clone()),
            grpc: grpc::routes(server.clone(), health),
            server,
        }
    }

    pub async fn open() -> House {
        House::new(Gate::new(None, &[]).expect("a door"), ServerOptions::default()).await
    }

    /// One that takes its time over every token.
    pub async fn slow() -> House {
        let gate = Gate::new(None, &[]).expect("a door");
        House::with_steps(Duration::from_millis(5), gate, ServerOptions::default()).await
    }

    /// The answer to a `POST`, in JSON.
    pub async fn post(&self, path: &str, key: Option<&str>, body: Value) -> (u16, Value) {
        let request = post(path, key, Body::from(body.to_string()));
        let response = ask(&self.http, request).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).expect("JSON"))
    }
}

pub fn post(path: &str, key: Option<&str>, body: Body) -> Request {
    let mut request = Request::post(path);
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    request.body(body).expect("a request")
}

pub async fn ask(routes: &Router, request: Request) -> Response {
    let answer = TowerToHyperService::new(routes.clone()).call(request);
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
    match answer.expect("an answer in time") {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A body of which nothing comes; whoever waits for it waits for ever.
pub fn silent() -> Body {
    Body::from_stream(stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>())
}

/// A body of which so many bytes come, and then nothing more.
pub fn stuck(bytes: usize) -> Body {
    let begin = bytes::Bytes::from(vec![b' '; bytes]);
    let begin = stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(begin)));
    Body::from_stream(begin.chain(stream::pending()))
}

/// A body that comes byte by byte.
pub fn trickling(every: Duration) -> Body {
    Body::from_stream(stream::unfold((), move |()| async move {
        tokio::time::sleep(every).await;
        Some((Ok::<_, std::convert::Infallible>(bytes::Bytes::from_static(b" ")), ()))
    }))
}

/// The request as it comes from an address.
pub fn from(address: &str, mut request: Request) -> Request {
    request.extensions_mut().insert(Peer(address.parse().expect("an address")));
    request
}
