//! gpt-oss (arXiv 2508.10925): attention sinks, a window in every other layer, biases everywhere, clamped SwiGLU, YaRN.

use gaterail_kernels::ops::{Activation, Gate, Mask, Score};

use super::grouped::{Defaults, Trunk, expert_counts, layer_masks};
use super::{ExpertNames, Names};
use crate::config::{ConfigError, Fields, Rope, RopeScaling, Yarn};
use crate::spec::{AttentionSpec, GroupedSpec, LayerSpec, MlpSpec, ModelSpec, SparseSpec};

const NAMES: Names =
    Names { router: "router", experts: ExpertNames::Fused { take_turns: true }, ..Names::COMMON };

pub(super) fn read(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults = Defaults {
        theta: 150_000.0,
        norm_eps: 1e-5,
        context: 131_072,
        kv_heads: Some(8),
        head_dim: Some(64),
    };
    let trunk = Trunk::read(config, defaults)?;
    let head_dim = trunk.head_dim(config)?;
    let unscaled = RopeScaling::Yarn(Yarn::GPT_OSS);
    let rope = Rope::read_or(config, head_dim, trunk.context, defaults.theta, unscaled)?;
    let mut attention = trunk.attention_with(config, head_dim)?;
    attention.qkv_bias = config.flag_or("attention_bias", true)?;
    attention.out_bias = attention.qkv_bias;
    attention.sinks = true;
    let window = Mask::Sliding { window: config.count_or("sliding_window", 128)? };
    let alternate = |layer: usize| if layer.is_multiple_of(2) { window } else { Mask::Full };
    let masks = layer_masks(config, trunk.layers, "sliding_attention", window)?
        .unwrap_or_else(|| (0..trunk.layers).map(alternate).collect());
    let (experts, top_k) = expert_counts(config, &["num_local_experts", "num_experts"], 4)?;
    let activation = Activation::ClampedSwiGlu {
        alpha: config.positive_or("swiglu_alpha", 1.702)? as f32,
        limit: config.positive_or("swiglu_limit", 7.0)? as f32,
    };
    let sparse = SparseSpec {
        experts,
        top_k,
        width: config.need("intermediate_size")?,
        gate: Gate { score: Score::SoftmaxOfSelected, groups: None, normalise: None, scale: 1.0 },
        router_bias: true,
        activation,
        expert_bias: true,
        ..SparseSpec::PLAIN
    };
    let layers = masks.into_iter().map(|mask| LayerSpec {
        attention: AttentionSpec::Grouped(GroupedSpec { mask, ..attention.clone() }),
        mlp: MlpSpec::Sparse(sparse.clone()),
    });
    trunk.spec(config, config, NAMES, vec![rope], layers.collect())
}
