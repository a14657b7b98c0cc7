//! The detokenizer for decoders that see whole lists of tokens.
//!
//! A window of the latest ids is decoded twice: what was already given out, and that with the new ids behind it. The
//! difference is the new text. A text that ends in U+FFFD may still be waiting for the rest of a character.

use super::error::TextError;
use super::tokenizer::Tokenizer;

/// Ids that may wait for the rest of a character; a character has four bytes at most.
const WAITING_MAX: usize = 8;
/// Ids of the prompt that give the first new id its context.
const CONTEXT_IDS: usize = 6;

/// The latest ids of one sequence.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Ids already given out, then ids that wait.
    ids: Vec<u32>,
    /// How many of them are given out.
    given: usize,
    /// The text of those.
    given_text: String,
}

impl Window {
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Result<Window, TextError> {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT_IDS)..].to_vec();
        let given_text = tokenizer.decode(&ids, skip_special)?;
        Ok(Window { given: ids.len(), ids, given_text })
    }

    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, skip_special: bool) -> Result<String, TextError> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids, skip_special)?;
        let full = self.ids.len() - self.given >= WAITING_MAX;
        if text == self.given_text {
            if full {
                // Ids without any text: keep what gives the next one its context.
                self.ids.truncate(self.given);
            }
            return Ok(String::new());
        }
        if text.ends_with('\u{fffd}') && !full {
            return Ok(String::new());
        }
        let new = new_text(&self.given_text, &text).to_owned();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.given_text = tokenizer.decode(&self.ids, skip_special)?;
        Ok(new)
    }

    pub fn finish(&self, tokenizer: &Tokenizer, skip_special: bool) -> Result<String, TextError> {
        let text = tokenizer.decode(&self.ids, skip_special)?;
        Ok(new_text(&self.given_text, &text).to_owned())
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

/// What `text` has behind `given`. Bytes that turn out invalid can change what they were decoded to before.
fn new_text<'a>(given: &str, text: &'a str) -> &'a str {
    text.strip_prefix(given).unwrap_or_else(|| {
        let same =
            given.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        &text[same..]
    })
}
