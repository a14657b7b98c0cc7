//! Tokenizer and chat template out of a GGUF file's metadata. In: an open file. Out: the same values as from a folder.
//!
//! A tokenizer is written down as the `tokenizer.json` that the model was published with, and goes the way of any other.

mod byte_level;
mod sentence_piece;
mod special;
mod vocabulary;

use serde_json::{Value, json};

use super::ChatTemplate;
use super::error::TextError;
use super::tokenizer::{TOKENIZER_BYTES_MAX, Tokenizer};
use crate::gguf::{GgufFile, Metadata};
use vocabulary::{Kind, Vocabulary};

const MODEL: &str = "tokenizer.ggml.model";

impl Tokenizer {
    /// Whether the file has a tokenizer at all.
    pub fn is_in_gguf(gguf: &GgufFile) -> bool {
        gguf.metadata().value(MODEL).is_some_and(|model| model.text() != Some("none"))
    }

    /// The tokenizer of a GGUF file, with the tokens that end a text.
    pub fn from_gguf(gguf: &GgufFile) -> Result<Tokenizer, TextError> {
        let file = gguf.path().display().to_string();
        let invalid = |detail: String| TextError::Invalid { file: file.clone(), detail };
        let vocabulary = Vocabulary::read(gguf.metadata()).map_err(invalid)?;
        let json = tokenizer_json(gguf.metadata(), &vocabulary).map_err(invalid)?;
        let stops = special::stop_ids(gguf.metadata(), &vocabulary).map_err(invalid)?;
        let tokenizer = Tokenizer::from_bytes(&file, json.to_string().as_bytes())?;
        Ok(tokenizer.with_stops(stops))
    }
}

impl ChatTemplate {
    /// The chat template of a GGUF file; `None` when it has none.
    pub fn from_gguf(gguf: &GgufFile) -> Result<Option<ChatTemplate>, TextError> {
        let file = gguf.path().display().to_string();
        let invalid = |detail: String| TextError::Invalid { file: file.clone(), detail };
        let sources = special::templates(gguf.metadata()).map_err(invalid)?;
        if sources.is_empty() {
            return Ok(None);
        }
        let vocabulary = Vocabulary::read(gguf.metadata()).map_err(invalid)?;
        let special = special::special_tokens(gguf.metadata(), &vocabulary).map_err(invalid)?;
        ChatTemplate::from_sources(&file, &sources, special).map(Some)
    }
}

/// The whole `tokenizer.json`.
fn tokenizer_json(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    let mut json = match metadata.text(MODEL)? {
        Some("gpt2") => byte_level::tokenizer_json(metadata, vocabulary)?,
        Some("llama") => sentence_piece::tokenizer_json(metadata, vocabulary)?,
        Some(other) => {
            return Err(format!("{MODEL}: {other:?} is not supported; this version has gpt2 and llama"));
        }
        None => return Err(format!("{MODEL}: missing, and there is no text without it")),
    };
    let added =
        vocabulary.tokens().filter(|token| matches!(token.kind, Kind::Control | Kind::Unknown | Kind::User));
    json["added_tokens"] = added
        .map(|token| {
            json!({"id": token.id, "content": token.text, "special": token.kind != Kind::User,
                   "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    json["version"] = "1.0".into();
    Ok(json)
}
