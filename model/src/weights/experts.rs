//! Expert shards: any runs of canonical units of any experts, taken out of a checkpoint.

use std::collections::HashMap;
use std::ops::Range;

use gaterail_kernels::ops::{self, ExpertPiece, ExpertPieces};
use gaterail_kernels::{
    Device, FP8_BLOCK, GGUF_GROUP, INT4_GROUP_MAX, KernelError, MXFP4_GROUP, Matrix, Weight,
};
use gaterail_proto::{ExpertInventory, ExpertSlice, LayerExperts, LayerId, ShardSpec, UnitRange};

use super::cache::{CacheKey, CacheOutcome, PackedCache, Place, Store};
use super::expected::{Part, Role, Slot, expected_tensors};
use super::int4;
use super::load::{LoadError, Loader, Loading, Stacked};
use super::precision::{Precision, Use};
use crate::arch::ExpertNames;
use crate::checkpoint::Checkpoint;
use crate::config::Quantization;
use crate::spec::{ModelSpec, SparseSpec};

/// Where slices are loaded from, and what becomes of them.
pub struct LoadFrom<'a> {
    pub spec: &'a ModelSpec,
    /// Checked against `spec`.
    pub checkpoint: &'a Checkpoint,
    pub device: &'a Device,
    pub precision: Precision,
    /// Where packed weights are kept.
    pub cache: Option<&'a PackedCache>,
}

/// The experts that one place holds, by layer.
pub struct ExpertShard {
    /// `layers[l]` is empty for dense layers and for layers of which nothing is held.
    layers: Vec<ExpertPieces>,
}

impl ExpertShard {
    /// A shard of pieces that were loaded one by one, for a model of so many layers. A slice of an expert that stands in several
    /// pieces is computed in all of them.
    pub fn new(layers: usize, pieces: impl IntoIterator<Item = (LayerId, ExpertPiece)>) -> ExpertShard {
        ExpertShard { layers: by_layer(layers, pieces).into_iter().map(ExpertPieces::from).collect() }
    }

    /// The same where `device` computes. A GPU's kernels are compiled by the time this returns.
    pub fn on(
        device: &Device,
        layers: usize,
        pieces: impl IntoIterator<Item = (LayerId, ExpertPiece)>,
    ) -> Result<ExpertShard, KernelError> {
        let of = by_layer(layers, pieces).into_iter();
        Ok(ExpertShard {
            layers: of.map(|pieces| ExpertPieces::on(device, pieces)).collect::<Result<_, _>>()?,
        })
    }

    /// What is held of a layer.
    pub fn pieces(&self, layer: LayerId) -> &ExpertPieces {
        &self.layers[layer.0 as usize]
    }
}

fn by_layer(
    layers: usize,
    pieces: impl IntoIterator<Item = (LayerId, ExpertPiece)>,
) -> Vec<Vec<ExpertPiece>> {
    let mut of: Vec<Vec<ExpertPiece>> = (0..layers).map(|_| Vec::new()).collect();
    pieces.into_iter().for_each(|(layer, piece)| of[layer.0 as usize].push(piece));
    of
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
    shards.iter().try_for_each(|shard| check_slices(inventory, &shard.slices))?;
    for slice in shards.iter().flat_map(|shard| &shard.slices) {
        let (layer, expert) = (slice.layer.0, slice.expert.0);
        let units = units[&slice.layer].units as usize;
        let held = held.entry((slice.layer, expert)).or_insert_with(|| vec![false; units]);
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
    let uses = loader.expert_uses();
    let pieces: Vec<_> =
        shard.slices.iter().map(|slice| (slice.layer, load_slice(spec, slice, &uses, loader))).collect();
    ExpertShard::new(spec.layers.len(), pieces)
}

/// One slice; `uses` is the loader's `expert_uses`.
fn load_slice(spec: &ModelSpec, slice: &ExpertSlice, uses: &[Use], loader: &mut Loader<'_>) -> ExpertPiece {
    let layer = slice.layer.0 as usize;
    let sparse = spec.layers[layer].mlp.sparse().unwrap_or_else(|| panic!("layer {layer} has no experts"));
    load_piece(spec, sparse, slice, uses[layer], loader)
}

/// Loads slices one by one, and hands each over as soon as it is there; `false` ends it. `shard` says which file of the cache
/// is theirs; every slice lies inside the inventory.
pub fn load_slices(
    from: LoadFrom<'_>,
    slices: &[ExpertSlice],
    loading: Loading<'_>,
    each: &mut dyn FnMut(ExpertSlice, ExpertPiece) -> bool,
) -> Result<CacheOutcome, LoadError> {
    load_slices_onto(from, slices, loading, &mut |slice, piece| each(slice, piece.clone()).then_some(piece))
}

/// The same for pieces that may go on to a card: `each` returns a piece as it is held, and `None` ends it. What is kept for the
/// next start is read from there.
pub fn load_slices_onto(
    from: LoadFrom<'_>,
    slices: &[ExpertSlice],
    loading: Loading<'_>,
    each: &mut dyn FnMut(ExpertSlice, ExpertPiece) -> Option<ExpertPiece>,
) -> Result<CacheOutcome, LoadError> {
    let LoadFrom { spec, checkpoint, device, precision, cache } = from;
    check_slices(&inventory(spec, None), slices).map_err(LoadError::Shards)?;
    let mut loader = Loader::new(spec, checkpoint, device, precision, loading);
    if let Some(cache) = cache {
        let shard = ShardSpec { slices: slices.to_vec() };
        let key = CacheKey::new(spec, checkpoint, precision, std::slice::from_ref(&shard));
        key.into_iter().for_each(|key| loader.keep_in(Store::open(cache.clone(), key)));
    }
    let uses = loader.expert_uses();
    for slice in slices {
        let piece = load_slice(spec, slice, &uses, &mut loader);
        let Some(held) = each(*slice, piece) else { return Ok(CacheOutcome::default()) };
        let [gate, up, down] = places_of(spec, slice, &loader);
        loader.settle(&[(gate, &held.gate), (up, &held.up), (down, &held.down)]);
    }
    let (notes, pending) = loader.into_store().map(Store::finish).unwrap_or_default();
    Ok(CacheOutcome { notes, pending })
}

/// Whether the slices are runs of units that the inventory has.
pub fn check_slices(inventory: &ExpertInventory, slices: &[ExpertSlice]) -> Result<(), String> {
    let units: HashMap<LayerId, &LayerExperts> = inventory.layers.iter().map(|at| (at.layer, at)).collect();
    for slice in slices {
        let (layer, expert, UnitRange { start, end }) = (slice.layer.0, slice.expert.0, slice.units);
        let at = units.get(&slice.layer).filter(|at| expert < at.experts);
        let at = at.ok_or_else(|| format!("layer {layer} has no expert {expert}"))?;
        if start >= end || end > at.units {
            return Err(format!(
                "units {start}..{end} of expert {expert} of layer {layer}, which has {}",
                at.units
            ));
        }
    }
    Ok(())
}

fn load_piece(
    spec: &ModelSpec,
    sparse: &SparseSpec,
    slice: &ExpertSlice,
    usage: Use,
    loader: &mut Loader<'_>,
) -> ExpertPiece {
    let (layer, expert) = (slice.layer.0 as usize, slice.expert.0 as usize);
    let columns = columns(spec, sparse, slice);
    let first = columns.start;
    let [gate, up, down] = load_matrices(spec, sparse, (layer, expert), columns.clone(), usage, loader);
    let biases = sparse.expert_bias.then(|| load_biases(spec, sparse, layer, expert, loader));
    let run = |bias: &[f32]| bias[columns.clone()].to_vec();
    ExpertPiece {
        expert: slice.expert.0,
        gate,
        up,
        down,
        gate_bias: biases.as_ref().map(|biases| run(&biases.gate)),
        up_bias: biases.as_ref().map(|biases| run(&biases.up)),
        down_bias: biases.filter(|_| first == 0).map(|biases| biases.down),
    }
}

/// gate, up and down of the run, as they are kept or out of the checkpoint.
fn load_matrices(
    spec: &ModelSpec,
    sparse: &SparseSpec,
    (layer, expert): (usize, usize),
    run: Range<usize>,
    usage: Use,
    loader: &mut Loader<'_>,
) -> [Weight; 3] {
    let places = places(spec, (layer, expert), &run, &|slot| loader.name(slot));
    // Where gate and up are one tensor, one of them alone is of no use.
    let [gate, up, down] = places.each_ref().map(|(slot, place)| loader.recall(*slot, place, usage));
    if let (Some(gate), Some(up), Some(down)) = (gate, up, down) {
        return [gate, up, down];
    }
    let matrices = stored_matrices(spec, sparse, (layer, expert), run, loader);
    let mut matrices = places.iter().zip(matrices);
    [(); 3].map(|()| {
        let ((_, place), matrix) = matrices.next().unwrap_or_else(|| unreachable!("three of each"));
        loader.run_as(place, matrix, usage)
    })
}

/// A slice's run along F.
fn columns(spec: &ModelSpec, sparse: &SparseSpec, slice: &ExpertSlice) -> Range<usize> {
    let unit = unit_length(spec);
    slice.units.start as usize * unit..(slice.units.end as usize * unit).min(sparse.width)
}

/// Where gate, up and down of a slice lie.
fn places_of(spec: &ModelSpec, slice: &ExpertSlice, loader: &Loader<'_>) -> [Place; 3] {
    let (layer, expert) = (slice.layer.0 as usize, slice.expert.0 as usize);
    // Only layers with experts have slices.
    let run = spec.layers[layer].mlp.sparse().map_or(0..0, |sparse| columns(spec, sparse, slice));
    places(spec, (layer, expert), &run, &|slot| loader.name(slot)).map(|(_, place)| place)
}

/// Where gate, up and down of the run lie.
pub(super) fn places<'n>(
    spec: &ModelSpec,
    (layer, expert): (usize, usize),
    run: &Range<usize>,
    name_of: &dyn Fn(Slot) -> &'n str,
) -> [(Slot, Place); 3] {
    let at = |part| Slot::Layer(layer, part);
    let (slots, within): ([Slot; 3], [String; 3]) = match spec.names.experts {
        ExpertNames::Each { .. } => {
            let slot = |part| Slot::Expert(layer, expert, part);
            ([Part::Gate, Part::Up, Part::Down].map(slot), Default::default())
        }
        ExpertNames::Stacked => {
            let slots = [Part::StackedGate, Part::StackedUp, Part::StackedDown].map(at);
            (slots, ["", "", ""].map(|_| format!("[{expert}]")))
        }
        ExpertNames::Fused { .. } => {
            let slots = [Part::FusedGateUp, Part::FusedGateUp, Part::FusedDown].map(at);
            (slots, [".gate", ".up", ""].map(|half| format!("[{expert}]{half}")))
        }
    };
    let (first, n, hidden) = (run.start, run.len(), spec.hidden);
    let parts = [(first, n, 0, hidden), (first, n, 0, hidden), (0, hidden, first, n)];
    [0, 1, 2].map(|i| {
        let (first_row, rows, first_col, cols) = parts[i];
        let name = format!("{}{}", name_of(slots[i]), within[i]);
        (slots[i], Place { name, first_row, rows, first_col, cols })
    })
}

/// gate, up and down of the run, as stored.
fn stored_matrices(
    spec: &ModelSpec,
    sparse: &SparseSpec,
    (layer, expert): (usize, usize),
    run: Range<usize>,
    loader: &mut Loader<'_>,
) -> [Matrix; 3] {
    match spec.names.experts {
        ExpertNames::Each { .. } => {
            let slot = |part| Slot::Expert(layer, expert, part);
            let gate = loader.matrix_rows(slot(Part::Gate), run.clone());
            let up = loader.matrix_rows(slot(Part::Up), run.clone());
            [gate, up, loader.matrix_cols(slot(Part::Down), run)]
        }
        ExpertNames::Stacked => {
            let [gate, up, down] = [Part::StackedGate, Part::StackedUp, Part::StackedDown]
                .map(|part| loader.output_stacked(Slot::Layer(layer, part), expert));
            let rows = |matrix: Matrix| matrix.row_slice(run.start, 1, run.len());
            [rows(gate), rows(up), down.col_slice(run.start, run.len())]
        }
        ExpertNames::Fused { take_turns } => {
            let both = loader.stacked(Slot::Layer(layer, Part::FusedGateUp), expert);
            let down = loader.stacked(Slot::Layer(layer, Part::FusedDown), expert);
            let down = down.inputs(run.start, run.len());
            let (gate, up) = gate_and_up(&both, take_turns, sparse.width, run);
            [gate, up, down]
        }
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
