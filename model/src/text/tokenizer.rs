//! Text to token ids and back. In: the tokenizer files of a model folder. Out: ids, text, the special tokens.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::TextError;
use super::files;
use super::guard::{self, caught};
use super::pieces::Pieces;

/// Bytes of `tokenizer.json`.
pub const TOKENIZER_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a text that is tokenized at once.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// The tokenizer of a model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What errors call it.
    file: String,
    stops: Vec<u32>,
    pieces: Pieces,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and where there are any `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` and `config.json` for the tokens that end a text.
    pub fn from_folder(folder: &Path) -> Result<Tokenizer, TextError> {
        let path = folder.join("tokenizer.json");
        let Some(content) = files::bytes(&path, TOKENIZER_BYTES_MAX)? else {
            return Err(files::invalid(&path, "there is no such file, and no text without it".into()));
        };
        let mut tokenizer = Tokenizer::from_bytes(&path.display().to_string(), &content)?;
        let object = |name: &str| files::json_object(&folder.join(name)).map(Option::unwrap_or_default);
        let (config, map) = (object("tokenizer_config.json")?, object("special_tokens_map.json")?);
        let eos =
            files::token_text(config.get("eos_token")).or_else(|| files::token_text(map.get("eos_token")));
        let eos = eos.and_then(|eos| tokenizer.inner.token_to_id(&eos));
        tokenizer.stops = stop_ids(&object("generation_config.json")?, &object("config.json")?, eos);
        Ok(tokenizer)
    }

    /// A tokenizer from the text of a `tokenizer.json` that errors call `file`, without tokens that end a text.
    pub fn from_bytes(file: &str, content: &[u8]) -> Result<Tokenizer, TextError> {
        let invalid = |detail: String| TextError::Invalid { file: file.to_owned(), detail };
        if content.len() as u64 > TOKENIZER_BYTES_MAX {
            let (bytes, limit) = (content.len() as u64, TOKENIZER_BYTES_MAX);
            return Err(TextError::TooLarge { file: file.to_owned(), bytes, limit });
        }
        let decoder = guard::check(content).map_err(invalid)?;
        let load = || {
            let mut inner = tokenizers::Tokenizer::from_bytes(content)?;
            inner.with_padding(None);
            inner.with_truncation(None)?;
            Ok(inner)
        };
        let loaded: Result<tokenizers::Tokenizer, tokenizers::Error> =
            caught(load).map_err(|detail| invalid(format!("it makes the tokenizer panic: {detail}")))?;
        let inner = loaded.map_err(|error| invalid(error.to_string()))?;
        let pieces = Pieces::of(decoder.as_ref());
        Ok(Tokenizer { inner, file: file.to_owned(), stops: Vec::new(), pieces })
    }

    /// The same with the ids that end a generation.
    pub(super) fn with_stops(self, stops: Vec<u32>) -> Tokenizer {
        Tokenizer { stops, ..self }
    }

    /// The ids of `text`; with `add_special` those that the model wants around it too.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TextError::TextTooLong { bytes: text.len() });
        }
        self.run(|| self.inner.encode_fast(text, add_special).map(|encoding| encoding.get_ids().to_vec()))
    }

    /// The text of `ids`. As in transformers an id that is no token has no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.run(|| self.inner.decode(ids, skip_special))
    }

    /// The ids that end a generation: the tokenizer's and the model's, in order and once each.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stops
    }

    /// Whether a token is one that `decode` may skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.piece(id, false).is_some() && self.piece(id, true).is_none()
    }

    /// The bytes that a token stands for inside a text; `None` for an id that is no token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.piece(id, false)?;
        Some(self.pieces.bytes(&piece, false).unwrap_or_else(|| piece.into_bytes()))
    }

    /// Most bytes of a text that one token stands for; `None` where that cannot be told (a token for all that is unknown).
    pub fn token_bytes_max(&self) -> Option<usize> {
        if self.pieces == Pieces::Other {
            return None;
        }
        let ids = 0..self.inner.get_vocab_size(true) as u32;
        ids.filter_map(|id| self.token_bytes(id)).map(|bytes| bytes.len()).max()
    }

    /// The piece of a token as `decode` sees it; none for an id that is no token or one that is skipped.
    pub(super) fn piece(&self, id: u32, skip_special: bool) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        let piece = added.simple_id_to_token(id).or_else(|| self.inner.id_to_token(id));
        piece.filter(|piece| !skip_special || !added.is_special_token(piece))
    }

    pub(super) fn pieces(&self) -> Pieces {
        self.pieces
    }

    fn run<T>(&self, work: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, TextError> {
        let outcome = caught(work).map_err(|detail| format!("it panicked: {detail}"));
        let outcome = outcome.and_then(|outcome| outcome.map_err(|error| error.to_string()));
        outcome.map_err(|detail| TextError::Tokenize { file: self.file.clone(), detail })
    }
}

/// `eos_token_id` of the generation's configuration, else of the model's; a number or a list of them.
fn stop_ids(generation: &Map<String, Value>, model: &Map<String, Value>, eos: Option<u32>) -> Vec<u32> {
    let named =
        [generation, model].into_iter().find_map(|file| file.get("eos_token_id").filter(|id| !id.is_null()));
    let listed = match named {
        Some(Value::Array(list)) => &list[..],
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    let ids = listed.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok());
    let ids: BTreeSet<u32> = ids.chain(eos).collect();
    ids.into_iter().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::pieces::byte_of;
    use super::*;

    impl Tokenizer {
        pub fn token_to_id(&self, piece: &str) -> Option<u32> {
            self.inner.token_to_id(piece)
        }

        /// The token that is a byte in the tokenizers below.
        pub fn byte_id(&self, byte: u8) -> u32 {
            self.token_to_id(&format!("<0x{byte:02X}>")).unwrap_or(byte.into())
        }
    }

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

    /// A tokenizer whose decoder joins pieces by looking at their neighbours.
    pub fn word_piece() -> Tokenizer {
        load(json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100,
                      "vocab": {"[UNK]": 0, "the": 1, "cat": 2, "##ty": 3}},
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
            let pieces = ids.iter().map(|id| tokenizer.piece(*id, false).unwrap());
            let bytes: Vec<u8> =
                pieces.flat_map(|piece| tokenizer.pieces().bytes(&piece, false).unwrap()).collect();
            assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), text);
        }
    }

    #[test]
    fn stops_come_from_every_file() {
        let tokenizer = byte_level();
        assert_eq!(tokenizer.stop_ids(), [3, 7, 260]);
        assert_eq!(tokenizer.decode(&[259, 104, 260], true).unwrap(), "h");
    }

    /// Files that the tokenizers crate panics on, while it loads them or later.
    #[test]
    fn what_panics_is_an_error_that_names_the_file() {
        let plain = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "pre_tokenizer": null,
            "decoder": null, "model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "merges": [], "unk_token": "<unk>"}});
        let template = json!({"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
        let table = [
            ("decoder", json!({"type": "Strip", "content": "a", "start": 0, "stop": 9})),
            ("decoder", json!({"type": "Strip", "content": "a", "start": 1, "stop": 1})),
            ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
            ("post_processor", template),
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAP////8="})),
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        ];
        for (part, step) in table {
            let mut file = plain.clone();
            file[part] = step.clone();
            let outcome = Tokenizer::from_bytes("m/tokenizer.json", file.to_string().as_bytes())
                .and_then(|tokenizer| tokenizer.encode("aab", true).map(|ids| (tokenizer, ids)))
                .and_then(|(tokenizer, ids)| tokenizer.decode(&ids, false));
            let message = outcome.expect_err(part).to_string();
            assert!(message.contains("m/tokenizer.json: "), "{step}: {message}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let tokenizer = byte_level();
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
