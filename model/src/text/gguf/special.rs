//! The special tokens and the chat templates of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use super::vocabulary::{Kind, Token, Vocabulary};
use crate::gguf::Metadata;

pub const BOS: &str = "tokenizer.ggml.bos_token_id";
pub const EOS: &str = "tokenizer.ggml.eos_token_id";
pub const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Ids that end a text, of a turn or a message too.
const ENDS: [&str; 3] = [EOS, "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// Control tokens that end a text by their name. A GGUF file names one end where `generation_config.json` has several;
/// llama.cpp knows these by heart, too.
const END_TEXTS: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>"];

/// The ids that end a generation, in order and once each.
pub fn stop_ids(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<u32>, String> {
    let mut ids = BTreeSet::new();
    for key in ENDS {
        ids.extend(vocabulary.named(metadata, key)?.map(|token| token.id));
    }
    let by_name = |token: &Token<'_>| token.kind == Kind::Control && END_TEXTS.contains(&token.text);
    ids.extend(vocabulary.tokens().filter(by_name).map(|token| token.id));
    Ok(ids.into_iter().collect())
}

/// What a chat template calls `bos_token` and so on.
pub fn special_tokens(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Map<String, Json>, String> {
    let named = [
        ("bos_token", BOS),
        ("eos_token", EOS),
        ("unk_token", UNKNOWN),
        ("sep_token", "tokenizer.ggml.seperator_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("mask_token", "tokenizer.ggml.mask_token_id"),
    ];
    let mut special = Map::new();
    for (name, key) in named {
        if let Some(token) = vocabulary.named(metadata, key)? {
            special.insert(name.to_owned(), token.text.into());
        }
    }
    Ok(special)
}

/// The templates by name; the one without a name is `default`.
pub fn templates(metadata: &Metadata) -> Result<BTreeMap<String, String>, String> {
    let mut templates = BTreeMap::new();
    if let Some(text) = metadata.text(TEMPLATE)? {
        templates.insert("default".to_owned(), text.to_owned());
    }
    for name in metadata.list("tokenizer.chat_templates")?.unwrap_or_default() {
        let name = name.text().ok_or("tokenizer.chat_templates: an entry is not a string")?;
        if let Some(text) = metadata.text(&format!("{TEMPLATE}.{name}"))? {
            templates.insert(name.to_owned(), text.to_owned());
        }
    }
    Ok(templates)
}

/// What `tokenizer.json` calls a post-processor: the tokens that belong around every text, if the file wants any.
pub fn around(metadata: &Metadata, vocabulary: &Vocabulary<'_>, bos: bool) -> Result<Json, String> {
    let wanted = [("tokenizer.ggml.add_bos_token", BOS, bos), ("tokenizer.ggml.add_eos_token", EOS, false)];
    let mut tokens = [None; 2];
    for ((flag, key, default), token) in wanted.into_iter().zip(&mut tokens) {
        if metadata.flag(flag)?.unwrap_or(default) {
            *token = Some(
                vocabulary
                    .named(metadata, key)?
                    .ok_or_else(|| format!("{flag} is true, but {key} is missing"))?,
            );
        }
    }
    let [first, last] = tokens;
    let piece = |token: Token<'_>| json!({"SpecialToken": {"id": token.text, "type_id": 0}});
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Json> = first.map(piece).into_iter().chain([sequence]).chain(last.map(piece)).collect();
    let entry = |token: Token<'_>| {
        (token.text.to_owned(), json!({"id": token.text, "ids": [token.id], "tokens": [token.text]}))
    };
    let special: Map<String, Json> = first.into_iter().chain(last).map(entry).collect();
    if special.is_empty() {
        return Ok(Json::Null);
    }
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}))
}
