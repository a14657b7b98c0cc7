//! `llama` tokenizers: SentencePiece's BPE. A file has scores instead of merges: of all pieces that two neighbours can
//! become, the one of the highest score is made first.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::special::{self, UNKNOWN};
use super::vocabulary::{Kind, Vocabulary};
use crate::gguf::Metadata;

const SPACE: &str = "\u{2581}";
/// Bytes that are compared while merges are sought: every half of every token.
const WORK_BYTES_MAX: usize = 1 << 30;

pub fn tokenizer_json(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Json, String> {
    let ids = vocabulary.ids()?;
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = vocabulary.named(metadata, UNKNOWN)?;
    let unknown = unknown.or_else(|| vocabulary.tokens().find(|token| token.kind == Kind::Unknown));
    let to_mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let to_space = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    let mut normalizers = vec![to_mark];
    let mut decoders = vec![to_space, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        // At the beginning, and behind every special token, as in llama.cpp.
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let bytes = (0..=255).all(|byte: u8| ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": special::around(metadata, vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "vocab": vocabulary.json(), "merges": merges(vocabulary, &ids)?,
                  "unk_token": unknown.map(|token| token.text), "fuse_unk": true, "byte_fallback": bytes},
    }))
}

/// Every way to make a token of two others: the best score first, then the longer left half, as transformers
/// has it. Tokens of other kinds are not made of text.
fn merges(vocabulary: &Vocabulary<'_>, ids: &HashMap<&str, u32>) -> Result<Vec<Json>, String> {
    struct Merge<'a> {
        score: f64,
        left: &'a str,
        right: &'a str,
        left_length: usize,
    }
    let mut merges = Vec::new();
    let mut work = 0;
    for token in vocabulary.tokens().filter(|token| token.kind == Kind::Normal) {
        for (left_length, (at, _)) in token.text.char_indices().enumerate().skip(1) {
            work += token.text.len();
            let (left, right) = token.text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push(Merge { score: token.score, left, right, left_length });
            }
        }
        if work > WORK_BYTES_MAX {
            return Err("the tokens are too long to look for merges in them".to_owned());
        }
    }
    // Stable: among equals the order of the vocabulary decides.
    merges.sort_by(|a, b| {
        // No score is NaN.
        let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        by_score.then_with(|| b.left_length.cmp(&a.left_length))
    });
    Ok(merges.into_iter().map(|merge| json!([merge.left, merge.right])).collect())
}
