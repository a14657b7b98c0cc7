//! OLMoE (arXiv 2409.02060): q and k normed over all heads at once, optional clamp of q, k and v.

use super::Names;
use super::grouped::{Defaults, Trunk, expert_counts, softmax_gate};
use crate::config::{ConfigError, Fields};
use crate::spec::{AttentionSpec, LayerSpec, MlpSpec, ModelSpec, QkNorm, SparseSpec};

pub(super) fn read(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults = Defaults { theta: 1e4, norm_eps: 1e-5, context: 4096, kv_heads: None, head_dim: None };
    let trunk = Trunk::read(config, defaults)?;
    let (mut attention, rope) = trunk.attention(config)?;
    attention.qk_norm = QkNorm::AllHeads;
    attention.qkv_bias = config.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    attention.clip = config.number("clip_qkv")?.map(|clip| clip as f32);
    let (experts, top_k) = expert_counts(config, &["num_experts"], 8)?;
    let sparse = SparseSpec {
        experts,
        top_k,
        width: config.need("intermediate_size")?,
        gate: softmax_gate(config.flag_or("norm_topk_prob", false)?),
        ..SparseSpec::PLAIN
    };
    let layer = LayerSpec { attention: AttentionSpec::Grouped(attention), mlp: MlpSpec::Sparse(sparse) };
    trunk.spec(config, config, Names::COMMON, vec![rope], vec![layer; trunk.layers])
}
