//! Qwen2-MoE (shared expert with a gate of its own, biases on q, k, v), Qwen3-MoE and dense Qwen3 (norms on q and k per
//! head; arXiv 2505.09388). Dense layers may lie among the sparse ones.

use gaterail_kernels::ops::Mask;

use super::Names;
use super::grouped::{Defaults, Trunk, expert_counts, layer_masks, softmax_gate};
use crate::config::{ConfigError, Fields};
use crate::spec::{
    AttentionSpec, GroupedSpec, LayerSpec, MlpSpec, ModelSpec, QkNorm, SharedSpec, SparseSpec,
};

pub(super) fn read_qwen2_moe(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults =
        Defaults { theta: 1e4, norm_eps: 1e-6, context: 32_768, kv_heads: Some(16), head_dim: None };
    let trunk = Trunk::read(config, defaults)?;
    let (mut attention, rope) = trunk.attention(config)?;
    attention.qkv_bias = config.flag_or("qkv_bias", true)?;
    let masks = window_masks(config, trunk.layers, |layer, limit| layer % 2 == 0 && layer < limit)?;
    let width = config.count_or("shared_expert_intermediate_size", 5632)?;
    let sparse = sparse(config, Some(SharedSpec { width, gated: true }), 4)?;
    let layers = layers(config, &attention, &masks, &sparse)?;
    trunk.spec(config, config, Names::COMMON, vec![rope], layers)
}

pub(super) fn read_qwen3_moe(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults =
        Defaults { theta: 1e4, norm_eps: 1e-6, context: 32_768, kv_heads: Some(4), head_dim: None };
    let trunk = Trunk::read(config, defaults)?;
    let (attention, rope) = qwen3_attention(&trunk, config)?;
    let mask = window(config)?.unwrap_or(Mask::Full);
    let sparse = sparse(config, None, 8)?;
    let layers = layers(config, &attention, &vec![mask; trunk.layers], &sparse)?;
    trunk.spec(config, config, Names::COMMON, vec![rope], layers)
}

pub(super) fn read_qwen3(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults =
        Defaults { theta: 1e4, norm_eps: 1e-6, context: 32_768, kv_heads: Some(32), head_dim: Some(128) };
    let trunk = Trunk::read(config, defaults)?;
    let (attention, rope) = qwen3_attention(&trunk, config)?;
    let masks = window_masks(config, trunk.layers, |layer, limit| layer >= limit)?;
    let width = config.need("intermediate_size")?;
    let layers = masks.into_iter().map(|mask| LayerSpec {
        attention: AttentionSpec::Grouped(GroupedSpec { mask, ..attention.clone() }),
        mlp: MlpSpec::Dense { width, bias: false },
    });
    trunk.spec(config, config, Names::COMMON, vec![rope], layers.collect())
}

fn qwen3_attention(
    trunk: &Trunk,
    config: &Fields,
) -> Result<(GroupedSpec, crate::config::Rope), ConfigError> {
    let (mut attention, rope) = trunk.attention(config)?;
    attention.qk_norm = QkNorm::PerHead;
    attention.qkv_bias = config.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    Ok((attention, rope))
}

/// The window, if it is used; an explicit null is none.
fn window(config: &Fields) -> Result<Option<Mask>, ConfigError> {
    if !config.flag_or("use_sliding_window", false)? || config.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(Some(Mask::Sliding { window: config.count_or("sliding_window", 4096)? }))
}

/// The masks of all layers: as `layer_types` lists them, else a window where `windowed(layer, max_window_layers)`.
fn window_masks(
    config: &Fields,
    layers: usize,
    windowed: fn(usize, usize) -> bool,
) -> Result<Vec<Mask>, ConfigError> {
    let Some(window) = window(config)? else { return Ok(vec![Mask::Full; layers]) };
    if let Some(masks) = layer_masks(config, layers, "sliding_attention", window)? {
        return Ok(masks);
    }
    let limit = config.count_from("max_window_layers", 0)?.unwrap_or(28);
    Ok((0..layers).map(|layer| if windowed(layer, limit) { window } else { Mask::Full }).collect())
}

fn sparse(config: &Fields, shared: Option<SharedSpec>, top_k: usize) -> Result<SparseSpec, ConfigError> {
    let (experts, top_k) = expert_counts(config, &["num_experts", "num_local_experts"], top_k)?;
    Ok(SparseSpec {
        experts,
        top_k,
        width: config.need("moe_intermediate_size")?,
        gate: softmax_gate(config.flag_or("norm_topk_prob", false)?),
        shared,
        ..SparseSpec::PLAIN
    })
}

/// Sparse layers, but for those in `mlp_only_layers` and those that `decoder_sparse_step` skips.
fn layers(
    config: &Fields,
    attention: &GroupedSpec,
    masks: &[Mask],
    sparse: &SparseSpec,
) -> Result<Vec<LayerSpec>, ConfigError> {
    let dense = config.counts("mlp_only_layers")?.unwrap_or_default();
    let step = config.count_or("decoder_sparse_step", 1)?;
    let any_dense =
        masks.iter().enumerate().any(|(layer, _)| dense.contains(&layer) || (layer + 1) % step != 0);
    let width = if any_dense { config.need("intermediate_size")? } else { 0 };
    let layer = |(layer, &mask): (usize, &Mask)| LayerSpec {
        attention: AttentionSpec::Grouped(GroupedSpec { mask, ..attention.clone() }),
        mlp: if dense.contains(&layer) || (layer + 1) % step != 0 {
            MlpSpec::Dense { width, bias: false }
        } else {
            MlpSpec::Sparse(sparse.clone())
        },
    };
    Ok(masks.iter().enumerate().map(layer).collect())
}
