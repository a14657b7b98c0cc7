//! The dense part of a model: embedding, attention, norms, gates, shared experts and dense layers, head.

use gaterail_kernels::{Buffer, Matrix, Weight};

use super::expected::{Part, Slot};
use super::load::{LoadError, Loader};
use super::precision::Use;
use crate::spec::{AttentionSpec, LatentSpec, MlpSpec, ModelSpec};

/// All weights that stay with a lane.
pub struct TrunkWeights {
    /// `[V, H]`
    pub embedding: Weight,
    /// `[H]`
    pub norm: Buffer<f32>,
    /// `[V, H]`; the embedding itself where they are tied.
    pub head: Weight,
    pub layers: Vec<LayerWeights>,
}

pub struct LayerWeights {
    /// `[H]`
    pub input_norm: Buffer<f32>,
    /// `[H]`
    pub post_norm: Buffer<f32>,
    pub attention: AttentionWeights,
    pub mlp: MlpWeights,
}

/// A projection `[out, in]` with an optional bias `[out]`.
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Buffer<f32>>,
}

pub enum AttentionWeights {
    Grouped {
        query: Linear,
        key: Linear,
        value: Linear,
        output: Linear,
        query_norm: Option<Buffer<f32>>,
        key_norm: Option<Buffer<f32>>,
        sinks: Option<Buffer<f32>>,
    },
    Latent(Latent),
}

/// Latent attention with the key's and value's up-projections taken apart for absorption.
pub struct Latent {
    /// `q_a` and its norm, where the query has a low rank.
    pub query_a: Option<(Linear, Buffer<f32>)>,
    /// `[heads * (nope + rope), H or rank]`
    pub query: Matrix,
    /// `[kv_rank + rope, H]`
    pub kv_a: Linear,
    /// `[kv_rank]`
    pub kv_norm: Buffer<f32>,
    /// `W_uk` transposed: `[heads * kv_rank, nope]`
    pub key_up: Matrix,
    /// `W_uv`: `[heads * value, kv_rank]`
    pub value_up: Matrix,
    pub output: Linear,
}

#[expect(clippy::large_enum_variant, reason = "one value per layer, never moved")]
pub enum MlpWeights {
    Dense(Mlp),
    Sparse(SparseWeights),
}

/// gate, up and down.
pub struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// What a sparse layer keeps with the lane.
pub struct SparseWeights {
    pub router: Linear,
    /// `[E]`
    pub correction: Option<Buffer<f32>>,
    pub shared: Option<Mlp>,
    /// `[1, H]`
    pub shared_logit: Option<Matrix>,
}

impl TrunkWeights {
    /// Takes the trunk's tensors out of a checked checkpoint.
    pub fn load(spec: &ModelSpec, loader: &mut Loader<'_>) -> Result<TrunkWeights, LoadError> {
        let embedding = loader.matrix(Slot::Embedding);
        let layers =
            (0..spec.layers.len()).map(|layer| load_layer(spec, layer, loader)).collect::<Result<_, _>>()?;
        let head = if spec.tied_embeddings { Slot::Embedding } else { Slot::Head };
        let head = loader.weight(head, Use::Head);
        Ok(TrunkWeights { embedding: embedding.into(), norm: loader.vector(Slot::FinalNorm)?, head, layers })
    }
}

fn load_layer(spec: &ModelSpec, layer: usize, loader: &mut Loader<'_>) -> Result<LayerWeights, LoadError> {
    let slot = |part| Slot::Layer(layer, part);
    let attention = match &spec.layers[layer].attention {
        AttentionSpec::Grouped(_) => AttentionWeights::Grouped {
            query: linear(loader, layer, Part::Query, Part::QueryBias, Use::Projection)?,
            key: linear(loader, layer, Part::Key, Part::KeyBias, Use::Projection)?,
            value: linear(loader, layer, Part::Value, Part::ValueBias, Use::Projection)?,
            output: linear(loader, layer, Part::Output, Part::OutputBias, Use::Projection)?,
            query_norm: loader.vector_if(slot(Part::QueryNorm))?,
            key_norm: loader.vector_if(slot(Part::KeyNorm))?,
            sinks: loader.vector_if(slot(Part::Sinks))?,
        },
        AttentionSpec::Latent(latent) => AttentionWeights::Latent(load_latent(latent, layer, loader)?),
    };
    let mlp = match &spec.layers[layer].mlp {
        MlpSpec::Dense { .. } => MlpWeights::Dense(Mlp {
            gate: linear(loader, layer, Part::Gate, Part::GateBias, Use::Projection)?,
            up: linear(loader, layer, Part::Up, Part::UpBias, Use::Projection)?,
            down: linear(loader, layer, Part::Down, Part::DownBias, Use::Projection)?,
        }),
        MlpSpec::Sparse(sparse) => MlpWeights::Sparse(SparseWeights {
            router: linear(loader, layer, Part::Router, Part::RouterBias, Use::AsStored)?,
            correction: loader.vector_if(slot(Part::CorrectionBias))?,
            shared: sparse.shared.map(|_| load_shared(layer, loader)),
            shared_logit: loader.has(slot(Part::SharedLogit)).then(|| loader.matrix(slot(Part::SharedLogit))),
        }),
    };
    Ok(LayerWeights {
        input_norm: loader.vector(slot(Part::InputNorm))?,
        post_norm: loader.vector(slot(Part::PostNorm))?,
        attention,
        mlp,
    })
}

fn linear(
    loader: &mut Loader<'_>,
    layer: usize,
    weight: Part,
    bias: Part,
    usage: Use,
) -> Result<Linear, LoadError> {
    Ok(Linear {
        weight: loader.weight(Slot::Layer(layer, weight), usage),
        bias: loader.vector_if(Slot::Layer(layer, bias))?,
    })
}

fn load_shared(layer: usize, loader: &mut Loader<'_>) -> Mlp {
    let mut plain =
        |part| Linear { weight: loader.weight(Slot::Layer(layer, part), Use::Projection), bias: None };
    Mlp { gate: plain(Part::SharedGate), up: plain(Part::SharedUp), down: plain(Part::SharedDown) }
}

fn load_latent(spec: &LatentSpec, layer: usize, loader: &mut Loader<'_>) -> Result<Latent, LoadError> {
    let slot = |part| Slot::Layer(layer, part);
    let query_a = match spec.q_rank {
        Some(_) => {
            let down = linear(loader, layer, Part::QueryA, Part::QueryABias, Use::AsStored)?;
            Some((down, loader.vector(slot(Part::QueryANorm))?))
        }
        None => None,
    };
    let kv_b = loader.matrix(slot(Part::KvB));
    let head = spec.nope_dim + spec.value_dim;
    let keys: Vec<Matrix> =
        (0..spec.heads).map(|h| kv_b.row_slice(h * head, 1, spec.nope_dim).transposed()).collect();
    let values: Vec<Matrix> =
        (0..spec.heads).map(|h| kv_b.row_slice(h * head + spec.nope_dim, 1, spec.value_dim)).collect();
    Ok(Latent {
        query: loader.matrix(slot(if query_a.is_some() { Part::QueryB } else { Part::Query })),
        query_a,
        kv_a: linear(loader, layer, Part::KvA, Part::KvABias, Use::AsStored)?,
        kv_norm: loader.vector(slot(Part::KvANorm))?,
        key_up: Matrix::stacked(&keys),
        value_up: Matrix::stacked(&values),
        output: linear(loader, layer, Part::Output, Part::OutputBias, Use::AsStored)?,
    })
}
