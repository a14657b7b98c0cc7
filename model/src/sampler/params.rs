//! What a request asks of the sampler. In: values as sent. Out: the same, checked, or an error that names the field.

/// Temperatures below this are greedy.
pub const GREEDY_BELOW: f32 = 1e-5;
pub const TEMPERATURE_MAX: f32 = 100.0;
/// Largest presence and frequency penalty, either sign.
pub const PENALTY_MAX: f32 = 2.0;
pub const REPETITION_PENALTY_MAX: f32 = 100.0;
/// Largest bias, either sign.
pub const LOGIT_BIAS_MAX: f32 = 100.0;
/// Tokens with a bias.
pub const LOGIT_BIASES_MAX: usize = 1024;
/// Stop ids of one request.
pub const STOP_TOKENS_MAX: usize = 128;
/// Most likely tokens that are reported.
pub const LOGPROBS_MAX: u8 = 20;

#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps so many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the tokens with at least this share of the most likely one's probability; 0 keeps all.
    pub min_p: f32,
    /// Subtracted from the logit of every token that stands in the output.
    pub presence_penalty: f32,
    /// Subtracted once for every time that a token stands in the output.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and output; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// With the position, what decides the draw.
    pub seed: u64,
    /// Strings that end the output.
    pub stop: Vec<String>,
    /// Tokens that end the output, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Tokens before anything may end the output.
    pub min_tokens: usize,
    /// Goes on behind the model's own stop ids.
    pub ignore_eos: bool,
    /// How many of the most likely tokens to report beside the sampled one's probability; none when absent.
    pub logprobs: Option<u8>,
}

impl Default for SamplingParams {
    /// Plain sampling from the model's distribution.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
        }
    }
}

/// Why a request cannot be sampled. Only a changed request or other logits help.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    #[error("{field} is {value}; it has to be {range}")]
    OutOfRange { field: &'static str, value: f64, range: &'static str },
    #[error("{field} has {count} entries, more than {max}")]
    TooMany { field: &'static str, count: usize, max: usize },
    #[error("{field} names token {token}, but the vocabulary has {vocab}")]
    UnknownToken { field: &'static str, token: u32, vocab: usize },
    #[error("a logit is NaN or +inf: the model's output is not usable")]
    BadLogits,
    #[error("no token is left to sample: every logit is -inf")]
    NothingLeft,
    #[error("there are no logits")]
    Empty,
}

impl SamplingParams {
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// Checks every field against its range and the vocabulary. Stop strings are checked where they are matched.
    pub fn validate(&self, vocab: usize) -> Result<(), SamplerError> {
        let within = |field, value: f32, low: f32, high: f32, range| match value {
            value if value >= low && value <= high => Ok(()),
            value => Err(SamplerError::OutOfRange { field, value: value.into(), range }),
        };
        within("temperature", self.temperature, 0.0, TEMPERATURE_MAX, "0 to 100")?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0, "above 0 and at most 1")?;
        within("min_p", self.min_p, 0.0, 1.0, "0 to 1")?;
        within("presence_penalty", self.presence_penalty, -PENALTY_MAX, PENALTY_MAX, "-2 to 2")?;
        within("frequency_penalty", self.frequency_penalty, -PENALTY_MAX, PENALTY_MAX, "-2 to 2")?;
        let repetition = self.repetition_penalty;
        within(
            "repetition_penalty",
            repetition,
            1.0 / REPETITION_PENALTY_MAX,
            REPETITION_PENALTY_MAX,
            "0.01 to 100",
        )?;
        for (_, bias) in &self.logit_bias {
            within("logit_bias", *bias, -LOGIT_BIAS_MAX, LOGIT_BIAS_MAX, "-100 to 100")?;
        }
        if let Some(count) = self.logprobs.filter(|count| *count > LOGPROBS_MAX) {
            return Err(SamplerError::OutOfRange {
                field: "logprobs",
                value: count.into(),
                range: "0 to 20",
            });
        }
        at_most("logit_bias", self.logit_bias.len(), LOGIT_BIASES_MAX)?;
        at_most("stop_token_ids", self.stop_token_ids.len(), STOP_TOKENS_MAX)?;
        known("logit_bias", self.logit_bias.iter().map(|(token, _)| *token), vocab)?;
        known("stop_token_ids", self.stop_token_ids.iter().copied(), vocab)
    }
}

fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), SamplerError> {
    if count > max { Err(SamplerError::TooMany { field, count, max }) } else { Ok(()) }
}

fn known(
    field: &'static str,
    mut tokens: impl Iterator<Item = u32>,
    vocab: usize,
) -> Result<(), SamplerError> {
    match tokens.find(|token| *token as usize >= vocab) {
        Some(token) => Err(SamplerError::UnknownToken { field, token, vocab }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let message = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params.validate(10).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(message(|_| {}), "");
        assert_eq!(message(|p| p.temperature = 0.0), "");
        assert_eq!(message(|p| p.temperature = -0.5), "temperature is -0.5; it has to be 0 to 100");
        assert_eq!(message(|p| p.temperature = f32::NAN), "temperature is NaN; it has to be 0 to 100");
        assert_eq!(message(|p| p.temperature = f32::INFINITY), "temperature is inf; it has to be 0 to 100");
        assert_eq!(message(|p| p.top_p = 0.0), "top_p is 0; it has to be above 0 and at most 1");
        assert_eq!(message(|p| p.min_p = 1.5), "min_p is 1.5; it has to be 0 to 1");
        assert_eq!(message(|p| p.presence_penalty = 3.0), "presence_penalty is 3; it has to be -2 to 2");
        assert_eq!(message(|p| p.frequency_penalty = -3.0), "frequency_penalty is -3; it has to be -2 to 2");
        assert_eq!(
            message(|p| p.repetition_penalty = 0.0),
            "repetition_penalty is 0; it has to be 0.01 to 100"
        );
        assert_eq!(message(|p| p.logprobs = Some(21)), "logprobs is 21; it has to be 0 to 20");
        assert_eq!(
            message(|p| p.logit_bias = vec![(1, 101.0)]),
            "logit_bias is 101; it has to be -100 to 100"
        );
        assert_eq!(
            message(|p| p.logit_bias = vec![(1, 0.0); 1025]),
            "logit_bias has 1025 entries, more than 1024"
        );
        assert_eq!(
            message(|p| p.logit_bias = vec![(10, 1.0)]),
            "logit_bias names token 10, but the vocabulary has 10"
        );
        assert_eq!(
            message(|p| p.stop_token_ids = vec![9, 12]),
            "stop_token_ids names token 12, but the vocabulary has 10"
        );
        assert_eq!(
            message(|p| p.stop_token_ids = vec![1; 129]),
            "stop_token_ids has 129 entries, more than 128"
        );
    }
}
