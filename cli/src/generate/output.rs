//! How an answer is shown: text as it comes and a line of figures, or one JSON object.

use std::io::{Write, stdout};
use std::time::Duration;

use gaterail_model::sampler::{FinishReason, SamplingParams, StopCause};
use gaterail_model::text::Tokenizer;
use serde_json::{Value, json};

use super::engine::Answer;
use crate::error::CliError;

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
        write_out(text)
    }

    /// Shows the end, and on standard error what it took.
    pub fn finish(
        &self,
        model: &str,
        prompt: &[u32],
        answer: &Answer,
        loaded: Duration,
    ) -> Result<(), CliError> {
        if self.json {
            let object = self.object(model, prompt, answer, loaded);
            return write_out(&format!("{object}\n"));
        }
        if self.tokenizer.is_none() {
            let ids: Vec<String> =
                answer.pieces.iter().map(|piece| piece.sampled.token.to_string()).collect();
            write_out(&format!("{}\n", ids.join(",")))?;
        } else if self.open_line {
            write_out("\n")?;
        }
        eprintln!("{}", figures(prompt.len(), answer, loaded));
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

fn write_out(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(CliError::io("writing the answer"))
}

/// TPOT leaves the first token out, as vLLM does.
fn figures(prompt: usize, answer: &Answer, loaded: Duration) -> String {
    let generated = answer.pieces.len();
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let decode = match generated {
        0 | 1 => String::new(),
        _ => format!(", then {:.1} tokens/s", rate(generated - 1, answer.decode)),
    };
    let reason = if answer.reason == FinishReason::Length { " (length reached)" } else { "" };
    format!(
        "[loaded in {:.1} s; {prompt} prompt tokens in {:.1} ms ({:.0} tokens/s); {generated} generated{reason}{decode}]",
        loaded.as_secs_f64(),
        answer.first_token.as_secs_f64() * 1e3,
        rate(prompt, answer.first_token),
    )
}
