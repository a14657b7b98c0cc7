//! What clients may ask and this server cannot do: refused by name, because leaving it out would change the answer.

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;

/// Whether a value changes nothing.
type Harmless = fn(&Value) -> bool;

/// Fields that change the answer and are not supported; a value that changes nothing passes.
const UNSUPPORTED: [(&str, Harmless); 33] = [
    ("tools", is_empty),
    ("functions", is_empty),
    ("tool_choice", is_none_word),
    ("function_call", is_none_word),
    ("response_format", is_text_format),
    ("best_of", is_one),
    ("suffix", is_empty),
    ("audio", never),
    ("modalities", is_text_only),
    ("prediction", never),
    ("web_search_options", never),
    ("verbosity", never),
    ("chat_template", never),
    ("prompt_embeds", never),
    ("prompt_logprobs", never),
    ("logits_processors", is_empty),
    ("allowed_token_ids", is_empty),
    ("bad_words", is_empty),
    ("return_token_ids", is_false),
    ("truncate_prompt_tokens", never),
    ("use_beam_search", is_false),
    ("length_penalty", is_one),
    ("early_stopping", is_false),
    ("guided_json", never),
    ("guided_regex", never),
    ("guided_choice", never),
    ("guided_grammar", never),
    ("structured_outputs", never),
    ("json_schema", never),
    ("grammar", never),
    ("kv_transfer_params", never),
    ("mm_processor_kwargs", never),
    ("thinking_token_budget", never),
];

/// Refuses the first unsupported field that says anything.
pub fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, harmless) in UNSUPPORTED {
        match fields.take(name) {
            Some(value) if !harmless(&value) => return Err(unsupported(name)),
            _ => {}
        }
    }
    Ok(())
}

pub fn unsupported(name: &str) -> ApiError {
    ApiError::invalid(name, format!("{name} is not supported by this server"))
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    value == false
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_none_word(value: &Value) -> bool {
    value == "none"
}

fn is_text_format(value: &Value) -> bool {
    value["type"] == "text"
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|kind| kind == "text"))
}
