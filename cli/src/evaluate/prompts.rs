//! The prompts, as tokens. In: JSON lines, a model's tokenizer and chat template. Out: what is asked and what is right.

use std::collections::HashMap;
use std::path::Path;

use gaterail_model::ModelSource;
use gaterail_model::text::{ChatInput, ChatTemplate, Tokenizer};
use serde::Deserialize;

use super::args::EvaluateArgs;
use crate::demo;
use crate::error::CliError;

/// Bytes of a file of prompts.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A question with its right answer.
pub struct Prompt {
    pub task: String,
    /// Whether any answer will do, so that none is held against the right one.
    pub free: bool,
    /// Never empty, as is the answer.
    pub tokens: Vec<u32>,
    pub answer: Vec<u32>,
    pub answer_text: String,
}

impl Prompt {
    /// Tokens that a greedy answer may have. What is longer is wrong, or free and long enough.
    pub fn answer_max(&self) -> usize {
        2 * self.answer.len() + 32
    }
}

#[derive(Deserialize)]
struct Line {
    task: String,
    messages: serde_json::Value,
    answer: String,
    #[serde(default)]
    free: bool,
}

/// The prompts that are asked for.
pub fn read(
    args: &EvaluateArgs,
    source: &ModelSource,
    tokenizer: &Tokenizer,
) -> Result<Vec<Prompt>, CliError> {
    let (name, text) = text(args.prompts.as_deref())?;
    let template = source.chat_template()?.ok_or_else(|| {
        CliError::Refused("the model has no chat template, and the prompts are chats".to_string())
    })?;
    let context = source.spec()?.context;
    let mut taken: HashMap<String, usize> = HashMap::new();
    let mut prompts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |why: String| CliError::Refused(format!("{name}, line {}: {why}", index + 1));
        let line: Line = serde_json::from_str(line).map_err(|error| at(error.to_string()))?;
        let taken = taken.entry(line.task.clone()).or_default();
        let wanted = args.tasks.is_empty() || args.tasks.contains(&line.task);
        if !wanted || args.limit.is_some_and(|limit| *taken >= limit) {
            continue;
        }
        *taken += 1;
        let prompt = encode(line, tokenizer, &template)?;
        for (tokens, what) in [(&prompt.tokens, "prompt"), (&prompt.answer, "answer")] {
            if tokens.is_empty() {
                return Err(at(format!("the {what} has no tokens")));
            }
        }
        let length = prompt.tokens.len() + prompt.answer.len();
        if length > context {
            return Err(at(format!("{length} tokens are more than the model's context of {context}")));
        }
        prompts.push(prompt);
    }
    if let Some(task) = args.tasks.iter().find(|task| !taken.contains_key(*task)) {
        let mut known: Vec<&str> = taken.keys().map(String::as_str).collect();
        known.sort_unstable();
        return Err(CliError::Usage(format!(
            "there is no task {task:?} in {name}; there are {}",
            known.join(", ")
        )));
    }
    if prompts.is_empty() {
        return Err(CliError::Refused(format!("{name}: no prompts")));
    }
    Ok(prompts)
}

/// A file of prompts, and what errors call it.
fn text(path: Option<&Path>) -> Result<(String, String), CliError> {
    let Some(path) = path else {
        return Ok(("the demo model's prompts".to_string(), demo::PROMPTS.to_string()));
    };
    let name = path.display().to_string();
    let bytes = std::fs::metadata(path).map_err(CliError::io(name.clone()))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(CliError::Refused(format!("{name} has more than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(CliError::io(name.clone()))?;
    Ok((name, text))
}

fn encode(line: Line, tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Prompt, CliError> {
    let input = ChatInput { messages: line.messages, add_generation_prompt: true, ..ChatInput::default() };
    let tokens = tokenizer.encode(&template.render(&input)?, false)?;
    let answer = tokenizer.encode(&line.answer, false)?;
    Ok(Prompt { task: line.task, free: line.free, tokens, answer, answer_text: line.answer })
}
