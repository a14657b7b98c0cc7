//! Text to token ids and back. In: the tokenizer files of a model folder. Out: ids, text, the special tokens.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::TextError;
use super::files;

/// Bytes of `tokenizer.json`.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a text that is tokenized at once.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// The tokenizer of a model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    stops: Vec<u32>,
    bos: Option<Special>,
    eos: Option<Special>,
    pad: Option<Special>,
    bytes: ByteCode,
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Special {
    pub text: String,
    pub id: u32,
}

/// How the pieces of the vocabulary write bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteCode {
    /// Every byte is a printable character (GPT-2's table).
    ByteLevel,
    /// `▁` is a space and `<0xE2>` a byte (SentencePiece).
    SentencePiece,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and where there are any `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` and `config.json` for the special tokens.
    pub fn from_folder(folder: &Path) -> Result<Tokenizer, TextError> {
        let path = folder.join("tokenizer.json");
        let Some(content) = files::bytes(&path, TOKENIZER_BYTES_MAX)? else {
            return Err(files::invalid(&path, "there is no such file, and no text without it".into()));
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&content)
            .map_err(|error| files::invalid(&path, error.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| files::invalid(&path, error.to_string()))?;
        let object = |name: &str| files::json_object(&folder.join(name)).map(Option::unwrap_or_default);
        let (config, map) = (object("tokenizer_config.json")?, object("special_tokens_map.json")?);
        let special = |name: &str| {
            let text = files::token_text(config.get(name)).or_else(|| files::token_text(map.get(name)))?;
            inner.token_to_id(&text).map(|id| Special { text, id })
        };
        let (bos, eos, pad) = (special("bos_token"), special("eos_token"), special("pad_token"));
        let stops = stop_ids(&object("generation_config.json")?, &object("config.json")?, eos.as_ref());
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let bytes = byte_code(&content);
        Ok(Tokenizer { special, stops, bos, eos, pad, bytes, inner })
    }

    /// The ids of `text`; with `add_special` those that the model wants around it too.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TextError::TextTooLong { bytes: text.len() });
        }
        let encoding = self.inner.encode_fast(text, add_special);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(tokenize)
    }

    /// The text of `ids`. As in transformers an id that is no token has no text; see [`Tokenizer::require`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.inner.decode(ids, skip_special).map_err(tokenize)
    }

    /// Fails on the first of `ids` that is outside the vocabulary.
    pub fn require(&self, ids: &[u32]) -> Result<(), TextError> {
        match ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            Some(id) => Err(TextError::UnknownToken { id: *id, size: self.vocab_size() }),
            None => Ok(()),
        }
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The piece of the vocabulary, as the file writes it.
    pub fn piece(&self, id: u32) -> Result<String, TextError> {
        self.inner.id_to_token(id).ok_or_else(|| TextError::UnknownToken { id, size: self.vocab_size() })
    }

    /// The bytes that a token stands for in the middle of a text.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>, TextError> {
        let piece = self.piece(id)?;
        if self.inner.get_added_vocabulary().simple_id_to_token(id).is_some() {
            return Ok(piece.into_bytes());
        }
        Ok(self.bytes.decode(&piece))
    }

    pub fn token_to_id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// Whether the token controls the model and is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    pub fn bos(&self) -> Option<&Special> {
        self.bos.as_ref()
    }

    pub fn eos(&self) -> Option<&Special> {
        self.eos.as_ref()
    }

    pub fn pad(&self) -> Option<&Special> {
        self.pad.as_ref()
    }

    /// The ids that end a generation: the tokenizer's and the model's, in order and once each.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stops
    }
}

fn tokenize(error: tokenizers::Error) -> TextError {
    TextError::Tokenize { detail: error.to_string() }
}

/// `eos_token_id` of the generation's configuration, else of the model's; a number or a list of them.
fn stop_ids(generation: &Map<String, Value>, model: &Map<String, Value>, eos: Option<&Special>) -> Vec<u32> {
    let named =
        [generation, model].into_iter().find_map(|file| file.get("eos_token_id").filter(|id| !id.is_null()));
    let listed = match named {
        Some(Value::Array(list)) => &list[..],
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    let ids = listed.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok());
    let ids: BTreeSet<u32> = ids.chain(eos.map(|eos| eos.id)).collect();
    ids.into_iter().collect()
}

/// Byte-level tokenizers say so in their decoder or pre-tokenizer.
fn byte_code(tokenizer_json: &[u8]) -> ByteCode {
    #[derive(serde::Deserialize)]
    struct Parts {
        decoder: Option<Value>,
        pre_tokenizer: Option<Value>,
    }
    let names_byte_level = |part: &Value| part.to_string().contains("\"ByteLevel\"");
    match serde_json::from_slice::<Parts>(tokenizer_json) {
        Ok(parts) if parts.decoder.iter().chain(&parts.pre_tokenizer).any(names_byte_level) => {
            ByteCode::ByteLevel
        }
        _ => ByteCode::SentencePiece,
    }
}

impl ByteCode {
    fn decode(self, piece: &str) -> Vec<u8> {
        match self {
            ByteCode::ByteLevel => {
                let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
                bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            ByteCode::SentencePiece => {
                let hex = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => piece.replace('\u{2581}', " ").into_bytes(),
                }
            }
        }
    }
}

/// The byte behind a character of GPT-2's table: printable Latin-1 stands for itself, the 68 others follow 0x100.
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| printable(*byte)),
        code => (0..=0xff).filter(|byte| !printable(*byte)).nth(code as usize - 0x100),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer whose tokens are the 256 bytes in GPT-2's table, `<s>`, `</s>` and a few words.
    pub fn byte_level() -> Tokenizer {
        let mut vocab = Map::new();
        for byte in 0..=255u8 {
            // `byte_of` maps onto all bytes from the characters below 0x144.
            let c = (0u32..0x144).filter_map(char::from_u32).find(|c| byte_of(*c) == Some(byte)).unwrap();
            vocab.insert(c.to_string(), u32::from(byte).into());
        }
        let merges = [("h", "e"), ("Ġ", "w"), ("Ã", "©")];
        for (i, (a, b)) in merges.iter().enumerate() {
            vocab.insert(format!("{a}{b}"), (256 + i as u32).into());
        }
        let merges: Vec<_> = merges.iter().map(|(a, b)| json!([a, b])).collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        load(json!({
            "version": "1.0", "normalizer": null, "post_processor": null,
            "added_tokens": [special(259, "<s>"), special(260, "</s>")],
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        }))
    }

    /// A SentencePiece-like tokenizer: `▁` for spaces, bytes as `<0x..>`, the first space stripped (Llama 2).
    pub fn sentence_piece() -> Tokenizer {
        let words = ["<unk>", "<s>", "</s>", "▁", "▁Hello", "▁world", "world", "!", "▁é", "a", "b", "▁▁"];
        let mut vocab: Map<String, Value> =
            words.iter().enumerate().map(|(i, word)| ((*word).to_owned(), i.into())).collect();
        for byte in 0..=255u32 {
            vocab.insert(format!("<0x{byte:02X}>"), (words.len() as u32 + byte).into());
        }
        load(json!({
            "version": "1.0", "post_processor": null, "pre_tokenizer": null,
            "added_tokens": [special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": true},
        }))
    }

    fn special(id: u32, content: &str) -> Value {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    }

    fn load(tokenizer: Value) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        write("tokenizer.json", tokenizer);
        write(
            "tokenizer_config.json",
            json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null}),
        );
        write("generation_config.json", json!({"eos_token_id": [7, 3]}));
        write("config.json", json!({"eos_token_id": 99}));
        Tokenizer::from_folder(folder.path()).unwrap()
    }

    #[test]
    fn text_survives_the_way_there_and_back() {
        for (tokenizer, text) in
            [(byte_level(), "he was é 🦀 <s>\n"), (sentence_piece(), "Hello world! é 🦀")]
        {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
            assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), text);
        }
    }

    #[test]
    fn special_tokens_come_from_every_file() {
        let tokenizer = byte_level();
        assert_eq!(tokenizer.bos(), Some(&Special { text: "<s>".into(), id: 259 }));
        assert_eq!(tokenizer.eos().map(|eos| eos.id), Some(260));
        assert_eq!((tokenizer.pad(), tokenizer.vocab_size()), (None, 261));
        assert_eq!(tokenizer.stop_ids(), [3, 7, 260]);
        assert!(tokenizer.is_special(259) && !tokenizer.is_special(3));
        assert_eq!(tokenizer.decode(&[259, 104, 260], true).unwrap(), "h");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let tokenizer = byte_level();
        let message = tokenizer.require(&[1, 261]).unwrap_err().to_string();
        assert_eq!(message, "token 261 is outside the vocabulary of 261 tokens");
        assert!(tokenizer.piece(400).is_err() && tokenizer.require(&[0, 260]).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let failure = || Tokenizer::from_folder(folder.path()).err().unwrap().to_string();
        assert!(failure().contains("tokenizer.json: there is no such file"));
        std::fs::write(folder.path().join("tokenizer.json"), "{\"model\": 1").unwrap();
        assert!(failure().contains("tokenizer.json: "));
        assert!(matches!(
            tokenizer.encode(&"a".repeat(TEXT_BYTES_MAX + 1), false),
            Err(TextError::TextTooLong { .. })
        ));
    }
}
