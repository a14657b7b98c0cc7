//! One sequence from its prompt to its end: prefill in steps, then token by token.

use std::time::{Duration, Instant};

use gaterail_model::kv::PageTable;
use gaterail_model::sampler::{
    FinishReason, Progress, Sampled, SamplingParams, Step, TokenCounts, finish, sample,
};
use gaterail_model::text::{Detokenizer, StopMatcher, Tokenizer};
use gaterail_model::walk::{Batch, Runner};

use super::PREFILL_ROWS;
use crate::error::CliError;

/// What is asked.
pub struct Request<'a> {
    pub prompt: &'a [u32],
    pub tokenizer: Option<&'a Tokenizer>,
    /// The model's own tokens that end an answer.
    pub stop_ids: Vec<u32>,
    pub params: SamplingParams,
    pub max_tokens: usize,
}

/// A token and the text that it set free.
pub struct Piece {
    pub sampled: Sampled,
    pub text: String,
}

/// The whole answer.
pub struct Answer {
    pub pieces: Vec<Piece>,
    pub text: String,
    pub reason: FinishReason,
    /// From the start of prefill to the first token, and from there to the last.
    pub first_token: Duration,
    pub decode: Duration,
}

/// Generates; every piece of text is shown as soon as no stop string can begin in it.
pub fn generate(
    mut runner: Runner,
    request: &Request<'_>,
    mut text: TextSide<'_>,
    show: &mut dyn FnMut(&str) -> Result<(), CliError>,
) -> Result<Answer, CliError> {
    let started = Instant::now();
    let mut table = PageTable::default();
    let mut logits = prefill(&mut runner, request.prompt, &mut table)?;
    let mut counts = TokenCounts::new(request.prompt);
    let stop_ids = &request.stop_ids;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut first_token = Duration::ZERO;
    loop {
        let position = request.prompt.len() + pieces.len();
        let step = Step { counts: &counts, position: position as u64, generated: pieces.len(), stop_ids };
        let sampled = sample(&mut logits, &request.params, &step)?;
        let token = sampled.token;
        if pieces.is_empty() {
            first_token = started.elapsed();
        }
        counts.push(token);
        let generated = pieces.len() + 1;
        let ends_by_token = |stop_string| {
            let progress = Progress { generated, max_generated: request.max_tokens, stop_string };
            finish(&request.params, stop_ids, token, progress)
        };
        // A token that ends the answer is no part of its text.
        let shown = match ends_by_token(None) {
            Some(FinishReason::Stop(_)) => Shown::default(),
            _ => text.push(token, generated)?,
        };
        let reason = ends_by_token(shown.stopped);
        // What is still held back belongs to the last token.
        let rest = if reason.is_some() && shown.stopped.is_none() { text.finish()? } else { String::new() };
        let piece = Piece { sampled, text: shown.text + &rest };
        show(&piece.text)?;
        pieces.push(piece);
        if let Some(reason) = reason {
            let text = pieces.iter().map(|piece| piece.text.as_str()).collect();
            return Ok(Answer { pieces, text, reason, first_token, decode: started.elapsed() - first_token });
        }
        logits = decode(&mut runner, token, position, &mut table)?;
    }
}

/// Reads the prompt; the logits behind its last token.
fn prefill(runner: &mut Runner, prompt: &[u32], table: &mut PageTable) -> Result<Vec<f32>, CliError> {
    let mut logits = Vec::new();
    for (index, chunk) in prompt.chunks(PREFILL_ROWS).enumerate() {
        let start = index * PREFILL_ROWS;
        grow(runner, table, start + chunk.len())?;
        let mut batch = Batch::default();
        batch.add(chunk, start, table, |row| start + row + 1 == prompt.len());
        logits = runner.step(&batch)?;
    }
    Ok(logits)
}

fn decode(
    runner: &mut Runner,
    token: u32,
    position: usize,
    table: &mut PageTable,
) -> Result<Vec<f32>, CliError> {
    grow(runner, table, position + 1)?;
    let mut batch = Batch::default();
    batch.add(&[token], position, table, |_| true);
    Ok(runner.step(&batch)?)
}

fn grow(runner: &mut Runner, table: &mut PageTable, positions: usize) -> Result<(), CliError> {
    runner.grow(table, positions).map_err(|error| CliError::Refused(error.to_string()))
}

/// Text that may be shown, and the stop string that ended it.
#[derive(Default)]
struct Shown {
    text: String,
    stopped: Option<usize>,
}

/// From tokens to text that may be shown. Without a tokenizer there is none.
pub struct TextSide<'a> {
    tokenizer: Option<&'a Tokenizer>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    stops: Vec<String>,
    min_tokens: usize,
    /// The end of the text before `min_tokens`, in which a stop string may begin but none is whole.
    early: String,
}

impl<'a> TextSide<'a> {
    /// Checks the request's stop strings; nothing is loaded for that.
    pub fn new(request: &Request<'a>, skip_special: bool) -> Result<TextSide<'a>, CliError> {
        if request.tokenizer.is_none() && !request.params.stop.is_empty() {
            return Err(CliError::Refused("--stop needs a tokenizer, and the model has none".to_string()));
        }
        let detokenizer = match request.tokenizer {
            Some(tokenizer) => Detokenizer::after(tokenizer, request.prompt, skip_special)?,
            None => Detokenizer::new(skip_special),
        };
        Ok(TextSide {
            tokenizer: request.tokenizer,
            detokenizer,
            matcher: StopMatcher::new(&request.params.stop, false)?,
            stops: request.params.stop.clone(),
            min_tokens: request.params.min_tokens,
            early: String::new(),
        })
    }

    /// The text that the `generated`-th token sets free.
    fn push(&mut self, token: u32, generated: usize) -> Result<Shown, CliError> {
        let Some(tokenizer) = self.tokenizer else { return Ok(Shown::default()) };
        let text = self.detokenizer.push(tokenizer, token)?;
        self.early.push_str(&text);
        if generated < self.min_tokens {
            return Ok(Shown { text: self.release_early(), stopped: None });
        }
        let outcome = self.matcher.push(&std::mem::take(&mut self.early));
        Ok(Shown { text: outcome.emit, stopped: outcome.stopped })
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
    fn finish(&mut self) -> Result<String, CliError> {
        let Some(tokenizer) = self.tokenizer else { return Ok(String::new()) };
        let rest = std::mem::take(&mut self.early) + &self.detokenizer.finish(tokenizer)?;
        let outcome = self.matcher.push(&rest);
        Ok(if outcome.stopped.is_some() { outcome.emit } else { outcome.emit + &self.matcher.finish() })
    }
}
