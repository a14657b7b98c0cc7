//! `POST /tokenize` and `/detokenize`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use gaterail_model::text::ChatInput;
use serde_json::json;

use super::answer::json_response;
use super::body;
use super::layers::caller;
use crate::openai::{ApiError, DetokenizeRequest, TokenizeInput, TokenizeRequest};
use crate::serving::Server;

pub async fn tokenize(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ApiError> {
    let counted = caller(&request).0.count_request(Instant::now());
    let request = body::unless(request, counted)?;
    let asked = body::parsed(&server, request, TokenizeRequest::parse).await?;
    let served = &server.served;
    served.check_name(asked.model.as_deref())?;
    let tokens = match asked.input {
        TokenizeInput::Text { text, add_special_tokens } => {
            served.encode("prompt", text, add_special_tokens).await?
        }
        TokenizeInput::Chat(chat) => {
            let input = ChatInput {
                messages: chat.messages,
                add_generation_prompt: chat.add_generation_prompt,
                continue_final_message: chat.continue_final_message,
                extra: chat.template_arguments,
                ..ChatInput::default()
            };
            served.encode_chat(input).await?
        }
    };
    let texts = asked.with_texts.then(|| {
        let text = |id: &u32| {
            let bytes = served.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_bytes(*id));
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        tokens.iter().map(text).collect::<Vec<String>>()
    });
    Ok(json_response(&json!({
        "count": tokens.len(),
        "max_model_len": served.context(),
        "tokens": tokens,
        "token_strs": texts,
    })))
}

pub async fn detokenize(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ApiError> {
    let counted = caller(&request).0.count_request(Instant::now());
    let request = body::unless(request, counted)?;
    let asked = body::parsed(&server, request, DetokenizeRequest::parse).await?;
    let served = &server.served;
    served.check_name(asked.model.as_deref())?;
    let vocab = served.engine.model().vocab;
    if let Some(id) = asked.tokens.iter().find(|id| **id as usize >= vocab) {
        let message = format!("tokens has {id}, but the vocabulary has {vocab}");
        return Err(ApiError::invalid("tokens", message));
    }
    let text = served.decode("tokens", asked.tokens, false).await?;
    Ok(json_response(&json!({"prompt": text})))
}
