//! What answers of both endpoints are made of.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use gaterail_model::sampler::SamplingParams;
use serde::Serialize;
use serde_json::{Value, json};

use super::layers::random_hex;
use crate::api::{FinishReason, StopCause};
use crate::openai::ApiError;
use crate::serving::Scope;

/// What is the same in every chunk.
#[derive(Clone)]
pub struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
}

impl Head {
    pub fn new(prefix: &str, model: &str) -> Head {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Head { id: format!("{prefix}-{}", random_hex()), created: since.as_secs(), model: model.to_owned() }
    }
}

pub fn refuse(mut scope: Scope, error: ApiError) -> Response {
    scope.fail(&error);
    error.into_response()
}

/// `stop` or `length`.
pub fn reason_word(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Stop(_) => "stop",
    }
}

/// vLLM's addition: the stop string or the request's own stop token that ended a choice.
pub fn stop_reason(reason: Option<&FinishReason>, params: &SamplingParams) -> Value {
    match reason {
        Some(FinishReason::Stop(StopCause::Token(id))) if params.stop_token_ids.contains(id) => json!(id),
        Some(FinishReason::Stop(StopCause::String(which))) => json!(params.stop.get(*which)),
        _ => Value::Null,
    }
}

pub fn json_response(body: &impl Serialize) -> Response {
    let kind = HeaderValue::from_static("application/json");
    let body = serde_json::to_string(body).expect("plain values become JSON");
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}
