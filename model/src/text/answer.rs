//! The text of one growing answer. In: tokens as they are sampled. Out: text that may be shown, and why it ends.
//!
//! A stop string before `min_tokens` does not count; until then only so much text is held back as may belong to one that
//! is whole later.

use super::detokenize::Detokenizer;
use super::error::TextError;
use super::stop::{StopMatcher, StopOutcome};
use super::tokenizer::Tokenizer;
use crate::sampler::{FinishReason, Progress, SamplingParams, finish};

/// From tokens to text that may be shown. Without a tokenizer there is none.
#[derive(Debug, Clone)]
pub struct AnswerText {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    stops: Vec<String>,
    min_tokens: usize,
    /// The end of the text before `min_tokens`, in which a stop string may begin but none is whole.
    early: String,
}

/// What decides where an answer ends.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    pub params: &'a SamplingParams,
    /// The model's own tokens that end an answer.
    pub stop_ids: &'a [u32],
    /// Tokens that the answer may have.
    pub max_generated: usize,
}

impl AnswerText {
    /// An answer behind what `detokenizer` has seen. Fails on stop strings that are not allowed.
    pub fn new(
        detokenizer: Detokenizer,
        params: &SamplingParams,
        include_stop: bool,
    ) -> Result<AnswerText, TextError> {
        Ok(AnswerText {
            detokenizer,
            matcher: StopMatcher::new(&params.stop, include_stop)?,
            stops: params.stop.clone(),
            min_tokens: params.min_tokens,
            early: String::new(),
        })
    }

    /// Takes the `generated`-th token: the text that it sets free, and why the answer ends with it, if it does.
    pub fn take(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        token: u32,
        generated: usize,
        ending: Ending<'_>,
    ) -> Result<(String, Option<FinishReason>), TextError> {
        let ends_by = |stop_string| {
            let progress = Progress { generated, max_generated: ending.max_generated, stop_string };
            finish(ending.params, ending.stop_ids, token, progress)
        };
        // A token that ends the answer is no part of its text.
        let shown = match (ends_by(None), tokenizer) {
            (Some(FinishReason::Stop(_)), _) | (_, None) => {
                StopOutcome { emit: String::new(), stopped: None }
            }
            (_, Some(tokenizer)) => self.push(tokenizer, token, generated)?,
        };
        let reason = ends_by(shown.stopped);
        let mut text = shown.emit;
        // What is still held back belongs to the last token.
        if let (Some(_), None, Some(tokenizer)) = (reason, shown.stopped, tokenizer) {
            text.push_str(&self.finish(tokenizer)?);
        }
        Ok((text, reason))
    }

    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
        generated: usize,
    ) -> Result<StopOutcome, TextError> {
        let text = self.detokenizer.push(tokenizer, token)?;
        if self.stops.is_empty() {
            return Ok(StopOutcome { emit: text, stopped: None });
        }
        self.early.push_str(&text);
        if generated < self.min_tokens {
            return Ok(StopOutcome { emit: self.release_early(), stopped: None });
        }
        Ok(self.matcher.push(&std::mem::take(&mut self.early)))
    }

    /// Text of which nothing can belong to a stop string that ends later.
    fn release_early(&mut self) -> String {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut cut = self.early.len().saturating_sub(longest.saturating_sub(1));
        // Stop strings that are whole by now came too early to count.
        for stop in &self.stops {
            while let Some(found) = self.early[self.early.ceil_char_boundary(cut)..].find(stop.as_str()) {
                cut = self.early.ceil_char_boundary(self.early.ceil_char_boundary(cut) + found + 1);
            }
        }
        let rest = self.early.split_off(self.early.ceil_char_boundary(cut));
        std::mem::replace(&mut self.early, rest)
    }

    /// What was held back.
    fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let rest = std::mem::take(&mut self.early) + &self.detokenizer.finish(tokenizer)?;
        let outcome = self.matcher.push(&rest);
        Ok(if outcome.stopped.is_some() { outcome.emit } else { outcome.emit + &self.matcher.finish() })
    }
}
