//! Mixtral (arXiv 2401.04088): grouped-query attention, softmax gate normalised over the selected.

use gaterail_kernels::ops::Mask;

use super::grouped::{Defaults, Trunk, expert_counts, softmax_gate};
use super::{ExpertNames, Names};
use crate::config::{ConfigError, Fields};
use crate::spec::{AttentionSpec, LayerSpec, MlpSpec, ModelSpec, SparseSpec};

const NAMES: Names = Names {
    mlp: "block_sparse_moe",
    experts: ExpertNames::Each { gate: "w1", up: "w3", down: "w2" },
    ..Names::COMMON
};

pub(super) fn read(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults =
        Defaults { theta: 1e6, norm_eps: 1e-5, context: 131_072, kv_heads: Some(8), head_dim: None };
    let trunk = Trunk::read(config, defaults)?;
    let (mut attention, rope) = trunk.attention(config)?;
    if let Some(window) = config.count("sliding_window")? {
        attention.mask = Mask::Sliding { window };
    }
    let (experts, top_k) = expert_counts(config, &["num_local_experts"], 2)?;
    let sparse = SparseSpec {
        experts,
        top_k,
        width: config.need("intermediate_size")?,
        gate: softmax_gate(true),
        ..SparseSpec::PLAIN
    };
    let layer = LayerSpec { attention: AttentionSpec::Grouped(attention), mlp: MlpSpec::Sparse(sparse) };
    trunk.spec(config, config, NAMES, vec![rope], vec![layer; trunk.layers])
}
