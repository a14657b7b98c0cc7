//! A byte-level tokenizer of the asked size: 256 bytes, then tokens that only fill the vocabulary.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::write_text;
use crate::error::CliError;

/// Writes tokenizer.json, tokenizer_config.json and generation_config.json, unless the vocabulary is too small;
/// says whether it did.
pub fn write(out: &Path, vocab: usize) -> Result<bool, CliError> {
    const BYTES: usize = 256;
    if vocab <= BYTES {
        return Ok(false);
    }
    let mut tokens = Map::new();
    for (id, letter) in byte_letters().into_iter().enumerate() {
        tokens.insert(letter.to_string(), id.into());
    }
    for id in BYTES..vocab - 1 {
        tokens.insert(format!("<filler{id}>"), id.into());
    }
    let end = "<|endoftext|>";
    tokens.insert(end.to_string(), (vocab - 1).into());
    let special = json!([{
        "id": vocab - 1, "content": end, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    }]);
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": Value::Object(tokens), "merges": []},
    });
    write_text(&out.join("tokenizer.json"), &format!("{tokenizer}\n"))?;
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end});
    write_text(&out.join("tokenizer_config.json"), &format!("{config:#}\n"))?;
    let generation = json!({"eos_token_id": vocab - 1, "do_sample": false});
    write_text(&out.join("generation_config.json"), &format!("{generation:#}\n"))?;
    Ok(true)
}

/// The letter that stands for each byte in byte-level BPE (GPT-2's table): printable bytes are themselves, the others
/// follow from U+0100 on.
fn byte_letters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            // Both ranges are letters below the surrogates.
            char::from_u32(code).expect("a letter")
        })
        .collect()
}
