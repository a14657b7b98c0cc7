//! Weights in some form, of values that say nothing.

use std::sync::Arc;

use gaterail_kernels::{Bytes, Codes, ElementType, Matrix, MatrixData, Packed, PackedFormat, Scales, Weight};
use gaterail_model::weights::Precision;
use serde::Serialize;

/// A line of the caches, where weights of a server begin, too.
const ALIGNMENT: usize = 64;

/// How weights are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Packed(PackedFormat),
    Plain(ElementType),
}

impl Kind {
    /// How weights run that are stored so, as `gaterail inspect` names it, in a precision.
    pub fn of(stored: &str, precision: Precision) -> Kind {
        let groups_of = |format, group| Kind::Packed(PackedFormat { group, ..format });
        match (precision, stored) {
            (Precision::F32, _) => Kind::Plain(ElementType::F32),
            (Precision::Bf16, _) => Kind::Plain(ElementType::Bf16),
            (_, "q4_0") => groups_of(PackedFormat::INT4, 32),
            (_, "q8_0") => groups_of(PackedFormat::INT8, 32),
            (_, "mxfp4") => Kind::Packed(PackedFormat {
                codes: Codes::MXFP4,
                scales: Scales::F32,
                group: 32,
                ..PackedFormat::INT4
            }),
            (_, stored) if stored.contains("int4") || stored.contains("4-bit") => {
                groups_of(PackedFormat::INT4, 128)
            }
            (Precision::Int8, _) => Kind::Packed(PackedFormat::INT8),
            (Precision::Int4, _) => Kind::Packed(PackedFormat::INT4),
            (Precision::AsStored, "f32") => Kind::Plain(ElementType::F32),
            (Precision::AsStored, "f16") => Kind::Plain(ElementType::F16),
            (Precision::AsStored, _) => Kind::Plain(ElementType::Bf16),
        }
    }

    /// The groups in which rows meet such weights in int8.
    pub fn group(self) -> Option<u32> {
        match self {
            Kind::Packed(format) => Some(format.group as u32),
            Kind::Plain(_) => None,
        }
    }

    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        match self {
            Kind::Packed(format) => format.bytes(rows, cols),
            Kind::Plain(element) => element.bytes() * rows * cols,
        }
    }

    /// The matrix whose bytes these are.
    pub fn weight(self, bytes: Bytes, rows: usize, cols: usize) -> Weight {
        match self {
            Kind::Packed(format) => Packed::new(format, bytes, rows, cols).into(),
            Kind::Plain(kind) => Matrix::new(MatrixData::Plain { kind, elements: bytes }, rows, cols).into(),
        }
    }
}

/// Values between 0.00003 and 1 whatever they are read as, so that no product is slow for being tiny or endless.
pub fn any_bytes(len: usize) -> Bytes {
    let mut bytes = vec![0u8; len.next_multiple_of(8) + ALIGNMENT];
    // Filled where they stay: there may be much of it.
    let first = bytes.as_ptr().align_offset(ALIGNMENT);
    let mut state = 1u64;
    for word in bytes[first..].chunks_exact_mut(8) {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        word.copy_from_slice(&(state & 0x83ff_83ff_83ff_83ff | 0x3800_3800_3800_3800).to_le_bytes());
    }
    Bytes::new(Arc::new(bytes)).slice(first..first + len)
}

/// As a person calls it.
impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Packed(format) if format.codes == Codes::Int8 => {
                write!(f, "int8 in groups of {}", format.group)
            }
            Kind::Packed(format) if format.codes == Codes::MXFP4 => write!(f, "mxfp4"),
            Kind::Packed(format) => write!(f, "int4 in groups of {}", format.group),
            Kind::Plain(ElementType::F32) => write!(f, "f32"),
            Kind::Plain(ElementType::F16) => write!(f, "f16"),
            Kind::Plain(ElementType::Bf16) => write!(f, "bf16"),
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
