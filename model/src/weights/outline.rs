//! In which forms a model's experts are run, and whether GPUs have kernels for those. Follows from the tables alone: no weight is
//! read for it.

use std::collections::BTreeMap;

use gaterail_kernels::cuda::{ExpertForm, ExpertsOutline, check_experts};

use super::expected::{Expected, Form, Part, Role, Slot, expected_tensors, stored_form};
use super::experts::unit_length;
use super::mixed::expert_uses;
use super::precision::{Precision, Use};
use super::recall::forms;
use crate::checkpoint::Checkpoint;
use crate::config::Quantization;
use crate::spec::ModelSpec;

/// The experts of each sparse layer as they are run in this precision.
pub fn expert_outlines(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    precision: Precision,
) -> BTreeMap<usize, ExpertsOutline> {
    let table = expected_tensors(spec);
    let uses = expert_uses(spec.layers.len(), table.iter(), checkpoint, precision);
    let mut outlines: BTreeMap<usize, ExpertsOutline> = BTreeMap::new();
    for row in table.iter().filter(|row| row.role == Role::Experts && row.form != Form::Vector) {
        let (Slot::Layer(layer, part) | Slot::Expert(layer, _, part)) = row.slot else { continue };
        let outline = outlines.entry(layer).or_insert_with(|| ExpertsOutline {
            experts: spec.layers[layer].mlp.sparse().map_or(0, |sparse| sparse.experts),
            unit: unit_length(spec),
            ..ExpertsOutline::default()
        });
        let form = match forms(row, uses[layer], (checkpoint, spec.quantization), precision) {
            Some(forms) => {
                let (codes, group) = forms.codes();
                ExpertForm::Packed { codes, group }
            }
            None => ExpertForm::Plain(elements(row, uses[layer], (spec, checkpoint), precision)),
        };
        let seen = match part {
            Part::Down | Part::StackedDown | Part::FusedDown => &mut outline.down,
            _ => &mut outline.gate_up,
        };
        if !seen.contains(&form) {
            seen.push(form);
        }
    }
    outlines
}

/// What the elements of a matrix are that is not packed.
fn elements(
    row: &Expected,
    usage: Use,
    (spec, checkpoint): (&ModelSpec, &Checkpoint),
    precision: Precision,
) -> String {
    match (precision, usage) {
        (Precision::F32, _) => return "f32".to_string(),
        (Precision::Bf16, Use::Expert) => return "bf16".to_string(),
        _ => {}
    }
    let stored = checkpoint.tensor(&row.name).map(|tensor| tensor.stored.to_string());
    let apart = || match stored_form(spec.quantization, row.form) {
        Quantization::Int4(_) => "int4".to_string(),
        _ => "mxfp4".to_string(),
    };
    format!("{} as stored", stored.unwrap_or_else(apart))
}

/// Whether GPUs with so much shared memory for a block compute all experts in this precision; else which ones they do not.
pub fn check_for_cards(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    precision: Precision,
    shared_bytes: usize,
) -> Result<(), String> {
    expert_outlines(spec, checkpoint, precision).iter().try_for_each(|(layer, outline)| {
        check_experts(outline, shared_bytes).map_err(|error| format!("layer {layer}: {error}"))
    })
}

/// The smallest precision in which such GPUs compute all experts, if there is one.
pub fn precision_for_cards(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    shared_bytes: usize,
) -> Option<Precision> {
    let computed =
        |precision: &Precision| check_for_cards(spec, checkpoint, *precision, shared_bytes).is_ok();
    [Precision::Int4, Precision::Int8].into_iter().find(computed)
}
