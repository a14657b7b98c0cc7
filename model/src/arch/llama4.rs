//! Llama 4's text model, alone or inside the multimodal checkpoint: chunked attention with RoPE in most layers, full
//! attention without positions in every fourth, a sigmoid gate that scales the experts' input.

use gaterail_kernels::ops::{Gate, Mask, RopeStyle, Score, WeightOn};
use serde_json::Value;

use super::grouped::{Defaults, Trunk, expert_counts, layer_masks};
use super::{ExpertNames, Names};
use crate::config::{ConfigError, Fields};
use crate::spec::{
    AttentionSpec, GroupedSpec, LayerSpec, MlpSpec, ModelSpec, QkNorm, RopeUse, SharedSpec, SparseSpec,
    Temperature,
};

const TEXT: Names = Names {
    mlp: "feed_forward",
    router: "router",
    experts: ExpertNames::Fused { take_turns: false },
    ..Names::COMMON
};

const MULTIMODAL: Names = Names {
    model: "language_model.model.",
    head: "language_model.lm_head.weight",
    ignored: &["vision_model.", "multi_modal_projector."],
    ..TEXT
};

pub(super) fn read_text(config: &Fields) -> Result<ModelSpec, ConfigError> {
    read(config, config, TEXT)
}

pub(super) fn read_multimodal(top: &Fields) -> Result<ModelSpec, ConfigError> {
    let config = top.object("text_config")?.ok_or_else(|| top.invalid("text_config", "missing"))?;
    read(top, &config, MULTIMODAL)
}

fn read(top: &Fields, config: &Fields, names: Names) -> Result<ModelSpec, ConfigError> {
    let defaults =
        Defaults { theta: 5e5, norm_eps: 1e-5, context: 131_072, kv_heads: Some(8), head_dim: Some(128) };
    let trunk = Trunk::read(config, defaults)?;
    let (mut attention, rope) = trunk.attention(config)?;
    attention.qkv_bias = config.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    let rotated = rotated_layers(config, trunk.layers)?;
    let masks = masks(config, &rotated)?;
    let after_rope = config.flag_or("use_qk_norm", true)?;
    let temperature = temperature(config)?;
    let (experts, top_k) = expert_counts(config, &["num_local_experts"], 1)?;
    let width = config.need("intermediate_size")?;
    let sparse = SparseSpec {
        experts,
        top_k,
        width,
        gate: Gate { score: Score::SigmoidOfSelected, groups: None, normalise: None, scale: 1.0 },
        weight_on: WeightOn::Input,
        shared: Some(SharedSpec { width, gated: false }),
        ..SparseSpec::PLAIN
    };
    let sparse_layers = sparse_layers(config, trunk.layers)?;
    let dense_width = if sparse_layers.contains(&false) { config.need("intermediate_size_mlp")? } else { 0 };
    let layers = (0..trunk.layers).map(|layer| LayerSpec {
        attention: AttentionSpec::Grouped(GroupedSpec {
            rope: rotated[layer].then_some(RopeUse { index: 0, style: RopeStyle::Pairs }),
            qk_norm: if after_rope && rotated[layer] { QkNorm::AfterRope } else { QkNorm::None },
            temperature: temperature.filter(|_| !rotated[layer]),
            mask: masks[layer],
            ..attention.clone()
        }),
        mlp: if sparse_layers[layer] {
            MlpSpec::Sparse(sparse.clone())
        } else {
            MlpSpec::Dense { width: dense_width, bias: false }
        },
    });
    trunk.spec(top, config, names, vec![rope], layers.collect())
}

/// `no_rope_layers` lists 1 for layers with RoPE; empty or absent means all but every fourth.
fn rotated_layers(config: &Fields, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let listed = config.counts("no_rope_layers")?.unwrap_or_default();
    if listed.is_empty() {
        let interval = config.count_or("no_rope_layer_interval", 4)?;
        return Ok((0..layers).map(|layer| (layer + 1) % interval != 0).collect());
    }
    if listed.len() < layers {
        return Err(config.invalid("no_rope_layers", format!("{} entries for {layers} layers", listed.len())));
    }
    Ok(listed[..layers].iter().map(|&rotated| rotated != 0).collect())
}

fn masks(config: &Fields, rotated: &[bool]) -> Result<Vec<Mask>, ConfigError> {
    let chunk = match config.count("attention_chunk_size")? {
        Some(size) => Mask::Chunked { size },
        None if config.is_null("attention_chunk_size") => Mask::Full,
        None => Mask::Chunked { size: 8192 },
    };
    if let Some(masks) = layer_masks(config, rotated.len(), "chunked_attention", chunk)? {
        return Ok(masks);
    }
    Ok(rotated.iter().map(|&rotated| if rotated { chunk } else { Mask::Full }).collect())
}

/// Published configurations say `attn_temperature_tuning: true`, or 4.
fn temperature(config: &Fields) -> Result<Option<Temperature>, ConfigError> {
    let on = match config.value("attn_temperature_tuning") {
        None => true,
        Some(Value::Bool(on)) => *on,
        Some(Value::Number(number)) => number.as_u64() != Some(0),
        Some(_) => return Err(config.invalid("attn_temperature_tuning", "neither a flag nor a number")),
    };
    let temperature = Temperature {
        floor_scale: config.positive_or("floor_scale", 8192.0)? as f32,
        attn_scale: config.number_or("attn_scale", 0.1)? as f32,
    };
    Ok(on.then_some(temperature))
}

fn sparse_layers(config: &Fields, layers: usize) -> Result<Vec<bool>, ConfigError> {
    if let Some(listed) = config.counts("moe_layers")? {
        return Ok((0..layers).map(|layer| listed.contains(&layer)).collect());
    }
    let step = config.count_or("interleave_moe_layer_step", 1)?;
    Ok((0..layers).map(|layer| (layer + 1) % step == 0).collect())
}
