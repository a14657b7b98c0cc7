//! DeepSeek-V2 (arXiv 2405.04434) and V3 (arXiv 2412.19437): latent attention, shared experts, gates limited to groups,
//! in V3 with a correction bias that takes part in the selection only.

use gaterail_kernels::ops::{Gate, GroupScore, Groups, RopeStyle, Score};

use super::Names;
use super::grouped::{Defaults, Trunk, expert_counts};
use crate::config::{ConfigError, Fields, Rope};
use crate::spec::{
    AttentionSpec, LatentSpec, LayerSpec, MlpSpec, ModelSpec, RopeUse, SharedSpec, SparseSpec,
};

const NAMES: Names = Names { shared: "shared_experts", ..Names::COMMON };

const DEFAULTS: Defaults =
    Defaults { theta: 1e4, norm_eps: 1e-6, context: 4096, kv_heads: None, head_dim: None };

/// The published code norms latents with its default epsilon, whatever the configuration says of the other norms.
const LATENT_EPS: f32 = 1e-6;

/// What normalising adds to the sum of the weights.
const NORMALISE_EPSILON: f32 = 1e-20;

pub(super) fn read_v2(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let groups = match config.text("topk_method")? {
        None | Some("greedy") => None,
        Some("group_limited_greedy") => Some(Groups {
            count: config.need("n_group")?,
            taken: config.need("topk_group")?,
            score: GroupScore::Largest,
        }),
        Some(other) => {
            let detail =
                format!("{other:?} is not supported; this version has greedy and group_limited_greedy");
            return Err(config.invalid("topk_method", detail));
        }
    };
    only(config, "scoring_func", "softmax")?;
    let gate = Gate {
        score: Score::Softmax,
        groups,
        normalise: None,
        scale: config.number_or("routed_scaling_factor", 1.0)? as f32,
    };
    read(config, gate, false, RopeStyle::Pairs, 0)
}

pub(super) fn read_v3(config: &Fields) -> Result<ModelSpec, ConfigError> {
    only(config, "topk_method", "noaux_tc")?;
    only(config, "scoring_func", "sigmoid")?;
    let count = config.count_or("n_group", 8)?;
    let groups = Groups { count, taken: config.count_or("topk_group", 4)?, score: GroupScore::TwoLargest };
    let gate = Gate {
        score: Score::Sigmoid,
        groups: Some(groups),
        normalise: config.flag_or("norm_topk_prob", true)?.then_some(NORMALISE_EPSILON),
        scale: config.number_or("routed_scaling_factor", 2.5)? as f32,
    };
    let style = if config.flag_or("rope_interleave", true)? { RopeStyle::Pairs } else { RopeStyle::Halves };
    read(config, gate, true, style, 3)
}

fn read(
    config: &Fields,
    gate: Gate,
    correction_bias: bool,
    style: RopeStyle,
    dense_default: usize,
) -> Result<ModelSpec, ConfigError> {
    let trunk = Trunk::read(config, DEFAULTS)?;
    let attention = latent(config, &trunk)?;
    let rope = Rope::read(config, attention.rope_dim, trunk.context, DEFAULTS.theta)?;
    let scale = (attention.query_dim() as f64).powf(-0.5) * rope.softmax_factor();
    let attention = LatentSpec { scale: scale as f32, rope: RopeUse { index: 0, style }, ..attention };
    let (experts, top_k) = expert_counts(config, &["n_routed_experts", "num_experts"], 8)?;
    let width = config.need("moe_intermediate_size")?;
    let shared = config.count_from("n_shared_experts", 0)?.unwrap_or(0);
    let sparse = SparseSpec {
        experts,
        top_k,
        width,
        gate,
        correction_bias,
        shared: (shared > 0).then_some(SharedSpec { width: width * shared, gated: false }),
        ..SparseSpec::PLAIN
    };
    let dense_layers = config.count_from("first_k_dense_replace", 0)?.unwrap_or(dense_default);
    let dense_width = if dense_layers > 0 { config.need("intermediate_size")? } else { 0 };
    let layers = (0..trunk.layers).map(|layer| LayerSpec {
        attention: AttentionSpec::Latent(attention.clone()),
        mlp: if layer < dense_layers {
            MlpSpec::Dense { width: dense_width, bias: false }
        } else {
            MlpSpec::Sparse(sparse.clone())
        },
    });
    trunk.spec(config, config, NAMES, vec![rope], layers.collect())
}

/// A field that may only say what this architecture does anyway.
fn only(config: &Fields, field: &str, value: &str) -> Result<(), ConfigError> {
    match config.text(field)? {
        Some(other) if other != value => {
            Err(config.invalid(field, format!("{other:?} is not supported; this architecture has {value:?}")))
        }
        _ => Ok(()),
    }
}

fn latent(config: &Fields, trunk: &Trunk) -> Result<LatentSpec, ConfigError> {
    // An explicit null means no low rank for the query; absent means the published default.
    let q_rank =
        if config.is_null("q_lora_rank") { None } else { Some(config.count_or("q_lora_rank", 1536)?) };
    let rope_dim = config.count_or("qk_rope_head_dim", 64)?;
    if !rope_dim.is_multiple_of(2) {
        return Err(config.invalid("qk_rope_head_dim", "is odd"));
    }
    Ok(LatentSpec {
        heads: trunk.heads,
        q_rank,
        kv_rank: config.count_or("kv_lora_rank", 512)?,
        nope_dim: config.count_or("qk_nope_head_dim", 128)?,
        rope_dim,
        value_dim: config.count_or("v_head_dim", 128)?,
        bias: config.flag_or("attention_bias", false)?,
        rope: RopeUse { index: 0, style: RopeStyle::Pairs },
        scale: 0.0,
        norm_eps: LATENT_EPS,
    })
}
