//! Experts whose matrices lie in different forms, and how their layers are run.
//!
//! Rows are quantised once per layer, in groups of one size, for all gates and ups. Where these lie in different integer
//! forms, or (run as stored) integers beside other forms, as GGUF files may have it, all matrices of the layer's experts
//! stay as stored, for f32 activations. Weights that become f32 or bf16 meet f32 activations anyway.

use super::expected::{Expected, Form, Part, Role, Slot, expected_tensors};
use super::precision::{Precision, Use};
use crate::checkpoint::{Checkpoint, StoredType};
use crate::spec::ModelSpec;

/// The form of a matrix, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grouping {
    None,
    Blocks(StoredType),
    /// Integers that have tensors of their own for codes and scales.
    Apart,
}

/// What has been seen of a layer.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The form of gates and ups.
    inner: Option<Grouping>,
    inner_differ: bool,
    integers: bool,
    others: bool,
}

/// How the experts of each layer are run.
pub(super) fn expert_uses<'a>(
    layers: usize,
    table: impl Iterator<Item = &'a Expected>,
    checkpoint: &Checkpoint,
    precision: Precision,
) -> Vec<Use> {
    if matches!(precision, Precision::F32 | Precision::Bf16) {
        return vec![Use::Expert; layers];
    }
    let mut seen = vec![Seen::default(); layers];
    for row in table.filter(|row| row.role == Role::Experts && row.form != Form::Vector) {
        let (Slot::Layer(layer, part) | Slot::Expert(layer, _, part)) = row.slot else { continue };
        let form = grouping(checkpoint, row);
        let seen = &mut seen[layer];
        (seen.integers, seen.others) =
            (seen.integers || form != Grouping::None, seen.others || form == Grouping::None);
        if !matches!(part, Part::Down | Part::StackedDown | Part::FusedDown) {
            seen.inner_differ |= *seen.inner.get_or_insert(form) != form;
        }
    }
    let stored =
        |seen: Seen| seen.inner_differ || (precision == Precision::AsStored && seen.integers && seen.others);
    seen.into_iter().map(|seen| if stored(seen) { Use::AsStored } else { Use::Expert }).collect()
}

fn grouping(checkpoint: &Checkpoint, row: &Expected) -> Grouping {
    match checkpoint.tensor(&row.name).map(|tensor| tensor.stored) {
        Some(stored @ (StoredType::Q4_0 | StoredType::Q8_0)) => Grouping::Blocks(stored),
        Some(_) => Grouping::None,
        None => Grouping::Apart,
    }
}

/// The layers whose experts stay as stored, with f32 activations, because their matrices lie in different forms: slower
/// than others, and larger where a smaller precision was asked for.
pub fn mixed_layers(spec: &ModelSpec, checkpoint: &Checkpoint, precision: Precision) -> Vec<usize> {
    let table = expected_tensors(spec);
    let uses = expert_uses(spec.layers.len(), table.iter(), checkpoint, precision);
    (0..uses.len()).filter(|&layer| uses[layer] == Use::AsStored).collect()
}
