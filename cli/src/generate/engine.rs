//! One sequence from its prompt to its end: prefill in steps, then token by token.

use std::time::{Duration, Instant};

use gaterail_model::kv::PageTable;
use gaterail_model::sampler::{FinishReason, Sampled, SamplingParams, Step, TokenCounts, sample};
use gaterail_model::text::{AnswerText, Detokenizer, Ending, Tokenizer};
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

/// Where the answer's text begins. Checks the request's stop strings; nothing is loaded for that.
pub fn text(request: &Request<'_>, skip_special: bool) -> Result<AnswerText, CliError> {
    if request.tokenizer.is_none() && !request.params.stop.is_empty() {
        return Err(CliError::Refused("--stop needs a tokenizer, and the model has none".to_string()));
    }
    let detokenizer = match request.tokenizer {
        Some(tokenizer) => Detokenizer::after(tokenizer, request.prompt, skip_special)?,
        None => Detokenizer::new(skip_special),
    };
    Ok(AnswerText::new(detokenizer, &request.params, false)?)
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
    mut text: AnswerText,
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
        let ending = Ending { params: &request.params, stop_ids, max_generated: request.max_tokens };
        let (shown, reason) = text.take(request.tokenizer, token, generated, ending)?;
        let piece = Piece { sampled, text: shown };
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
