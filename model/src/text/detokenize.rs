//! Ids in as they are sampled, text out as soon as it is certain. Never half a character, never O(n) per token.
//!
//! The bytes of each token go into a buffer, and all that is a whole character or can never become one comes out: at
//! most three bytes wait. Broken bytes become U+FFFD as in `decode` of all ids: by the longest prefix of a character
//! where the tokenizer is byte-level, one for each byte where it is SentencePiece. There `decode` would also replace the
//! good characters of an unbroken run of byte tokens that holds a broken one; by then they are given out here.
//!
//! Decoders other than those two are watched through a window of ids.

use super::error::TextError;
use super::pieces::Pieces;
use super::tokenizer::Tokenizer;
use super::window::Window;

/// Bytes at the end of a prompt in which the beginning of a character lies, if there is one.
const LAST_BYTES: usize = 4;

/// The text of one sequence, while it grows.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    skip_special: bool,
    bytes: Stream,
    window: Window,
}

/// The bytes of a sequence, while they grow.
#[derive(Debug, Clone, Default)]
struct Stream {
    /// The beginning of a character.
    waiting: Vec<u8>,
    /// A token came before.
    began: bool,
    /// Spaces dropped from the beginning of the text.
    stripped: usize,
    /// Text came before that is no such space.
    inside: bool,
}

impl Detokenizer {
    /// Begins a text of its own: what comes out is `decode` of all ids.
    pub fn new(skip_special: bool) -> Detokenizer {
        Detokenizer { skip_special, bytes: Stream::default(), window: Window::default() }
    }

    /// Begins behind `prompt`: a space between the two is kept, and a character that it began is finished.
    pub fn after(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        skip_special: bool,
    ) -> Result<Detokenizer, TextError> {
        let mut detokenizer = Detokenizer::new(skip_special);
        match tokenizer.pieces() {
            Pieces::Other => detokenizer.window = Window::after(tokenizer, prompt, skip_special)?,
            _ => detokenizer.read_prompt(tokenizer, prompt)?,
        }
        Ok(detokenizer)
    }

    /// Reads the beginning of a prompt, which decides about spaces, and its end, where a character may have begun.
    ///
    /// A byte that begins a character does so whatever came before, so that the last bytes alone say what waits.
    fn read_prompt(&mut self, tokenizer: &Tokenizer, prompt: &[u32]) -> Result<(), TextError> {
        let pieces = tokenizer.pieces();
        let mut read = 0;
        while read < prompt.len() && !self.bytes.is_inside(pieces) {
            self.push(tokenizer, prompt[read])?;
            read += 1;
        }
        let (mut start, mut bytes) = (prompt.len(), 0);
        while start > read && bytes < LAST_BYTES {
            start -= 1;
            let piece = tokenizer.piece(prompt[start], self.skip_special);
            bytes += piece.and_then(|piece| pieces.bytes(&piece, false)).map_or(0, |bytes| bytes.len());
        }
        for id in &prompt[start..] {
            self.push(tokenizer, *id)?;
        }
        Ok(())
    }

    /// Takes the next id and returns the text that became certain with it, often one word, sometimes nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TextError> {
        let Some(piece) = tokenizer.piece(id, self.skip_special) else { return Ok(String::new()) };
        let pieces = tokenizer.pieces();
        match pieces.bytes(&piece, !self.bytes.began) {
            Some(bytes) => Ok(self.bytes.push(&bytes, pieces)),
            None => self.window.push(tokenizer, id, self.skip_special),
        }
    }

    /// The text that still waited, with U+FFFD for a character that was never finished.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let Detokenizer { bytes, window, skip_special } =
            std::mem::replace(self, Detokenizer::new(self.skip_special));
        match tokenizer.pieces() {
            Pieces::Other => window.finish(tokenizer, skip_special),
            pieces => Ok(replacement(pieces, bytes.waiting.len())),
        }
    }
}

impl Stream {
    fn push(&mut self, bytes: &[u8], pieces: Pieces) -> String {
        self.began = true;
        self.waiting.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.waiting.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let broken = chunk.invalid();
            let at_end = done + broken.len() == self.waiting.len();
            // Only at the end of the buffer may more bytes still make a character of these.
            if at_end && is_beginning(broken) {
                break;
            }
            done += broken.len();
            text.push_str(&replacement(pieces, broken.len()));
        }
        self.waiting.drain(..done);
        self.strip(text, pieces)
    }

    /// Whether nothing more can be dropped as the beginning of the text.
    fn is_inside(&self, pieces: Pieces) -> bool {
        match pieces {
            Pieces::SentencePiece(_) => self.began && self.inside,
            _ => self.began,
        }
    }

    /// Drops the spaces that the decoder drops from the beginning of a text.
    fn strip(&mut self, mut text: String, pieces: Pieces) -> String {
        let Pieces::SentencePiece(style) = pieces else { return text };
        if !self.inside {
            let spaces = text.bytes().take(style.strip - self.stripped).take_while(|b| *b == b' ').count();
            self.stripped += spaces;
            self.inside = self.stripped == style.strip || spaces < text.len();
            text.drain(..spaces);
        }
        text
    }
}

/// Whether more bytes could make a character of `bytes`.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// What is shown for the `count` bytes of a broken character.
fn replacement(pieces: Pieces, count: usize) -> String {
    let each_byte = matches!(pieces, Pieces::SentencePiece(_));
    "\u{fffd}".repeat(if each_byte { count } else { count.min(1) })
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{byte_level, sentence_piece, word_piece};
    use super::*;

    fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
        continued(Detokenizer::new(skip_special), tokenizer, ids)
    }

    fn continued(mut detokenizer: Detokenizer, tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
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
            "Hello 🦀🦀🦀a",
        ];
        for tokenizer in [byte_level(), sentence_piece()] {
            for text in texts {
                let ids = tokenizer.encode(text, false).unwrap();
                let whole = pieces(&tokenizer, &ids, true);
                assert_eq!(whole.concat(), tokenizer.decode(&ids, true).unwrap(), "{text:?}");
                assert!(whole.iter().all(|piece| !piece.contains('\u{fffd}')), "{whole:?}");
                assert_eq!(whole.last().map(String::as_str), Some(""), "{text:?} waits for nothing");
                for split in 0..=ids.len() {
                    let (prompt, answer) = ids.split_at(split);
                    let after = Detokenizer::after(&tokenizer, prompt, true).unwrap();
                    assert_eq!(continued(after, &tokenizer, answer), whole[split..], "{text:?} at {split}");
                }
            }
        }
    }

    /// A stream of small numbers from a seed.
    fn numbers(seed: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(seed), |x| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
            .map(|x| x >> 8)
    }

    #[test]
    fn any_ids_give_the_text_of_the_whole() {
        let mut whole_texts = 0;
        for (tokenizer, vocab) in [(byte_level(), 261), (sentence_piece(), 268)] {
            let crab: Vec<u32> = "🦀é".bytes().map(|b| tokenizer.byte_id(b)).collect();
            for seed in 0..4000 {
                let mut random = numbers(seed);
                let mut next = |below: u32| random.next().unwrap() % below;
                let mut ids = Vec::new();
                for _ in 0..1 + next(8) {
                    // Whole characters, words, any token; now and then broken bytes.
                    match next(4) {
                        0 | 1 => ids.extend(&crab[..4 + 2 * next(2) as usize]),
                        2 => ids.extend([3, 4, 9, 10].map(|id| if vocab == 261 { 97 + id } else { id })),
                        _ if seed % 2 == 0 => ids.push(next(vocab)),
                        _ => ids.push(if vocab == 261 { 32 + next(90) } else { next(12) }),
                    }
                }
                let decoded = tokenizer.decode(&ids, true).unwrap();
                let whole = pieces(&tokenizer, &ids, true);
                if decoded.contains('\u{fffd}') && vocab != 261 {
                    continue;
                }
                assert_eq!(whole.concat(), decoded, "{ids:?}");
                if decoded.contains('\u{fffd}') {
                    continue;
                }
                whole_texts += 1;
                assert!(whole.iter().all(|piece| !piece.contains('\u{fffd}')), "{ids:?}: {whole:?}");
                for split in 0..=ids.len() {
                    let after = Detokenizer::after(&tokenizer, &ids[..split], true).unwrap();
                    assert_eq!(
                        continued(after, &tokenizer, &ids[split..]),
                        whole[split..],
                        "{ids:?} {split}"
                    );
                }
            }
        }
        assert!(whole_texts > 3000, "only {whole_texts} texts without broken bytes");
    }

    #[test]
    fn spaces_between_tokens_stay() {
        let tokenizer = sentence_piece();
        let id = |piece: &str| tokenizer.token_to_id(piece).unwrap();
        let ids = ["▁Hello", "▁world", "▁", "▁world", "▁▁", "a"].map(id);
        assert_eq!(pieces(&tokenizer, &ids, false), ["Hello", " world", " ", " world", "  ", "a", ""]);
        let mut after = Detokenizer::after(&tokenizer, &ids[..1], false).unwrap();
        assert_eq!(after.push(&tokenizer, ids[1]).unwrap(), " world");
        let blank = [id("▁"), ids[1]];
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
        let mixed = [&[0xff, 0xe2, 0x82][..], &crab].concat();
        assert_eq!(pieces(&tokenizer, &mixed, true), ["\u{fffd}", "", "", "\u{fffd}", "", "", "🦀", ""]);
        let tokenizer = sentence_piece();
        let broken: Vec<u32> = [0xe2, 0x82].map(|byte| tokenizer.byte_id(byte)).into();
        let ids = [&broken[..], &[tokenizer.token_to_id("a").unwrap()]].concat();
        assert_eq!(pieces(&tokenizer, &ids, true), ["", "", "\u{fffd}\u{fffd}a", ""]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "\u{fffd}\u{fffd}a");
    }

    #[test]
    fn other_decoders_go_through_a_small_window() {
        let tokenizer = word_piece();
        let ids = [1, 2, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 3];
        let whole = pieces(&tokenizer, &ids, true);
        assert_eq!(whole.concat(), tokenizer.decode(&ids, true).unwrap());
        assert_eq!(whole.concat(), "the catty thety");
        let mut detokenizer = Detokenizer::after(&tokenizer, &ids[..1], true).unwrap();
        assert_eq!(detokenizer.push(&tokenizer, 2).unwrap(), " cat");
        for id in ids.iter().cycle().take(500) {
            detokenizer.push(&tokenizer, *id).unwrap();
            assert!(detokenizer.window.len() <= 16);
        }
    }

    #[test]
    fn few_bytes_wait() {
        let tokenizer = byte_level();
        let mut detokenizer = Detokenizer::new(true);
        for id in numbers(7).take(5_000).map(|x| x % 300) {
            detokenizer.push(&tokenizer, id).unwrap();
            assert!(detokenizer.bytes.waiting.len() <= 3);
        }
    }
}
