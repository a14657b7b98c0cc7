//! What bytes a token stands for. In: the `decoder` of `tokenizer.json` and the pieces of its vocabulary.
//!
//! The two decoders that language models use are done here token by token; the others see whole lists of tokens.

use serde_json::Value;

/// How a tokenizer's decoder turns pieces into text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// Every byte is a printable character (GPT-2's table).
    ByteLevel,
    /// `▁` is a space and `<0xE2>` a byte.
    SentencePiece(SentencePiece),
    /// Only the tokenizer itself knows.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SentencePiece {
    /// `<0xE2>` is a byte and no text.
    byte_fallback: bool,
    /// Spaces that are dropped from the beginning of the text.
    pub strip: usize,
    /// Every `▁` of the first token is dropped.
    drop_first: bool,
}

impl Pieces {
    /// Reads the `decoder` of a tokenizer.
    pub fn of(decoder: Option<&Value>) -> Pieces {
        let Some(decoder) = decoder else { return Pieces::Other };
        let steps = match decoder["decoders"].as_array() {
            Some(steps) if decoder["type"] == "Sequence" => &steps[..],
            _ => std::slice::from_ref(decoder),
        };
        match steps {
            [only] if only["type"] == "ByteLevel" => Pieces::ByteLevel,
            steps => sentence_piece(steps).map_or(Pieces::Other, Pieces::SentencePiece),
        }
    }

    /// The bytes of a token; `first` says whether it is the first of its text. `None` where only lists are decoded.
    pub fn bytes(self, piece: &str, first: bool) -> Option<Vec<u8>> {
        match self {
            Pieces::ByteLevel => {
                let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
                Some(bytes.unwrap_or_else(|| piece.as_bytes().to_vec()))
            }
            Pieces::SentencePiece(style) => Some(style.bytes(piece, first)),
            Pieces::Other => None,
        }
    }
}

/// `Replace` or `Metaspace`, then `ByteFallback`, `Fuse` and `Strip`, each where there is one.
fn sentence_piece(steps: &[Value]) -> Option<SentencePiece> {
    let mut style = SentencePiece::default();
    let (space, mut rest) = steps.split_first()?;
    match space["type"].as_str()? {
        "Replace" if space["pattern"]["String"] == "\u{2581}" && space["content"] == " " => {}
        "Metaspace" if space["replacement"] == "\u{2581}" => {
            style.drop_first = space["prepend_scheme"] != "never" && space["add_prefix_space"] != false;
        }
        _ => return None,
    }
    if let [step, behind @ ..] = rest
        && step["type"] == "ByteFallback"
    {
        (style.byte_fallback, rest) = (true, behind);
    }
    match rest {
        [] => {}
        [fuse] if fuse["type"] == "Fuse" => {}
        [fuse, strip] if fuse["type"] == "Fuse" && strip["type"] == "Strip" => {
            if strip["content"] != " " || strip["stop"] != 0 {
                return None;
            }
            style.strip = usize::try_from(strip["start"].as_u64()?).ok()?;
        }
        _ => return None,
    }
    Some(style)
}

impl SentencePiece {
    fn bytes(self, piece: &str, first: bool) -> Vec<u8> {
        let space = if first && self.drop_first { "" } else { " " };
        let text = piece.replace('\u{2581}', space);
        let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        let hex = hex.filter(|hex| self.byte_fallback && hex.len() == 2);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => text.into_bytes(),
        }
    }
}

/// The byte behind a character of GPT-2's table: printable Latin-1 stands for itself, the 68 others follow 0x100.
pub fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| printable(*byte)),
        // The 34 controls with the space, then 0x7f to 0xa0, then 0xad.
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_of_bytes_is_a_bijection() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('ł')), (Some(b' '), Some(b'\n'), Some(0xa0)));
    }

    #[test]
    fn decoders_are_known_by_their_steps() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let strip = |stop| json!({"type": "Strip", "content": " ", "start": 1, "stop": stop});
        let sequence = |steps: &[&Value]| Pieces::of(Some(&json!({"type": "Sequence", "decoders": steps})));
        let known = |byte_fallback, strip, drop_first| {
            Pieces::SentencePiece(SentencePiece { byte_fallback, strip, drop_first })
        };
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
        let table = [
            (Pieces::of(None), Pieces::Other),
            (Pieces::of(Some(&json!({"type": "ByteLevel"}))), Pieces::ByteLevel),
            (Pieces::of(Some(&json!({"type": "WordPiece"}))), Pieces::Other),
            (Pieces::of(Some(&metaspace)), known(false, 0, true)),
            (sequence(&[&replace, &fallback, &fuse, &strip(0)]), known(true, 1, false)),
            (sequence(&[&replace, &fallback, &fuse]), known(true, 0, false)),
            (sequence(&[&replace, &fallback, &fuse, &strip(1)]), Pieces::Other),
            (sequence(&[&replace, &fallback, &strip(0), &fuse]), Pieces::Other),
            (sequence(&[&replace, &replace]), Pieces::Other),
            (sequence(&[]), Pieces::Other),
        ];
        for (i, (found, expected)) in table.into_iter().enumerate() {
            assert_eq!(found, expected, "row {i}");
        }
    }
}
