//! How long a text is in the server's tokens: asked of the server where it answers that, else estimated.
//!
//! `/tokenize` is vLLM's, ours and llama.cpp's (which reads `content`); `/extras/tokenize/count` is llama-cpp-python's.

use serde_json::{Value, json};

use super::dialect::Dialect;
use super::words::WORDS;
use crate::endpoint::{Endpoint, Failure};

/// What a word costs where nobody says.
const TOKENS_PER_WORD: f64 = 1.1;

pub enum Counting {
    /// This address says it.
    Asked { url: String },
    /// A prompt has `fixed` tokens and so many for each word.
    Estimated { fixed: f64, per_word: f64 },
}

impl Counting {
    /// The first way that works. The estimate is a line through two prompts whose usage the server tells.
    pub fn find(endpoint: &Endpoint, dialect: &Dialect) -> Counting {
        for url in [endpoint.root_url("/tokenize"), endpoint.root_url("/extras/tokenize/count")] {
            let counting = Counting::Asked { url };
            if counting.count(endpoint, dialect, "one two three").is_ok_and(|count| count >= 3) {
                return counting;
            }
        }
        let (few, many) = (16, 144);
        let usage = |words: usize| dialect.prompt_tokens(endpoint, &WORDS[..words].join(" "));
        match (usage(few), usage(many)) {
            (Some(low), Some(high)) if high > low => {
                let per_word = f64::from(high - low) / (many - few) as f64;
                Counting::Estimated { fixed: f64::from(low) - per_word * few as f64, per_word }
            }
            _ => Counting::Estimated { fixed: 0.0, per_word: TOKENS_PER_WORD },
        }
    }

    /// How the lengths of prompts came to be, for the report.
    pub fn source(&self) -> &'static str {
        match self {
            Counting::Asked { .. } => "tokenize",
            Counting::Estimated { .. } => "estimate",
        }
    }

    pub fn count(&self, endpoint: &Endpoint, dialect: &Dialect, text: &str) -> Result<u32, Failure> {
        let url = match self {
            Counting::Asked { url } => url,
            Counting::Estimated { fixed, per_word } => {
                return Ok((fixed + per_word * text.split(' ').count() as f64).round().max(1.0) as u32);
            }
        };
        let mut body = json!({"model": dialect.model, "content": text, "input": text});
        match dialect.chat {
            true => body["messages"] = json!([{"role": "user", "content": text}]),
            false => body["prompt"] = text.into(),
        }
        let answer = endpoint.post(url, &body)?;
        let count = answer["count"].as_u64();
        let count = count.or_else(|| answer["tokens"].as_array().map(|tokens| tokens.len() as u64));
        count.map(|count| count as u32).ok_or_else(|| Failure::not_openai(&Value::Null, &answer.to_string()))
    }
}
