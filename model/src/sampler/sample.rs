//! One token from one row of logits.

use super::adjust::adjust;
use super::counts::TokenCounts;
use super::draw::draw;
use super::noise::uniform;
use super::params::{SamplerError, SamplingParams};
use super::scan::{Maxima, Weights};

/// Where in its sequence a token is sampled.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Tokens of the prompt and of the output so far.
    pub counts: &'a TokenCounts,
    /// The position that the token will have; with the seed it decides the draw.
    pub position: u64,
    /// Tokens that the output has.
    pub generated: usize,
    /// The model's own stop ids.
    pub stop_ids: &'a [u32],
}

/// A sampled token. The logarithms are of the model's own distribution, before bias, penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Present when the request asked for logprobs, for they cost a pass over the vocabulary.
    pub logprob: Option<f32>,
    /// The most likely tokens, most likely first, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Samples from `logits` [V], which are changed in place by bias and penalties.
///
/// `params` has been validated. Fails on NaN, +inf, and when every token is masked.
pub fn sample(logits: &mut [f32], params: &SamplingParams, step: &Step<'_>) -> Result<Sampled, SamplerError> {
    let mut maxima = Maxima::of(logits)?;
    let raw = params.logprobs.map(|count| RawLogprobs::of(logits, &maxima, count));
    let changed = adjust(logits, params, step.counts, step.generated, step.stop_ids);
    if !changed.is_empty() {
        maxima = maxima.after(logits, changed.iter().map(|(token, _)| *token))?;
    }
    let token = match params.is_greedy() {
        true => maxima.argmax(logits),
        false => draw(logits, &maxima, params, |draw| uniform(params.seed, step.position, draw)),
    };
    let before = changed.iter().find(|(changed, _)| *changed == token).map(|(_, logit)| *logit);
    let logprob = raw.as_ref().map(|raw| raw.at(before.unwrap_or(logits[token as usize])));
    Ok(Sampled { token, logprob, top: raw.map(|raw| raw.top).unwrap_or_default() })
}

/// How likely `token` is by `logits` [V], and the `count` most likely tokens: for the tokens of a prompt.
pub fn logprob_of(logits: &[f32], token: u32, count: u8) -> Result<(f32, Vec<(u32, f32)>), SamplerError> {
    let raw = RawLogprobs::of(logits, &Maxima::of(logits)?, count);
    Ok((raw.at(logits[token as usize]), raw.top))
}

/// The logarithms of the model's own probabilities.
struct RawLogprobs {
    /// log(sum(exp(logits)))
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl RawLogprobs {
    fn of(logits: &[f32], maxima: &Maxima, count: u8) -> RawLogprobs {
        let weights = Weights::new(maxima.max, 1.0, f32::NEG_INFINITY);
        let sum: f64 = weights.sums(logits, maxima).iter().sum();
        let mut raw = RawLogprobs { log_sum: f64::from(maxima.max) + sum.ln(), top: Vec::new() };
        let mut largest = maxima.largest(logits, count.into());
        largest.sort_unstable();
        raw.top = largest.into_iter().map(|ranked| (ranked.id(), raw.at(ranked.logit()))).collect();
        raw
    }

    fn at(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum) as f32
    }
}
