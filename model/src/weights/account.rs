//! Where a model's parameters and bytes are, by part, and how many of them one token touches.

use std::collections::BTreeMap;

use gaterail_kernels::{ElementType, FP8_BLOCK, MXFP4_GROUP};

use super::expected::{Expected, Form, Part, Role, Slot, expected_tensors, stored_form};
use super::experts::stored_bytes;
use super::int4;
use super::mixed::expert_uses;
use super::precision::{Precision, Use};
use crate::checkpoint::{Checkpoint, StoredType};
use crate::config::Quantization;
use crate::spec::{AttentionSpec, ModelSpec};

/// One part's share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    pub parameters: u64,
    /// As stored, scales included.
    pub bytes: u64,
    /// What one token touches of both.
    pub active_parameters: u64,
    pub active_bytes: u64,
    /// Bytes by the precision they are stored in.
    pub precisions: BTreeMap<&'static str, u64>,
}

/// All parts' shares; without a checkpoint the bytes are those that the configuration declares.
pub fn account(spec: &ModelSpec, checkpoint: Option<&Checkpoint>) -> BTreeMap<Role, Share> {
    let mut shares: BTreeMap<Role, Share> = BTreeMap::new();
    for expected in expected_tensors(spec) {
        let parameters = elements(&expected.shape);
        let (bytes, precision) = match checkpoint {
            Some(checkpoint) => {
                (stored_bytes(checkpoint, &expected.name), stored_precision(spec, checkpoint, &expected))
            }
            None => declared(spec, &expected, parameters),
        };
        let (touched, of) = touched(spec, expected.role);
        let share = shares.entry(expected.role).or_default();
        let active = |all: u64| clamped(u128::from(all) * u128::from(touched) / u128::from(of));
        add(&mut share.parameters, parameters);
        add(&mut share.bytes, bytes);
        add(&mut share.active_parameters, active(parameters));
        add(&mut share.active_bytes, active(bytes));
        add(share.precisions.entry(precision).or_default(), bytes);
    }
    if spec.tied_embeddings {
        // The head reads the whole embedding for every token; nothing is stored twice.
        let embedding = shares.get(&Role::Embedding).cloned().unwrap_or_default();
        let active = Share {
            parameters: 0,
            bytes: 0,
            active_parameters: embedding.parameters,
            active_bytes: embedding.bytes,
            ..embedding
        };
        let precisions = active.precisions.keys().map(|&precision| (precision, 0)).collect();
        shares.insert(Role::Head, Share { precisions, ..active });
    }
    shares
}

/// The elements of a shape that nothing has checked yet: a configuration can say anything.
fn elements(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |product, &n| product.saturating_mul(n as u64))
}

fn clamped(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// The share of a part that one token touches, as a fraction.
fn touched(spec: &ModelSpec, role: Role) -> (u64, u64) {
    match (role, spec.sparse()) {
        (Role::Experts, Some(sparse)) => (sparse.top_k as u64, sparse.experts as u64),
        (Role::Embedding, _) => (1, spec.vocab as u64),
        _ => (1, 1),
    }
}

fn stored_precision(spec: &ModelSpec, checkpoint: &Checkpoint, expected: &Expected) -> &'static str {
    use StoredType::*;
    match checkpoint.tensor(&expected.name).map(|tensor| tensor.stored) {
        Some(F32) => "f32",
        Some(F16) => "f16",
        Some(Bf16) => "bf16",
        Some(F8E4m3) => "fp8",
        Some(Q4_0) => "q4_0",
        Some(Q8_0) => "q8_0",
        Some(_) => "other",
        None => match stored_form(spec.quantization, expected.form) {
            Quantization::Int4(int4) => int4.precision(),
            _ => "mxfp4",
        },
    }
}

fn declared(spec: &ModelSpec, expected: &Expected, parameters: u64) -> (u64, &'static str) {
    match stored_form(spec.quantization, expected.form) {
        Quantization::Fp8Blocks => {
            let scales = parameters.div_ceil((FP8_BLOCK * FP8_BLOCK) as u64) * 4;
            (parameters.saturating_add(scales), "fp8")
        }
        Quantization::Mxfp4Experts => (parameters / 2 + parameters / MXFP4_GROUP as u64, "mxfp4"),
        Quantization::Int4(int4) => {
            let [rows, cols] = [expected.shape[0], expected.shape[1]];
            let groups = elements(&[cols.div_ceil(int4.stored_group(cols)), rows]);
            let bytes = u128::from(parameters) / 2 + u128::from(groups) * 5 / 2;
            (clamped(bytes), int4.precision())
        }
        Quantization::None => match spec.declared {
            Some(ElementType::F32) => (parameters.saturating_mul(4), "f32"),
            Some(ElementType::F16) => (parameters.saturating_mul(2), "f16"),
            Some(ElementType::Bf16) | None => (parameters.saturating_mul(2), "bf16"),
        },
    }
}

/// Bytes of weights that a running model keeps reading in a precision.
pub fn resident_bytes(spec: &ModelSpec, checkpoint: &Checkpoint, precision: Precision) -> u64 {
    resident_by_role(spec, checkpoint, precision).values().fold(0, |sum, &bytes| sum.saturating_add(bytes))
}

/// The same by part: tensors as they are mapped, or their copies where loading turns them round or packs them (then nobody
/// reads the mapped original again). Tensors that are not run do not count; a tied head counts where it is a copy.
pub fn resident_by_role(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    precision: Precision,
) -> BTreeMap<Role, u64> {
    let mut shares = BTreeMap::new();
    let table = expected_tensors(spec);
    let experts = expert_uses(spec.layers.len(), table.iter(), checkpoint, precision);
    for row in table {
        let stored = stored_bytes(checkpoint, &row.name);
        let usage = match row.slot {
            Slot::Layer(layer, _) | Slot::Expert(layer, _, _)
                if row.role == Role::Experts && row.form != Form::Vector =>
            {
                experts[layer]
            }
            _ => usage(spec, &row),
        };
        let bytes = run_bytes(spec, checkpoint, precision, &row, usage);
        add(shares.entry(row.role).or_default(), bytes);
        if row.slot == Slot::Embedding && spec.tied_embeddings {
            let head = run_bytes(spec, checkpoint, precision, &row, Use::Head);
            let packed = is_packed(checkpoint, &row, precision) || head != stored;
            add(shares.entry(Role::Head).or_default(), if packed { head } else { 0 });
        }
    }
    shares
}

/// The same where there is no checkpoint yet: from what the configuration declares.
pub fn declared_by_role(spec: &ModelSpec, precision: Precision) -> BTreeMap<Role, u64> {
    let mut shares = BTreeMap::new();
    for row in expected_tensors(spec) {
        let elements = elements(&row.shape);
        let (stored, _) = declared(spec, &row, elements);
        let plain = matches!(stored_form(spec.quantization, row.form), Quantization::None);
        let usage = match row.role {
            Role::Experts if row.form != Form::Vector => Use::Expert,
            _ => usage(spec, &row),
        };
        let cols = row.shape.last().map_or(1, |&n| n as u64).max(1);
        let bytes = if plain { precision.bytes(elements / cols, cols, stored, usage) } else { stored };
        add(shares.entry(row.role).or_default(), bytes);
    }
    shares
}

/// Whether a tensor of a GGUF file is packed where it is used for more than looking rows up.
fn is_packed(checkpoint: &Checkpoint, row: &Expected, precision: Precision) -> bool {
    let stored = checkpoint.tensor(&row.name).map(|tensor| tensor.stored);
    matches!(stored, Some(StoredType::Q4_0 | StoredType::Q8_0))
        && !matches!(precision, Precision::F32 | Precision::Bf16)
}

fn run_bytes(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    precision: Precision,
    row: &Expected,
    usage: Use,
) -> u64 {
    let turned = matches!(row.slot, Slot::Layer(_, Part::KvB));
    let stored = stored_bytes(checkpoint, &row.name);
    let elements = elements(&row.shape);
    match checkpoint.tensor(&row.name).map(|tensor| tensor.stored) {
        // Coded matrices that are turned round are kept as f32.
        Some(StoredType::F8E4m3) if turned => return elements.saturating_mul(4),
        // Integers in groups stay what they are, a little more or less for another layout.
        Some(StoredType::Q4_0 | StoredType::Q8_0) if precision != Precision::Bf16 => return stored,
        // Made into bf16, they are no integers any more.
        None if precision == Precision::Bf16 && usage != Use::AsStored => return elements.saturating_mul(2),
        None => match stored_form(spec.quantization, row.form) {
            Quantization::Int4(_) if turned => return elements.saturating_mul(4),
            Quantization::Int4(int4) => return int4::resident_bytes(int4, row.shape[0], row.shape[1]),
            _ => return stored,
        },
        _ => {}
    }
    let cols = row.shape.last().map_or(1, |&n| n as u64);
    precision.bytes(elements / cols.max(1), cols, stored, usage)
}

/// What a tensor is used for, as far as its precision goes.
fn usage(spec: &ModelSpec, row: &Expected) -> Use {
    let latent = |layer: usize| matches!(spec.layers[layer].attention, AttentionSpec::Latent(_));
    match (row.form, row.role) {
        (Form::Vector, _) => Use::AsStored,
        (_, Role::Head) => Use::Head,
        (_, Role::Experts) => Use::Expert,
        (_, Role::Attention) => match row.slot {
            Slot::Layer(layer, _) if latent(layer) => Use::AsStored,
            _ => Use::Projection,
        },
        (Form::Matrix, Role::SharedExperts | Role::DenseLayers) => Use::Projection,
        _ => Use::AsStored,
    }
}
