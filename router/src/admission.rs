//! Whether a request may wait at all. In: a request, and what the model allows. Out: what it will become, or why not.
//!
//! This runs on the caller's thread: all that takes time for a long prompt is done before the engine sees it.

use gaterail_model::sampler::noise::philox4x32;
use gaterail_model::sampler::{SamplingParams, TokenCounts};
use gaterail_model::text::{AnswerText, Detokenizer, Tokenizer};

use crate::api::{EngineLimits, GenerateRequest, ModelCard, Refusal};

/// A request that can be run.
pub struct Admitted {
    pub request: GenerateRequest,
    /// Tokens that each choice may have.
    pub max_generated: usize,
    /// Where the text of every choice begins.
    pub text: AnswerText,
    /// What penalties look at.
    pub counts: TokenCounts,
}

/// Checks all that can be known before anything runs.
pub fn admit(
    request: GenerateRequest,
    card: &ModelCard,
    limits: &EngineLimits,
    tokenizer: Option<&Tokenizer>,
) -> Result<Admitted, Refusal> {
    let max_generated = room(&request, card)?;
    if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= card.vocab) {
        return Err(Refusal::Token { token, vocab: card.vocab });
    }
    if request.n == 0 || request.n > limits.choices_max {
        return Err(Refusal::Choices { n: request.n, max: limits.choices_max });
    }
    request.params.validate(card.vocab)?;
    if let Some(count) = request.prompt_logprobs {
        SamplingParams { logprobs: Some(count), ..SamplingParams::default() }.validate(card.vocab)?;
    }
    let detokenizer = match tokenizer {
        None if !request.params.stop.is_empty() => return Err(Refusal::NoTokenizer),
        None => Detokenizer::new(request.skip_special),
        Some(tokenizer) => Detokenizer::after(tokenizer, &request.prompt, request.skip_special)?,
    };
    let text = AnswerText::new(detokenizer, &request.params, request.include_stop)?;
    let counts = match has_penalties(&request.params) {
        true => TokenCounts::new(&request.prompt),
        false => TokenCounts::default(),
    };
    Ok(Admitted { request, max_generated, text, counts })
}

/// The seed of a choice: the request's own, or one that follows from it.
pub fn choice_seed(seed: u64, choice: u32) -> u64 {
    if choice == 0 {
        return seed;
    }
    let [a, b, _, _] = philox4x32([choice, 0, 0, 1], [seed as u32, (seed >> 32) as u32]);
    u64::from(a) << 32 | u64::from(b)
}

/// Whether sampling looks at the tokens so far.
pub fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

/// Tokens that a choice may have.
fn room(request: &GenerateRequest, card: &ModelCard) -> Result<usize, Refusal> {
    let (prompt, max) = (request.prompt.len(), card.context);
    match request.max_tokens {
        _ if prompt == 0 => Err(Refusal::Empty),
        Some(0) if prompt <= max => Ok(0),
        _ if prompt >= max => Err(Refusal::TooLong { prompt, max }),
        Some(asked) if asked > max - prompt => Err(Refusal::NoRoom { prompt, asked, max }),
        asked => Ok(asked.unwrap_or(max - prompt)),
    }
}
