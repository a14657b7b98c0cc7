//! `POST /tokenize` and `/detokenize`, in vLLM's words.

use serde_json::Value;

use super::chat::Conversation;
use super::error::ApiError;
use super::fields::{Fields, token_ids, wrong_kind};
use super::limits::RequestLimits;

pub enum TokenizeInput {
    Text { text: String, add_special_tokens: bool },
    Chat(Conversation),
}

pub struct TokenizeRequest {
    pub model: Option<String>,
    pub input: TokenizeInput,
    /// The text of every token beside its id.
    pub with_texts: bool,
}

impl TokenizeRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<TokenizeRequest, ApiError> {
        let mut fields = Fields::parse(body, limits.values_max)?;
        let model = fields.string("model", limits.name_bytes_max)?;
        let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
        let input = match fields.take("messages") {
            Some(messages) => TokenizeInput::Chat(Conversation::read(messages, &mut fields, limits)?),
            None => match fields.required("prompt")? {
                Value::String(text) => TokenizeInput::Text {
                    text,
                    add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(true),
                },
                other => return Err(wrong_kind("prompt", &other, "a string")),
            },
        };
        Ok(TokenizeRequest { model, input, with_texts })
    }
}

pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<DetokenizeRequest, ApiError> {
        let mut fields = Fields::parse(body, limits.values_max)?;
        let model = fields.string("model", limits.name_bytes_max)?;
        match fields.required("tokens")? {
            Value::Array(list) => Ok(DetokenizeRequest { model, tokens: token_ids("tokens", &list)? }),
            other => Err(wrong_kind("tokens", &other, "a list of token ids")),
        }
    }
}
