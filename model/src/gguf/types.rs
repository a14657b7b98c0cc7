//! How GGUF files store tensors: the types that are read, and the names of those that are not.

use gaterail_kernels::{GGUF_GROUP, Q4_0_BLOCK, Q8_0_BLOCK};

use crate::checkpoint::StoredType;

/// A type that is read: blocks of so many values in so many bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockType {
    pub stored: StoredType,
    pub values: usize,
    pub bytes: usize,
}

/// What a refusal says this version reads.
pub const READ: &str = "F32, F16, BF16, Q4_0 and Q8_0";

/// The type of that number, or its name if it is not read.
pub fn block_type(number: u32) -> Result<BlockType, String> {
    let (stored, values, bytes) = match number {
        0 => (StoredType::F32, 1, 4),
        1 => (StoredType::F16, 1, 2),
        2 => (StoredType::Q4_0, GGUF_GROUP, Q4_0_BLOCK),
        8 => (StoredType::Q8_0, GGUF_GROUP, Q8_0_BLOCK),
        30 => (StoredType::Bf16, 1, 2),
        other => return Err(other_name(other)),
    };
    Ok(BlockType { stored, values, bytes })
}

/// The numbers and names of ggml's other types.
const OTHERS: [(u32, &str); 27] = [
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

fn other_name(number: u32) -> String {
    let known = OTHERS.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("type {number}"), |(_, name)| (*name).to_string())
}
