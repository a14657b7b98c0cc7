//! `POST /v1/chat/completions`: a conversation.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, kind_of, wrong_kind};
use super::generation::Generation;
use super::limits::RequestLimits;
use super::unsupported::unsupported;

/// Most likely tokens that are reported.
const TOP_LOGPROBS_MAX: u64 = 20;
/// Variables of a chat template that a request may not set: they are what the request says elsewhere, or the server's.
const RESERVED: [&str; 9] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "bos_token",
    "eos_token",
];

#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub generation: Generation,
    /// A list of objects with `role` and `content`, as a chat template wants them.
    pub messages: Value,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    /// More variables for the chat template.
    pub template_arguments: Map<String, Value>,
}

impl ChatRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<ChatRequest, ApiError> {
        let mut fields = Fields::parse(body, limits.values_max)?;
        for name in ["echo"] {
            if fields.flag(name)? == Some(true) {
                return Err(unsupported(name));
            }
        }
        let mut generation = Generation::read(&mut fields, limits)?;
        generation.sampling.logprobs = read_logprobs(&mut fields)?;
        if generation.max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "max_tokens is 0; it has to be at least 1"));
        }
        let messages = fields.required("messages")?;
        let Conversation { messages, add_generation_prompt, continue_final_message, template_arguments } =
            Conversation::read(messages, &mut fields, limits)?;
        Ok(ChatRequest {
            generation,
            messages,
            add_generation_prompt,
            continue_final_message,
            template_arguments,
        })
    }
}

/// The part that the chat template sees; `/tokenize` takes it, too.
pub struct Conversation {
    pub messages: Value,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    pub template_arguments: Map<String, Value>,
}

impl Conversation {
    pub fn read(
        messages: Value,
        fields: &mut Fields,
        limits: &RequestLimits,
    ) -> Result<Conversation, ApiError> {
        let continue_final_message = fields.flag("continue_final_message")?.unwrap_or(false);
        let add = fields.flag("add_generation_prompt")?;
        if continue_final_message && add == Some(true) {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        Ok(Conversation {
            messages: read_messages(messages, limits)?,
            add_generation_prompt: add.unwrap_or(!continue_final_message),
            continue_final_message,
            template_arguments: read_template_arguments(fields, limits)?,
        })
    }
}

/// `logprobs: true` and how many others in `top_logprobs`.
fn read_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs: true")),
        (wanted, top) => Ok(wanted.then_some(top.unwrap_or(0) as u8)),
    }
}

/// Checked messages as a chat template wants them.
pub fn read_messages(messages: Value, limits: &RequestLimits) -> Result<Value, ApiError> {
    let list = match messages {
        Value::Array(list) => list,
        other => return Err(wrong_kind("messages", &other, "a list of messages")),
    };
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty; at least one message is needed"));
    }
    if list.len() > limits.messages_max {
        let (count, max) = (list.len(), limits.messages_max);
        return Err(ApiError::invalid("messages", format!("messages has {count} messages, more than {max}")));
    }
    let read = |(index, message)| read_message(&format!("messages[{index}]"), message, limits);
    list.into_iter().enumerate().map(read).collect()
}

/// Role, text and what belongs to them; fields that nobody here knows are left out.
fn read_message(place: &str, message: Value, limits: &RequestLimits) -> Result<Value, ApiError> {
    let Value::Object(map) = message else { return Err(wrong_kind(place, &message, "an object")) };
    let mut fields = Fields::from(map);
    let at = |name: &str| format!("{place}.{name}");
    let role = match fields.take("role") {
        Some(Value::String(role)) => role,
        Some(other) => return Err(wrong_kind(&at("role"), &other, "a string")),
        None => return Err(ApiError::invalid(at("role"), format!("{} is missing", at("role")))),
    };
    // OpenAI's newer word for the same.
    let role = if role == "developer" { "system" } else { &role };
    if matches!(role, "tool" | "function") {
        let message = format!("{} is {role:?}: tools are not supported by this server", at("role"));
        return Err(ApiError::invalid(at("role"), message));
    }
    if !matches!(role, "system" | "user" | "assistant") {
        let known = "system, developer, user or assistant";
        return Err(ApiError::invalid(
            at("role"),
            format!("{} is {role:?}; it has to be {known}", at("role")),
        ));
    }
    for name in ["tool_calls", "function_call", "audio"] {
        if fields.take(name).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(unsupported(&at(name)));
        }
    }
    let content = match (fields.take("content"), role) {
        (Some(content), _) => read_content(&at("content"), content)?,
        (None, "assistant") => String::new(),
        (None, _) => return Err(ApiError::invalid(at("content"), format!("{} is missing", at("content")))),
    };
    let mut read = Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))]);
    if let Some(name) = fields.string_at("name", &at("name"), limits.name_bytes_max)? {
        read.insert("name".to_owned(), json!(name));
    }
    for name in ["reasoning_content", "reasoning", "thinking"] {
        match fields.take(name) {
            Some(value @ Value::String(_)) => drop(read.insert(name.to_owned(), value)),
            Some(other) => return Err(wrong_kind(&at(name), &other, "a string")),
            None => {}
        }
    }
    Ok(Value::Object(read))
}

/// A text, or a list of parts that are all texts.
fn read_content(place: &str, content: Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_kind(place, &other, "a string or a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let kind = part["type"].as_str().unwrap_or("text").to_owned();
        let place = format!("{place}[{index}]");
        if !matches!(kind.as_str(), "text" | "input_text") {
            let message = format!("{place}.type is {kind:?}; this model reads only text");
            return Err(ApiError::invalid(format!("{place}.type"), message));
        }
        match part {
            Value::String(text) => texts.push(text),
            part => match &part["text"] {
                Value::String(text) => texts.push(text.clone()),
                other => {
                    let message = format!("{place}.text is {}; it has to be a string", kind_of(other));
                    return Err(ApiError::invalid(format!("{place}.text"), message));
                }
            },
        }
    }
    Ok(texts.join("\n"))
}

fn read_template_arguments(
    fields: &mut Fields,
    limits: &RequestLimits,
) -> Result<Map<String, Value>, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let mut arguments = fields.object(NAME)?.unwrap_or_default();
    if let Some(reserved) = RESERVED.iter().find(|name| arguments.contains_key(**name)) {
        let message = format!("{NAME} may not set {reserved}");
        return Err(ApiError::invalid(format!("{NAME}.{reserved}"), message));
    }
    if let Some(effort) = fields.string("reasoning_effort", limits.name_bytes_max)? {
        arguments.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    let bytes = serde_json::to_string(&arguments).map_or(usize::MAX, |text| text.len());
    let max = limits.template_arguments_bytes_max;
    if bytes > max {
        return Err(ApiError::invalid(NAME, format!("{NAME} has {bytes} bytes, more than {max}")));
    }
    Ok(arguments)
}
