//! Expert shards: any runs of canonical units of any experts, taken out of a checkpoint.

use std::collections::HashMap;
use std::ops::Range;

use gaterail_kernels::ops::{self, ExpertPiece, ExpertPieces};
use gaterail_kernels::{FP8_BLOCK, GGUF_GROUP, INT4_GROUP_MAX, MXFP4_GROUP, Matrix};
use gaterail_proto::{ExpertInventory, ExpertSlice, LayerExperts, LayerId, ShardSpec, UnitRange};

use super::expected::{Part, Role, Slot, expected_tensors};
use super::int4;
use super::load::{Loader, Stacked};
use super::precision::Use;
use crate::arch::ExpertNames;
use crate::checkpoint::Checkpoint;
use crate::config::Quantization;
use crate::spec::{ModelSpec, SparseSpec};

/// The experts that one place holds, by layer.
pub struct ExpertShard {
    /// `layers[l]` is empty for dense layers and for layers of which nothing is held.
    layers: Vec<ExpertPieces>,
}

impl ExpertShard {
    /// What is held of a layer.
    pub fn pieces(&self, layer: LayerId) -> &ExpertPieces {
        &self.layers[layer.0 as usize]
    }
}

/// The blocks of a GGUF file need no units of their own.
const _: () = assert!(ops::UNIT_MIN.is_multiple_of(GGUF_GROUP));

/// The length of a canonical unit in this model.
pub fn unit_length(spec: &ModelSpec) -> usize {
    ops::unit_length(match spec.quantization {
        Quantization::None => 1,
        Quantization::Fp8Blocks => FP8_BLOCK,
        Quantization::Mxfp4Experts => MXFP4_GROUP,
        Quantization::Int4(_) => INT4_GROUP_MAX,
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

/// A tensor's bytes with those of its scales and blocks, or of what stands for it in 4 bits.
pub(super) fn stored_bytes(checkpoint: &Checkpoint, name: &str) -> u64 {
    let beside = ["", "_scale_inv", "_blocks", "_scales"].map(|suffix| format!("{name}{suffix}"));
    let instead = int4::tensor_names(name).filter(|names| checkpoint.tensor(&names.qweight).is_some());
    let instead = instead.map(|names| [names.qweight, names.qzeros, names.scales, names.g_idx]);
    beside
        .iter()
        .chain(instead.iter().flatten())
        .filter_map(|name| checkpoint.tensor(name))
        .map(|tensor| tensor.bytes.len() as u64)
        .sum()
}

/// Whether the shards together hold every unit of every expert exactly once.
pub fn check_cover(inventory: &ExpertInventory, shards: &[ShardSpec]) -> Result<(), String> {
    let units: HashMap<LayerId, &LayerExperts> = inventory.layers.iter().map(|at| (at.layer, at)).collect();
    let mut held: HashMap<(LayerId, u32), Vec<bool>> = HashMap::new();
    for slice in shards.iter().flat_map(|shard| &shard.slices) {
        let (layer, expert) = (slice.layer.0, slice.expert.0);
        let at = units.get(&slice.layer).filter(|at| expert < at.experts);
        let at = at.ok_or_else(|| format!("layer {layer} has no expert {expert}"))?;
        if slice.units.start >= slice.units.end || slice.units.end > at.units {
            let UnitRange { start, end } = slice.units;
            return Err(format!(
                "units {start}..{end} of expert {expert} of layer {layer}, which has {}",
                at.units
            ));
        }
        let held = held.entry((slice.layer, expert)).or_insert_with(|| vec![false; at.units as usize]);
        for unit in slice.units.start..slice.units.end {
            if std::mem::replace(&mut held[unit as usize], true) {
                return Err(format!("unit {unit} of expert {expert} of layer {layer} is held twice"));
            }
        }
    }
    for slice in inventory.slices() {
        let held = held.get(&(slice.layer, slice.expert.0));
        if held.is_none_or(|held| held.contains(&false)) {
            return Err(format!(
                "a part of expert {} of layer {} is held nowhere",
                slice.expert.0, slice.layer.0
            ));
        }
    }
    Ok(())
}

/// Loads what `shard` lists from a checked checkpoint; `check_cover` has seen the shard.
pub fn load_shard(spec: &ModelSpec, shard: &ShardSpec, loader: &mut Loader<'_>) -> ExpertShard {
    let mut layers: Vec<Vec<ExpertPiece>> = spec.layers.iter().map(|_| Vec::new()).collect();
    let uses: Vec<Use> = (0..spec.layers.len()).map(|layer| loader.expert_use(layer)).collect();
    for slice in &shard.slices {
        let layer = slice.layer.0 as usize;
        let sparse =
            spec.layers[layer].mlp.sparse().unwrap_or_else(|| panic!("layer {layer} has no experts"));
        layers[layer].push(load_piece(spec, sparse, slice, uses[layer], loader));
    }
    ExpertShard { layers: layers.into_iter().map(ExpertPieces::from).collect() }
}

fn load_piece(
    spec: &ModelSpec,
    sparse: &SparseSpec,
    slice: &ExpertSlice,
    usage: Use,
    loader: &mut Loader<'_>,
) -> ExpertPiece {
    let unit = unit_length(spec);
    let first = slice.units.start as usize * unit;
    let end = (slice.units.end as usize * unit).min(sparse.width);
    let (layer, expert) = (slice.layer.0 as usize, slice.expert.0 as usize);
    let run = |[gate, up, down]: [Matrix; 3]| {
        let run = |matrix: Matrix| matrix.row_slice(first, 1, end - first);
        (run(gate), run(up), down.col_slice(first, end - first))
    };
    let (gate, up, down) = match spec.names.experts {
        ExpertNames::Each { .. } => {
            let slot = |part| Slot::Expert(layer, expert, part);
            let gate = loader.matrix_rows(slot(Part::Gate), first..end);
            let up = loader.matrix_rows(slot(Part::Up), first..end);
            (gate, up, loader.matrix_cols(slot(Part::Down), first..end))
        }
        ExpertNames::Stacked => run([Part::StackedGate, Part::StackedUp, Part::StackedDown]
            .map(|part| loader.output_stacked(Slot::Layer(layer, part), expert))),
        ExpertNames::Fused { take_turns } => {
            let both = loader.stacked(Slot::Layer(layer, Part::FusedGateUp), expert);
            let down = loader.stacked(Slot::Layer(layer, Part::FusedDown), expert);
            let (gate, up) = gate_and_up(&both, take_turns, sparse.width, first..end);
            (gate, up, down.inputs(first, end - first))
        }
    };
    let biases = sparse.expert_bias.then(|| load_biases(spec, sparse, layer, expert, loader));
    let run = |bias: &[f32]| bias[first..end].to_vec();
    ExpertPiece {
        expert: slice.expert.0,
        gate: loader.run_as(gate, usage),
        up: loader.run_as(up, usage),
        down: loader.run_as(down, usage),
        gate_bias: biases.as_ref().map(|biases| run(&biases.gate)),
        up_bias: biases.as_ref().map(|biases| run(&biases.up)),
        down_bias: biases.filter(|_| first == 0).map(|biases| biases.down),
    }
}

/// The run of gate and up out of both, whose outputs are halves or take turns.
fn gate_and_up(both: &Stacked, take_turns: bool, width: usize, run: Range<usize>) -> (Matrix, Matrix) {
    let n = run.len();
    if take_turns {
        let both = both.outputs(2 * run.start, 2 * n);
        return (both.row_slice(0, 2, n), both.row_slice(1, 2, n));
    }
    (both.outputs(run.start, n), both.outputs(width + run.start, n))
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
