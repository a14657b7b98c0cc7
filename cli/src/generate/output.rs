//! How an answer is shown: text as it comes and a line of figures, or one JSON object.

use std::time::Duration;

use gaterail_model::sampler::{FinishReason, SamplingParams, StopCause};
use gaterail_model::text::Tokenizer;
use serde_json::{Value, json};

use super::engine::Answer;
use crate::error::CliError;
use crate::terminal;

/// What the figures need to know beside the answer.
#[derive(Clone, Copy)]
pub struct Timing {
    pub loaded: Duration,
    /// Whether the context leaves room for fewer tokens than were asked for.
    pub full: bool,
}

pub struct Output<'a> {
    json: bool,
    tokenizer: Option<&'a Tokenizer>,
    stops: Vec<String>,
    /// Whether text was shown that did not end a line.
    open_line: bool,
}

impl<'a> Output<'a> {
    pub fn new(json: bool, tokenizer: Option<&'a Tokenizer>, params: &SamplingParams) -> Output<'a> {
        Output { json, tokenizer, stops: params.stop.clone(), open_line: false }
    }

    /// Shows a piece of the answer.
    pub fn piece(&mut self, text: &str) -> Result<(), CliError> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        self.open_line = !text.ends_with('\n');
        terminal::print(text)
    }

    /// Shows the end, and on standard error what it took.
    pub fn finish(
        &self,
        model: &str,
        prompt: &[u32],
        answer: &Answer,
        timing: Timing,
    ) -> Result<(), CliError> {
        if self.json {
            let object = self.object(model, prompt, answer, timing.loaded);
            return terminal::print(&format!("{object}\n"));
        }
        if self.tokenizer.is_none() {
            let ids: Vec<String> =
                answer.pieces.iter().map(|piece| piece.sampled.token.to_string()).collect();
            terminal::print(&format!("{}\n", ids.join(",")))?;
        } else if self.open_line {
            terminal::print("\n")?;
        }
        terminal::note(&figures(prompt.len(), answer, timing));
        Ok(())
    }

    fn object(&self, model: &str, prompt: &[u32], answer: &Answer, loaded: Duration) -> Value {
        let token = |piece: &super::engine::Piece| {
            let top: Vec<Value> =
                piece.sampled.top.iter().map(|(id, logprob)| json!([id, logprob])).collect();
            json!({"id": piece.sampled.token, "text": piece.text, "logprob": piece.sampled.logprob, "top": top})
        };
        let tokens: Vec<Value> = answer.pieces.iter().map(token).collect();
        let (reason, stop) = self.reason(answer.reason);
        json!({
            "model": model,
            "prompt_tokens": prompt,
            "tokens": tokens,
            "text": self.tokenizer.map(|_| &answer.text),
            "finish_reason": reason,
            "stop_reason": stop,
            "usage": {
                "prompt_tokens": prompt.len(),
                "completion_tokens": answer.pieces.len(),
                "total_tokens": prompt.len() + answer.pieces.len(),
            },
            "seconds": {
                "load": loaded.as_secs_f64(),
                "first_token": answer.first_token.as_secs_f64(),
                "decode": answer.decode.as_secs_f64(),
            },
        })
    }

    /// The reason in OpenAI's words, and what exactly stopped it: a token or a string.
    fn reason(&self, reason: FinishReason) -> (&'static str, Value) {
        match reason {
            FinishReason::Length => ("length", Value::Null),
            FinishReason::Stop(StopCause::Token(token)) => ("stop", token.into()),
            FinishReason::Stop(StopCause::String(which)) => {
                ("stop", self.stops.get(which).cloned().map_or(Value::Null, Value::String))
            }
        }
    }
}

/// TPOT leaves the first token out, as vLLM does.
fn figures(prompt: usize, answer: &Answer, timing: Timing) -> String {
    let generated = answer.pieces.len();
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let decode = match generated {
        0 | 1 => String::new(),
        _ => format!(", then {:.1} tokens/s", rate(generated - 1, answer.decode)),
    };
    let reason = match (answer.reason, timing.full) {
        (FinishReason::Length, true) => " (the context is full)",
        (FinishReason::Length, false) => " (--max-tokens reached)",
        _ => "",
    };
    let plural = if prompt == 1 { "" } else { "s" };
    format!(
        "[loaded in {:.1} s; {prompt} prompt token{plural} in {:.1} ms ({:.0} tokens/s); {generated} generated{reason}{decode}]",
        timing.loaded.as_secs_f64(),
        answer.first_token.as_secs_f64() * 1e3,
        rate(prompt, answer.first_token),
    )
}
