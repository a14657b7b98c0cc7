//! Ids in as they are sampled, text out as soon as it is certain. Never half a character, never O(n) per token.
//!
//! A window of the latest ids is decoded twice: what was already given out, and that with the new ids behind it. The
//! difference is the new text. Decoding a window and not single tokens keeps the spaces that SentencePiece strips from
//! the beginning of a text. A text that ends in U+FFFD may still be waiting for the rest of a character.

use super::error::TextError;
use super::tokenizer::Tokenizer;

/// Ids that may wait for the rest of a character; a character has four bytes at most.
const WAITING_MAX: usize = 8;
/// Ids of the prompt that give the first new id its context.
const CONTEXT_IDS: usize = 6;

/// The text of one sequence, while it grows.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    skip_special: bool,
    /// Ids already given out, then ids that wait.
    window: Vec<u32>,
    /// How many of the window's ids are given out.
    given: usize,
    /// The text of those.
    given_text: String,
}

impl Detokenizer {
    /// Begins a text of its own: what comes out is `decode` of all ids.
    pub fn new(skip_special: bool) -> Detokenizer {
        Detokenizer { skip_special, window: Vec::new(), given: 0, given_text: String::new() }
    }

    /// Begins behind `prompt`: a space between the two is kept.
    pub fn after(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        skip_special: bool,
    ) -> Result<Detokenizer, TextError> {
        let window = prompt[prompt.len().saturating_sub(CONTEXT_IDS)..].to_vec();
        let given_text = tokenizer.decode(&window, skip_special)?;
        Ok(Detokenizer { skip_special, given: window.len(), window, given_text })
    }

    /// Takes the next id and returns the text that became certain with it, often one word, sometimes nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TextError> {
        if self.skip_special && tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = tokenizer.decode(&self.window, self.skip_special)?;
        let waiting = self.window.len() - self.given;
        if text.len() > self.given_text.len() && (!text.ends_with('\u{fffd}') || waiting >= WAITING_MAX) {
            return self.give(tokenizer, &text);
        }
        if waiting >= WAITING_MAX {
            // Ids without any text: keep what gives the next one its context.
            self.window.truncate(self.given);
        }
        Ok(String::new())
    }

    /// The text that still waited, with U+FFFD for a character that was never finished.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let text = tokenizer.decode(&self.window, self.skip_special)?;
        let rest = new_text(&self.given_text, &text).to_owned();
        *self = Detokenizer::new(self.skip_special);
        Ok(rest)
    }

    /// Gives out what `text`, the text of the whole window, has more; the ids that waited become the context.
    fn give(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<String, TextError> {
        let new = new_text(&self.given_text, text).to_owned();
        self.window.drain(..self.given);
        self.given = self.window.len();
        self.given_text = tokenizer.decode(&self.window, self.skip_special)?;
        Ok(new)
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

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{byte_level, sentence_piece};
    use super::*;

    fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(skip_special);
        let mut pieces: Vec<String> =
            ids.iter().map(|id| detokenizer.push(tokenizer, *id).unwrap()).collect();
        pieces.push(detokenizer.finish(tokenizer).unwrap());
        pieces
    }

    #[test]
    fn pieces_are_the_whole() {
        let texts = [
            "he was é",
            "🦀🦀 ünï",
            "",
            " leading",
            "a\n\n  b",
            "🏳️‍🌈 flags 🇪🇺",
            "日本語 テキスト",
            "Hello  world!",
        ];
        for tokenizer in [byte_level(), sentence_piece()] {
            for text in texts {
                let ids = tokenizer.encode(text, false).unwrap();
                let pieces = pieces(&tokenizer, &ids, true);
                assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap(), "{text:?}");
                assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
                assert_eq!(pieces.last().map(String::as_str), Some(""), "{text:?} waits for nothing");
            }
        }
    }

    #[test]
    fn spaces_between_tokens_stay() {
        let tokenizer = sentence_piece();
        let ids: Vec<u32> =
            ["▁Hello", "▁world", "▁", "▁world", "▁▁", "a"].map(|p| tokenizer.token_to_id(p).unwrap()).into();
        assert_eq!(pieces(&tokenizer, &ids, false), ["Hello", " world", " ", " world", "  ", "a", ""]);
        let mut after = Detokenizer::after(&tokenizer, &ids[..1], false).unwrap();
        assert_eq!(after.push(&tokenizer, ids[1]).unwrap(), " world");
        let blank = [tokenizer.token_to_id("▁").unwrap(), ids[1]];
        assert_eq!(pieces(&tokenizer, &blank, false).concat(), " world");
    }

    #[test]
    fn special_tokens_are_skipped_or_shown() {
        let tokenizer = byte_level();
        let ids = [259, b'h'.into(), 260, b'i'.into()];
        assert_eq!(pieces(&tokenizer, &ids, true), ["", "h", "", "i", ""]);
        assert_eq!(pieces(&tokenizer, &ids, false), ["<s>", "h", "</s>", "i", ""]);
    }

    #[test]
    fn half_a_character_waits_and_a_broken_one_does_not_block() {
        let tokenizer = byte_level();
        let crab: Vec<u32> = "🦀".bytes().map(u32::from).collect();
        assert_eq!(pieces(&tokenizer, &crab, true), ["", "", "", "🦀", ""]);
        assert_eq!(pieces(&tokenizer, &crab[..2], true).concat(), "\u{fffd}");
        let broken: Vec<u32> = std::iter::repeat_n(0xff, 40).chain([u32::from(b'x')]).collect();
        assert_eq!(pieces(&tokenizer, &broken, true).concat(), tokenizer.decode(&broken, true).unwrap());
    }

    #[test]
    fn the_window_stays_small() {
        let tokenizer = byte_level();
        let mut detokenizer = Detokenizer::new(true);
        let ids = (0..5_000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 24).chain([300; 100]);
        for id in ids {
            detokenizer.push(&tokenizer, id).unwrap();
            assert!(detokenizer.window.len() <= 2 * WAITING_MAX);
        }
    }
}
