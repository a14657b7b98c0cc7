//! A prompt that stands in front of its answers: its text, and where in it each token begins.

use super::logprobs::TokenNames;
use crate::openai::{ApiError, Prompt};
use crate::serving::Served;

/// One prompt as its answers begin.
pub struct Echo {
    pub text: String,
    /// The first token, which has no probability.
    pub first: Option<u32>,
    /// Characters of the text that each token stands for, where log-probabilities are wanted.
    pub widths: Vec<usize>,
}

/// How prompts become tokens and come back.
pub struct Reading<'a> {
    pub served: &'a Served,
    pub names: &'a TokenNames,
    pub add_special: bool,
    pub echo: bool,
    pub logprobs: bool,
}

impl Reading<'_> {
    /// Tokens of a prompt, and what its answers begin with where they do.
    pub async fn read(&self, param: &str, prompt: Prompt) -> Result<(Vec<u32>, Option<Echo>), ApiError> {
        let Reading { served, names, add_special, echo, logprobs } = *self;
        match prompt {
            Prompt::Text(text) => {
                if !echo {
                    return Ok((served.encode(param, text, add_special).await?, None));
                }
                let tokens = served.encode(param, text.clone(), add_special).await?;
                let mut widths = Vec::new();
                if logprobs {
                    // What the tokenizer puts around a text is no part of it; what looks like that inside of it is.
                    let own = match add_special {
                        true => served.encode(param, text.clone(), false).await?,
                        false => tokens.clone(),
                    };
                    let before = tokens.windows(own.len().max(1)).position(|some| some == own).unwrap_or(0);
                    let inside = before..before + own.len();
                    let width = |(index, id): (usize, &u32)| {
                        if inside.contains(&index) { names.characters(*id) } else { 0 }
                    };
                    widths = tokens.iter().enumerate().map(width).collect();
                    strip(&mut widths, &text, before);
                }
                let first = tokens.first().copied();
                Ok((tokens, Some(Echo { text, first, widths })))
            }
            Prompt::Tokens(ids) => {
                served.check_length(param, ids.len())?;
                if !echo {
                    return Ok((ids, None));
                }
                let text = match served.tokenizer.is_some() {
                    true => served.decode(param, ids.clone(), names.skip_special).await?,
                    false => String::new(),
                };
                let asked = if logprobs { &ids[..] } else { &[] };
                let mut widths: Vec<usize> = asked.iter().map(|id| names.width(*id)).collect();
                let begin = widths.iter().position(|width| *width > 0).unwrap_or(0);
                strip(&mut widths, &text, begin);
                let first = ids.first().copied();
                Ok((ids, Some(Echo { text, first, widths })))
            }
        }
    }
}

/// Some tokenizers put a space in front of a text, and take it away when they give the text back.
fn strip(widths: &mut [usize], text: &str, first: usize) {
    let all: usize = widths.iter().sum();
    if all == text.chars().count() + 1
        && let Some(width) = widths.get_mut(first)
    {
        *width = width.saturating_sub(1);
    }
}
