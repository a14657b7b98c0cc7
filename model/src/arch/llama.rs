//! Dense Llama 2, 3 and 3.1 (arXiv 2307.09288, 2407.21783); also draft models.

use super::Names;
use super::grouped::{Defaults, Trunk};
use crate::config::{ConfigError, Fields};
use crate::spec::{AttentionSpec, LayerSpec, MlpSpec, ModelSpec};

pub(super) fn read(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let defaults = Defaults { theta: 1e4, norm_eps: 1e-6, context: 2048, kv_heads: None, head_dim: None };
    let trunk = Trunk::read(config, defaults)?;
    let (mut attention, rope) = trunk.attention(config)?;
    attention.qkv_bias = config.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    let mlp =
        MlpSpec::Dense { width: config.need("intermediate_size")?, bias: config.flag_or("mlp_bias", false)? };
    let layer = LayerSpec { attention: AttentionSpec::Grouped(attention), mlp };
    trunk.spec(config, config, Names::COMMON, vec![rope], vec![layer; trunk.layers])
}
