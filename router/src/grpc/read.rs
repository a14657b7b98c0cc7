//! From messages to checked requests: the same bounds as over HTTP.

use gaterail_model::text::ChatInput;
use gaterail_proto::grpc::v1::generate_request::Prompt;
use gaterail_proto::grpc::v1::{Chat, GenerateRequest, Sampling};
use serde_json::{Value, json};

use crate::openai::{ApiError, Generation, RequestLimits, RequestedSampling, Streaming, read_messages};
use crate::serving::Served;

const LOGPROBS_MAX: u32 = 20;

/// The prompt in tokens.
pub async fn prompt(
    served: &Served,
    prompt: Option<Prompt>,
    limits: &RequestLimits,
) -> Result<Vec<u32>, ApiError> {
    match prompt {
        None => Err(ApiError::invalid("prompt", "prompt is missing; set text, tokens or chat")),
        Some(Prompt::Text(text)) => served.encode("text", text, true).await,
        Some(Prompt::Tokens(tokens)) => Ok(tokens.ids),
        Some(Prompt::Chat(chat)) => served.encode_chat(conversation(chat, limits)?).await,
    }
}

pub fn conversation(chat: Chat, limits: &RequestLimits) -> Result<ChatInput, ApiError> {
    let messages: Vec<Value> = chat
        .messages
        .into_iter()
        .map(|message| json!({"role": message.role, "content": message.content}))
        .collect();
    let messages = read_messages(messages.into(), limits)?;
    Ok(ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() })
}

/// What is asked beside the prompt.
pub fn generation(request: GenerateRequest, limits: &RequestLimits) -> Result<Generation, ApiError> {
    for (field, text) in [("model", &request.model), ("cache_salt", &request.cache_salt)] {
        let (bytes, max) = (text.len(), limits.name_bytes_max);
        if bytes > max {
            return Err(ApiError::invalid(field, format!("{field} has {bytes} bytes, more than {max}")));
        }
    }
    if request.n > limits.choices_max {
        let message = format!("n is {}; it has to be 1 to {}", request.n, limits.choices_max);
        return Err(ApiError::invalid("n", message));
    }
    let logprobs = match request.logprobs {
        Some(count @ 0..=LOGPROBS_MAX) => Some(count as u8),
        Some(count) => {
            let message = format!("logprobs is {count}; it has to be at most {LOGPROBS_MAX}");
            return Err(ApiError::invalid("logprobs", message));
        }
        None => None,
    };
    let sampling = RequestedSampling {
        stop: request.stop,
        stop_token_ids: request.stop_token_ids,
        min_tokens: request.min_tokens as usize,
        ignore_eos: request.ignore_eos,
        logprobs,
        ..sampling(request.sampling.unwrap_or_default())
    };
    Ok(Generation {
        model: Some(request.model).filter(|name| !name.is_empty()),
        streaming: Some(Streaming { include_usage: false, continuous_usage: false }),
        choices: request.n.max(1),
        max_tokens: request.max_tokens.map(|max| max as usize),
        sampling,
        cache_salt: Some(request.cache_salt).filter(|salt| !salt.is_empty()),
        skip_special: true,
        include_stop: false,
        tokens_as_ids: false,
    })
}

fn sampling(asked: Sampling) -> RequestedSampling {
    RequestedSampling {
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k,
        min_p: asked.min_p,
        presence_penalty: asked.presence_penalty,
        frequency_penalty: asked.frequency_penalty,
        repetition_penalty: asked.repetition_penalty,
        logit_bias: asked.logit_bias.into_iter().collect(),
        seed: asked.seed,
        ..RequestedSampling::default()
    }
}
