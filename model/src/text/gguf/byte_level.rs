//! `gpt2` tokenizers: byte-level BPE. `tokenizer.ggml.pre` names how a text is cut into words before merges apply.
//!
//! The cuts are those of the models' own `tokenizer.json`, which a GGUF file does not hold.

use serde_json::{Value as Json, json};

use super::special;
use super::vocabulary::Vocabulary;
use crate::gguf::Metadata;

const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";

/// How texts are prepared.
struct Cut {
    names: &'static [&'static str],
    /// Unicode's composed form first.
    composed: bool,
    /// The words; `None`: GPT-2's, which the library has built in.
    words: Option<&'static str>,
    /// A word that is a token stays whole, whatever merges say.
    whole_words: bool,
    /// Whether texts begin with a token of their own where the file does not say.
    begin: bool,
}

const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const CUTS: [Cut; 4] = [
    // What files say that do not know, and files from before the key.
    Cut {
        names: &["default", "gpt-2", "gpt2"],
        composed: false,
        words: None,
        whole_words: false,
        begin: false,
    },
    Cut { names: &["olmo"], composed: true, words: None, whole_words: false, begin: false },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen"],
        composed: true,
        words: Some(QWEN2_WORDS),
        whole_words: false,
        begin: false,
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3"],
        composed: false,
        words: Some(LLAMA3_WORDS),
        whole_words: true,
        begin: true,
    },
];

pub fn tokenizer_json(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Json, String> {
    let cut = cut(metadata)?;
    let ids = vocabulary.ids()?;
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let words = match cut.words {
        None => byte_level(true),
        Some(words) => {
            let split = json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        }
    };
    let merges = merges(metadata, |text| ids.contains_key(text))?;
    Ok(json!({
        "normalizer": if cut.composed { json!({"type": "NFC"}) } else { Json::Null },
        "pre_tokenizer": words,
        "post_processor": special::around(metadata, vocabulary, cut.begin)?,
        "decoder": byte_level(true),
        "model": {"type": "BPE", "vocab": vocabulary.json(), "merges": merges, "ignore_merges": cut.whole_words},
    }))
}

fn cut(metadata: &Metadata) -> Result<&'static Cut, String> {
    let name = metadata.text(PRE)?.unwrap_or("default");
    CUTS.iter().find(|cut| cut.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        format!("{PRE}: {name:?} is not supported; this version has {}", known.join(", "))
    })
}

/// Pairs that merge, first the ones that merge first. The two halves stand in one string, a space between them. A merge
/// that makes no token, or one out of no tokens, never happens, and is left out.
fn merges(metadata: &Metadata, is_token: impl Fn(&str) -> bool) -> Result<Vec<Json>, String> {
    let list = metadata.list(MERGES)?.ok_or_else(|| format!("{MERGES}: missing"))?;
    let mut merges = Vec::with_capacity(list.len());
    for (index, merge) in list.iter().enumerate() {
        let pair = merge.text().and_then(|merge| merge.split_once(' '));
        let (left, right) = pair.ok_or_else(|| format!("{MERGES}: entry {index} is no pair"))?;
        if is_token(left) && is_token(right) && is_token(&[left, right].concat()) {
            merges.push(json!([left, right]));
        }
    }
    Ok(merges)
}
