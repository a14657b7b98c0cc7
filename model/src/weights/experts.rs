//! Expert shards: any runs of canonical units of any experts, taken out of a checkpoint.

use std::collections::HashMap;

use gaterail_kernels::Matrix;
use gaterail_kernels::ops::{self, ExpertPiece};
use gaterail_proto::{ExpertInventory, ExpertSlice, LayerExperts, LayerId, ShardSpec};

use super::expected::{Part, Role, Slot, expected_tensors};
use super::load::Loader;
use crate::arch::ExpertNames;
use crate::checkpoint::Checkpoint;
use crate::config::Quantization;
use crate::spec::{ModelSpec, SparseSpec};

/// The experts that one place holds, by layer.
pub struct ExpertShard {
    /// `layers[l]` is empty for dense layers and for layers of which nothing is held.
    layers: Vec<Vec<ExpertPiece>>,
}

impl ExpertShard {
    /// What is held of a layer.
    pub fn pieces(&self, layer: LayerId) -> &[ExpertPiece] {
        &self.layers[layer.0 as usize]
    }
}

/// The length of a canonical unit in this model.
pub fn unit_length(spec: &ModelSpec) -> usize {
    ops::unit_length(match spec.quantization {
        Quantization::None => 1,
        Quantization::Fp8Blocks => 128,
        Quantization::Mxfp4Experts => 32,
    })
}

/// What a model has to place.
pub fn inventory(spec: &ModelSpec, checkpoint: Option<&Checkpoint>) -> ExpertInventory {
    let unit = unit_length(spec);
    let mut bytes: HashMap<usize, u64> = HashMap::new();
    if let Some(checkpoint) = checkpoint {
        for expected in expected_tensors(spec).into_iter().filter(|row| row.role == Role::Experts) {
            let (Slot::Layer(layer, _) | Slot::Expert(layer, _, _)) = expected.slot else { continue };
            *bytes.entry(layer).or_default() += stored_bytes(checkpoint, &expected.name);
        }
    }
    let layers = spec.layers.iter().enumerate().filter_map(|(layer, at)| {
        let sparse = at.mlp.sparse()?;
        Some(LayerExperts {
            layer: LayerId(layer as u32),
            experts: sparse.experts as u32,
            units: sparse.width.div_ceil(unit) as u32,
            expert_bytes: bytes.get(&layer).copied().unwrap_or(0) / sparse.experts as u64,
        })
    });
    ExpertInventory { layers: layers.collect() }
}

/// A tensor's bytes with those of its scales and blocks.
pub(super) fn stored_bytes(checkpoint: &Checkpoint, name: &str) -> u64 {
    ["", "_scale_inv", "_blocks", "_scales"]
        .iter()
        .filter_map(|suffix| checkpoint.tensor(&format!("{name}{suffix}")))
        .map(|tensor| tensor.bytes.len() as u64)
        .sum()
}

/// Loads what `shard` lists from a checked checkpoint.
pub fn load_shard(spec: &ModelSpec, shard: &ShardSpec, loader: &mut Loader<'_>) -> ExpertShard {
    let mut layers: Vec<Vec<ExpertPiece>> = spec.layers.iter().map(|_| Vec::new()).collect();
    for slice in &shard.slices {
        let layer = slice.layer.0 as usize;
        let sparse =
            spec.layers[layer].mlp.sparse().unwrap_or_else(|| panic!("layer {layer} has no experts"));
        layers[layer].push(load_piece(spec, sparse, slice, loader));
    }
    ExpertShard { layers }
}

fn load_piece(
    spec: &ModelSpec,
    sparse: &SparseSpec,
    slice: &ExpertSlice,
    loader: &mut Loader<'_>,
) -> ExpertPiece {
    let unit = unit_length(spec);
    let first = slice.units.start as usize * unit;
    let end = (slice.units.end as usize * unit).min(sparse.width);
    assert!(first < end, "an empty slice of expert {:?}", slice.expert);
    let (layer, expert) = (slice.layer.0 as usize, slice.expert.0 as usize);
    let (gate, up, down) = match spec.names.experts {
        ExpertNames::Each { .. } => (
            loader.matrix(Slot::Expert(layer, expert, Part::Gate)),
            loader.matrix(Slot::Expert(layer, expert, Part::Up)),
            loader.matrix(Slot::Expert(layer, expert, Part::Down)),
        ),
        ExpertNames::Fused { take_turns } => {
            let both = loader.stacked(Slot::Layer(layer, Part::FusedGateUp), expert);
            let (gate, up) = halves(&both, take_turns);
            (gate, up, loader.stacked(Slot::Layer(layer, Part::FusedDown), expert))
        }
    };
    let biases = sparse.expert_bias.then(|| load_biases(spec, sparse, layer, expert, loader));
    let run = |bias: &[f32]| bias[first..end].to_vec();
    ExpertPiece {
        expert: slice.expert.0,
        gate: gate.row_slice(first, 1, end - first),
        up: up.row_slice(first, 1, end - first),
        down: down.col_slice(first, end - first),
        gate_bias: biases.as_ref().map(|biases| run(&biases.gate)),
        up_bias: biases.as_ref().map(|biases| run(&biases.up)),
        down_bias: biases.filter(|_| first == 0).map(|biases| biases.down),
    }
}

/// Gate and up out of `[2F, H]`: the two halves, or every other row.
fn halves(both: &Matrix, take_turns: bool) -> (Matrix, Matrix) {
    let f = both.rows() / 2;
    match take_turns {
        true => (both.row_slice(0, 2, f), both.row_slice(1, 2, f)),
        false => (both.row_slice(0, 1, f), both.row_slice(f, 1, f)),
    }
}

struct Biases {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

fn load_biases(
    spec: &ModelSpec,
    sparse: &SparseSpec,
    layer: usize,
    expert: usize,
    loader: &mut Loader<'_>,
) -> Biases {
    let f = sparse.width;
    let both = loader.stacked_values(Slot::Layer(layer, Part::FusedGateUpBias), expert);
    let down = loader.stacked_values(Slot::Layer(layer, Part::FusedDownBias), expert);
    let take_turns = spec.names.experts == ExpertNames::Fused { take_turns: true };
    let (gate, up) = match take_turns {
        true => {
            (both.iter().step_by(2).copied().collect(), both.iter().skip(1).step_by(2).copied().collect())
        }
        false => (both[..f].to_vec(), both[f..].to_vec()),
    };
    Biases { gate, up, down }
}
