// Packed weights and quantised rows as the kernels are told of them: kernels/src/cuda/arguments.rs has the twins.
#pragma once

#include "intrinsics.h"

// Whole panels and whole groups of a packed matrix.
struct PackedPart {
    const u8* records;  // of the first panel's first group
    u64 panel_bytes;
    u32 record;         // bytes
    u32 codes_at;       // in a record
    u32 wide_scales;    // f32, else f16
    u32 offsets;        // whether records have them
};
static_assert(sizeof(PackedPart) == 32, "arguments.rs");

// A plain matrix [rows, cols], row-major.
struct PlainMatrix {
    const void* elements;
    u32 kind;  // 0: f32, 1: f16, 2: bf16
    u32 cols;
};
static_assert(sizeof(PlainMatrix) == 16, "arguments.rs");

// One element, widened.
DEVICE float plain_element(const PlainMatrix& matrix, u64 at) {
    if (matrix.kind == 0) return load_constant((const float*)matrix.elements + at);
    const u16 bits = load_constant((const u16*)matrix.elements + at);
    return matrix.kind == 1 ? half_to_float(bits) : from_bits((u32)bits << 16);
}

// What 4-bit codes stand for, for CODES == 1: 16 i8.
struct Table {
    u32 words[4];
};
static_assert(sizeof(Table) == 16, "arguments.rs");

// Rows in i8 by groups: quantize.cu.
struct QuantizedRows {
    const i8* codes;
    const float* scales;
    const int* sums;
    u64 groups;  // of a row
};
static_assert(sizeof(QuantizedRows) == 32, "arguments.rs");
