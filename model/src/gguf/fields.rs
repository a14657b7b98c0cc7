//! Metadata in the words of `config.json`, so that one reader per architecture serves both. Errors keep the file's words.

use serde_json::{Map, Number, Value as Json, json};

use super::file::GgufFile;
use super::names::EMBEDDING;
use super::value::Value;
use crate::config::{ConfigError, Fields};

/// What `config.json` says, and what a GGUF file says behind its architecture's name. Values keep their meaning.
const WORDS: &[(&str, &str)] = &[
    ("num_hidden_layers", "block_count"),
    ("hidden_size", "embedding_length"),
    ("vocab_size", "vocab_size"),
    ("max_position_embeddings", "context_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("clip_qkv", "attention.clamp_kqv"),
    ("intermediate_size", "feed_forward_length"),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("norm_topk_prob", "expert_weights_norm"),
    ("rope_theta", "rope.freq_base"),
    ("rope_scaling.rope_type", "rope.scaling.type"),
    ("rope_scaling.factor", "rope.scaling.factor"),
    ("rope_scaling.original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("rope_scaling.attention_factor", "rope.scaling.attn_factor"),
    ("rope_scaling.beta_fast", "rope.scaling.yarn_beta_fast"),
    ("rope_scaling.beta_slow", "rope.scaling.yarn_beta_slow"),
];

/// Without these llama.cpp loads nothing either.
const NEEDED: [&str; 5] =
    ["num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "rms_norm_eps"];

/// The metadata of `architecture` (such as `olmoe`) as fields; `class` is its name in `config.json`.
pub fn fields(file: &GgufFile, architecture: &str, class: &str) -> Result<Fields, ConfigError> {
    let mut map = Map::from_iter([("architectures".to_string(), json!([class]))]);
    let mut scaling = Map::new();
    for (word, own) in WORDS {
        let Some(value) = file.metadata().value(&format!("{architecture}.{own}")) else { continue };
        match word.strip_prefix("rope_scaling.") {
            Some(word) => scaling.insert(word.to_string(), to_json(value)),
            None => map.insert((*word).to_string(), to_json(value)),
        };
    }
    defaults(file, &mut map);
    let fields = Fields::translated(file.path(), format!("{architecture}."), map.clone(), WORDS);
    if let Some(absent) = NEEDED.iter().find(|word| !fields.has(word)) {
        return Err(fields.invalid(absent, "missing"));
    }
    if let Some(scaling) = rope_scaling(file, architecture, scaling) {
        map.insert("rope_scaling".to_string(), Json::Object(scaling));
    }
    Ok(Fields::translated(file.path(), format!("{architecture}."), map, WORDS))
}

/// What the format means where it is silent, which is not always what `config.json` means.
fn defaults(file: &GgufFile, map: &mut Map<String, Json>) {
    // Where every layer has experts, `config.json` may call their width by the plain name.
    let sparse = map.get("num_experts").and_then(Json::as_u64).is_some_and(|experts| experts > 0);
    if let (true, Some(width)) = (sparse, map.get("moe_intermediate_size").cloned()) {
        map.insert("intermediate_size".to_string(), width);
    }
    let copies =
        [("num_key_value_heads", "num_attention_heads"), ("moe_intermediate_size", "intermediate_size")];
    for (to, from) in copies {
        if let (false, Some(value)) = (map.contains_key(to), map.get(from).cloned()) {
            map.insert(to.to_string(), value);
        }
    }
    map.entry("rope_theta").or_insert_with(|| json!(10_000.0));
    if let (false, Some(embedding)) = (map.contains_key("vocab_size"), file.tensor(EMBEDDING)) {
        map.insert("vocab_size".to_string(), embedding.shape[0].into());
    }
}

/// The scaling, if it scales: `none` and a factor of 1 do not; a factor without a type is a linear one.
fn rope_scaling(
    file: &GgufFile,
    architecture: &str,
    mut scaling: Map<String, Json>,
) -> Option<Map<String, Json>> {
    // The oldest files have one number.
    if let Some(factor) = file.metadata().value(&format!("{architecture}.rope.scale_linear")) {
        scaling.entry("factor").or_insert_with(|| to_json(factor));
    }
    let kind = scaling.entry("rope_type").or_insert_with(|| "linear".into()).clone();
    let factor = scaling.get("factor").and_then(Json::as_f64);
    let idle = kind == "linear" && matches!(factor, None | Some(0.0 | 1.0));
    if kind == "none" || idle {
        return None;
    }
    // The format's factor multiplies YaRN's own, 0.1 ln(factor) + 1; config.json's replaces it.
    if let (Some(own), Some(factor)) = (scaling.get("attention_factor").and_then(Json::as_f64), factor) {
        scaling.insert("attention_factor".to_string(), json!(own * (0.1 * factor.max(1.0).ln() + 1.0)));
    }
    Some(scaling)
}

/// A list that says the same for every layer is one value.
fn to_json(value: &Value) -> Json {
    match value {
        Value::Unsigned(number) => (*number).into(),
        Value::Signed(number) => (*number).into(),
        // What is not finite is shown, and refused as no number.
        Value::Float(number) => {
            Number::from_f64(*number).map_or_else(|| number.to_string().into(), Json::Number)
        }
        Value::Flag(flag) => (*flag).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(list) => match list.split_first() {
            Some((first, rest)) if rest.iter().all(|value| value == first) && first.list().is_none() => {
                to_json(first)
            }
            _ => "a list of several values".into(),
        },
    }
}
