//! One request from its first byte to its last, with the times at which its parts came.
//!
//! TTFT ends with the first event that carries a part of the answer; a role alone is none. ITL is the time between two such
//! events, whatever number of tokens they hold. End to end ends with the last event that has a choice, so that neither the
//! usage nor `[DONE]` counts.

use std::time::Instant;

use serde_json::Value;

use super::dialect::Dialect;
use super::prompt::Prompt;
use crate::endpoint::{Endpoint, Failure};

/// A request with its words.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Seconds after the start, where it has a time.
    pub due: Option<f64>,
    pub prompt: Prompt,
    pub output: u32,
}

/// What became of it. Times are seconds, all of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Record {
    /// Place in the load.
    pub index: usize,
    /// After the start of the run.
    pub start: f64,
    /// Behind the time it was due.
    pub late: f64,
    /// As it was counted before.
    pub prompt_tokens: u32,
    pub result: Result<Answer, Failure>,
    /// When it ended, well or badly.
    pub end: f64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub ttft: f64,
    pub itls: Vec<f64>,
    pub e2el: f64,
    /// As the server's usage has it.
    pub prompt_tokens: Option<u32>,
    pub output: OutputTokens,
    /// Of a completion, or the content of a chat.
    pub text: String,
}

/// How many tokens an answer has, and who says so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum OutputTokens {
    /// The server's usage.
    Usage(u32),
    /// It ended because it had the length that was asked for.
    Limit(u32),
    #[default]
    Unknown,
}

impl OutputTokens {
    pub fn count(self) -> Option<u32> {
        match self {
            OutputTokens::Usage(count) | OutputTokens::Limit(count) => Some(count),
            OutputTokens::Unknown => None,
        }
    }
}

impl Answer {
    /// Time per token behind the first, as vLLM defines it.
    pub fn tpot(&self) -> Option<f64> {
        let tokens = self.output.count().filter(|tokens| *tokens > 1)?;
        Some((self.e2el - self.ttft) / f64::from(tokens - 1))
    }
}

/// Sends a request and reads its answer to the end.
pub fn perform(
    endpoint: &Endpoint,
    dialect: &Dialect,
    asked: &Asked,
    body: String,
    start: Instant,
) -> Result<Answer, Failure> {
    let mut stream = endpoint.stream(&dialect.url(endpoint), body)?;
    let mut reading = Reading::new(start);
    while let Some(event) = stream.next()? {
        reading.on(event.at, &event.body);
    }
    stream.finish();
    reading.answer(asked.output)
}

/// An answer while it comes.
struct Reading {
    start: Instant,
    /// When the latest part came.
    part: Option<Instant>,
    /// When the latest event with a choice came.
    last: Option<Instant>,
    finish: Option<String>,
    answer: Answer,
    usage: Option<u32>,
}

impl Reading {
    fn new(start: Instant) -> Reading {
        Reading { start, part: None, last: None, finish: None, answer: Answer::default(), usage: None }
    }

    fn on(&mut self, at: Instant, body: &Value) {
        let count = |name: &str| body["usage"][name].as_u64().map(|count| count as u32);
        self.answer.prompt_tokens = count("prompt_tokens").or(self.answer.prompt_tokens);
        self.usage = count("completion_tokens").or(self.usage);
        let choice = &body["choices"][0];
        if choice.is_null() {
            return;
        }
        self.last = Some(at);
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_string());
        }
        if !carries_text(choice) {
            return;
        }
        let text = [&choice["text"], &choice["delta"]["content"]].into_iter().find_map(Value::as_str);
        self.answer.text += text.unwrap_or_default();
        match self.part {
            None => self.answer.ttft = (at - self.start).as_secs_f64(),
            Some(before) => self.answer.itls.push((at - before).as_secs_f64()),
        }
        self.part = Some(at);
    }

    fn answer(mut self, asked: u32) -> Result<Answer, Failure> {
        let Some(last) = self.last else {
            return Err(Failure::Cut("there was no event with a choice".to_string()));
        };
        let Some(finish) = self.finish else {
            return Err(Failure::Cut("[DONE] without a finish_reason".to_string()));
        };
        self.answer.e2el = (last - self.start).as_secs_f64();
        // All of its tokens had no text: the client saw nothing before the end.
        if self.part.is_none() {
            self.answer.ttft = self.answer.e2el;
        }
        self.answer.output = match self.usage {
            Some(count) => OutputTokens::Usage(count),
            None if finish == "length" => OutputTokens::Limit(asked),
            None => OutputTokens::Unknown,
        };
        Ok(self.answer)
    }
}

/// A part of the answer: text of a completion, or content, reasoning or a call of a chat.
fn carries_text(choice: &Value) -> bool {
    let some = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let delta = &choice["delta"];
    some(&choice["text"])
        || ["content", "reasoning_content", "reasoning"].iter().any(|name| some(&delta[name]))
        || delta["tool_calls"].is_array()
}
