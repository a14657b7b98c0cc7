//! A model as plain data: what each layer does, and with which numbers. Architectures write it, the walk reads it.

use gaterail_kernels::ops::{Activation, Gate, Mask, RopeStyle, Score, WeightOn};

use crate::arch::Names;
use crate::config::{Quantization, Rope};

/// Everything that decides the forward pass but the weights themselves.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// As `config.json` names it, such as `Qwen3MoeForCausalLM`.
    pub architecture: String,
    /// V
    pub vocab: usize,
    /// H
    pub hidden: usize,
    /// The positions the configuration allows.
    pub context: usize,
    pub norm_eps: f32,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
    /// The distinct rotations; layers point into them.
    pub ropes: Vec<Rope>,
    /// L
    pub layers: Vec<LayerSpec>,
    /// Layers behind these that a checkpoint may hold for multi-token prediction; they are not run.
    pub prediction_layers: usize,
    pub names: Names,
    pub quantization: Quantization,
    /// The element type that the configuration declares.
    pub declared: Option<gaterail_kernels::ElementType>,
    /// Fraction bits of the experts' fixed-point sums.
    pub fraction_bits: u32,
}

#[derive(Clone, Debug)]
pub struct LayerSpec {
    pub attention: AttentionSpec,
    pub mlp: MlpSpec,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AttentionSpec {
    Grouped(GroupedSpec),
    Latent(LatentSpec),
}

/// Multi-head, grouped-query or multi-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub qkv_bias: bool,
    pub out_bias: bool,
    pub qk_norm: QkNorm,
    /// q, k and v are clamped to ± this (OLMoE).
    pub clip: Option<f32>,
    /// `None`: no positions at all (Llama 4's every fourth layer).
    pub rope: Option<RopeUse>,
    pub mask: Mask,
    /// A learned logit per head in the softmax (gpt-oss).
    pub sinks: bool,
    /// Multiplies q · k.
    pub scale: f32,
    pub temperature: Option<Temperature>,
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1), in its absorbed form.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    pub heads: usize,
    /// The query's own low rank, if it has one.
    pub q_rank: Option<usize>,
    pub kv_rank: usize,
    pub nope_dim: usize,
    pub rope_dim: usize,
    pub value_dim: usize,
    pub bias: bool,
    pub rope: RopeUse,
    pub scale: f32,
    /// Of the norms of the latents, which is not the layers' own.
    pub norm_eps: f32,
}

impl LatentSpec {
    /// The width of a query head before absorption.
    pub fn query_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }

    /// The width of what KV stores for a position.
    pub fn stored_dim(&self) -> usize {
        self.kv_rank + self.rope_dim
    }
}

/// How queries and keys are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// RMS norm of every head with one weight `[head_dim]`, before RoPE (Qwen3).
    PerHead,
    /// RMS norm over all heads at once, before RoPE (OLMoE).
    AllHeads,
    /// RMS norm without weight, after RoPE (Llama 4).
    AfterRope,
}

/// A rotation and how its pairs lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeUse {
    /// Index into `ModelSpec::ropes`.
    pub index: usize,
    pub style: RopeStyle,
}

/// q is scaled by `log1p(floor((position + 1) / floor_scale)) * attn_scale + 1` (Llama 4, layers without RoPE).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    pub floor_scale: f32,
    pub attn_scale: f32,
}

impl Temperature {
    pub fn at(&self, position: u32) -> f32 {
        let steps = ((position as f32 + 1.0) / self.floor_scale).floor();
        steps.ln_1p() * self.attn_scale + 1.0
    }
}

#[derive(Clone, Debug)]
pub enum MlpSpec {
    Dense { width: usize, bias: bool },
    Sparse(SparseSpec),
}

/// A Mixture-of-Experts layer.
#[derive(Clone, Debug)]
pub struct SparseSpec {
    /// E
    pub experts: usize,
    /// K
    pub top_k: usize,
    /// F
    pub width: usize,
    pub gate: Gate,
    pub router_bias: bool,
    /// A bias that takes part in the selection only (DeepSeek-V3).
    pub correction_bias: bool,
    pub weight_on: WeightOn,
    pub activation: Activation,
    /// Whether experts have biases (gpt-oss).
    pub expert_bias: bool,
    pub shared: Option<SharedSpec>,
}

/// An expert that every token visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSpec {
    pub width: usize,
    /// Whether a sigmoid gate of its own scales it (Qwen2-MoE).
    pub gated: bool,
}

impl SparseSpec {
    /// What most architectures have in common; sizes and gate are still to be filled in.
    pub const PLAIN: SparseSpec = SparseSpec {
        experts: 0,
        top_k: 0,
        width: 0,
        gate: Gate { score: Score::Softmax, groups: None, normalise: None, scale: 1.0 },
        router_bias: false,
        correction_bias: false,
        weight_on: WeightOn::Output,
        activation: Activation::SwiGlu,
        expert_bias: false,
        shared: None,
    };
}

impl ModelSpec {
    /// The first sparse layer's numbers, if the model has experts.
    pub fn sparse(&self) -> Option<&SparseSpec> {
        self.layers.iter().find_map(|layer| layer.mlp.sparse())
    }

    /// f32 values that KV stores for one position in all layers.
    pub fn kv_values_per_position(&self) -> usize {
        self.layers.iter().map(|layer| layer.attention.kv_values_per_position()).sum()
    }
}

impl MlpSpec {
    pub fn sparse(&self) -> Option<&SparseSpec> {
        match self {
            MlpSpec::Sparse(sparse) => Some(sparse),
            MlpSpec::Dense { .. } => None,
        }
    }
}

impl AttentionSpec {
    /// f32 values that KV stores for one position.
    pub fn kv_values_per_position(&self) -> usize {
        match self {
            AttentionSpec::Grouped(grouped) => 2 * grouped.kv_heads * grouped.head_dim,
            AttentionSpec::Latent(latent) => latent.stored_dim(),
        }
    }

    /// The longest side of its matrices but the hidden size; saturates.
    pub fn widest(&self) -> usize {
        match self {
            AttentionSpec::Grouped(a) => a.heads.saturating_mul(a.head_dim),
            AttentionSpec::Latent(a) => {
                let head = a.query_dim().max(a.stored_dim()).max(a.nope_dim + a.value_dim);
                a.heads.saturating_mul(head).max(a.q_rank.unwrap_or(0))
            }
        }
    }
}
