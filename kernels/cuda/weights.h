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
