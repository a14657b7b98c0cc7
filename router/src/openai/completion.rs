//! `POST /v1/completions`: one prompt or several, as texts or as token ids.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, token_ids, wrong_kind};
use super::generation::Generation;
use super::limits::RequestLimits;

/// OpenAI's default for this endpoint.
const MAX_TOKENS_DEFAULT: usize = 16;
const LOGPROBS_MAX: u64 = 20;

#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub generation: Generation,
    pub prompts: Vec<Prompt>,
    /// The answer begins with the prompt.
    pub echo: bool,
    /// Whether texts get the tokens that the model wants around them.
    pub add_special_tokens: bool,
}

impl CompletionRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<CompletionRequest, ApiError> {
        let mut fields = Fields::parse(body, limits.values_max)?;
        let mut generation = Generation::read(&mut fields, limits)?;
        generation.sampling.logprobs = read_logprobs(&mut fields)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let max_tokens =
            *generation.max_tokens.get_or_insert(MAX_TOKENS_DEFAULT.max(generation.sampling.min_tokens));
        if max_tokens == 0 && !echo {
            return Err(ApiError::invalid("max_tokens", "max_tokens is 0, which needs echo: true"));
        }
        let prompts = read_prompts(fields.required("prompt")?, limits)?;
        let add_special_tokens = fields.flag("add_special_tokens")?.unwrap_or(true);
        Ok(CompletionRequest { generation, prompts, echo, add_special_tokens })
    }
}

/// How many of the most likely tokens; here the field is a number.
fn read_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(value) => {
            super::fields::as_count("logprobs", &value, 0..=LOGPROBS_MAX).map(|count| Some(count as u8))
        }
    }
}

/// A text, a list of texts, a list of ids, a list of lists of ids.
fn read_prompts(prompt: Value, limits: &RequestLimits) -> Result<Vec<Prompt>, ApiError> {
    let list = match prompt {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => return Err(wrong_kind("prompt", &other, "a string, a list of strings, or token ids")),
    };
    match list.first() {
        None => return Err(ApiError::invalid("prompt", "prompt is empty")),
        Some(Value::Number(_)) => return Ok(vec![Prompt::Tokens(token_ids("prompt", &list)?)]),
        Some(_) => {}
    }
    if list.len() > limits.prompts_max {
        let (count, max) = (list.len(), limits.prompts_max);
        return Err(ApiError::invalid("prompt", format!("prompt has {count} prompts, more than {max}")));
    }
    let of_text = matches!(list.first(), Some(Value::String(_)));
    let one = |(index, value): (usize, Value)| match value {
        Value::String(text) if of_text => Ok(Prompt::Text(text)),
        Value::Array(ids) if !of_text => Ok(Prompt::Tokens(token_ids(&format!("prompt[{index}]"), &ids)?)),
        other => {
            let expected = if of_text { "a string, as the first is" } else { "a list of token ids" };
            Err(wrong_kind(&format!("prompt[{index}]"), &other, expected))
        }
    };
    list.into_iter().enumerate().map(one).collect()
}
