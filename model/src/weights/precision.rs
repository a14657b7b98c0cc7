//! In which precision weights are run: as they are stored, or as the user asks.

use gaterail_kernels::ops::{KvForm, Packing};
use gaterail_kernels::{ElementType, Matrix, MatrixData, PackedFormat};

/// What becomes of the weights of experts, projections and head. Norms, embeddings, gates and the projections of latent
/// attention always stay as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Whatever is stored: integers in groups meet int8 activations, everything else f32 ones.
    AsStored,
    /// The stored values with f32 activations: exact, and slow for integers.
    F32,
    /// bf16 with f32 activations.
    Bf16,
    /// Integers of 8 bits in groups of 64, with int8 activations; what is stored in integers stays.
    Int8,
    /// Integers of 4 bits in groups of 64, with int8 activations; the head in int8; what is stored in integers stays.
    Int4,
}

/// What a matrix is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Expert,
    Projection,
    Head,
    /// Never changed: gates, latent attention.
    AsStored,
}

/// What is done with one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Keep,
    ToBf16,
    Pack(Packing),
}

impl Precision {
    /// What KV stores beside such weights: f32 where everything is to be exact.
    pub fn kv(self) -> KvForm {
        if self == Precision::F32 { KvForm::F32 } else { KvForm::F16 }
    }

    /// What to do with a matrix.
    pub fn step(self, matrix: &Matrix, usage: Use) -> Step {
        let groups = matrix.packed_format().is_some();
        match (self, usage) {
            (Precision::F32, _) | (_, Use::AsStored) => Step::Keep,
            (Precision::Bf16, _) => {
                let stored = matches!(matrix.data(), MatrixData::Plain { kind: ElementType::Bf16, .. });
                if stored { Step::Keep } else { Step::ToBf16 }
            }
            (Precision::AsStored | Precision::Int8 | Precision::Int4, _) if groups => {
                Step::Pack(Packing::AsStored)
            }
            (Precision::AsStored, _) => Step::Keep,
            (Precision::Int8, _) | (Precision::Int4, Use::Head) => Step::Pack(Packing::Int8),
            (Precision::Int4, _) => Step::Pack(Packing::Int4),
        }
    }

    /// The bytes of a plain matrix `[rows, cols]` with `stored` bytes in this precision.
    pub fn bytes(self, rows: u64, cols: u64, stored: u64, usage: Use) -> u64 {
        let packed = |format: PackedFormat| format.bytes(rows as usize, cols as usize) as u64;
        match (self, usage) {
            (_, Use::AsStored) | (Precision::AsStored | Precision::F32, _) => stored,
            (Precision::Bf16, _) => rows * cols * 2,
            (Precision::Int8, _) | (Precision::Int4, Use::Head) => packed(PackedFormat::INT8),
            (Precision::Int4, _) => packed(PackedFormat::INT4),
        }
    }
}
