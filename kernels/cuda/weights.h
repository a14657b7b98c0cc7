// Packed weights and quantised rows as the kernels are told of them: kernels/src/cuda/arguments.rs has the twins.
#pragma once

#include "intrinsics.h"

// Whole panels and whole groups of a packed matrix.
struct PackedPart {
    const u8* codes;    // of the first panel's first group
    const u8* scales;
    const u8* offsets;  // null in forms without
    u64 panel_bytes;
};
static_assert(sizeof(PackedPart) == 32, "arguments.rs");

struct PackedForm {
    u32 table[4];     // 16 i8, for CODES == 1
    u32 wide_scales;  // f32, else f16
    u32 padding;
};
static_assert(sizeof(PackedForm) == 24, "arguments.rs");

// Rows in i8 by groups: quantize.cu.
struct QuantizedRows {
    const i8* codes;
    const float* scales;
    const int* sums;
    u64 groups;  // of a row
};
static_assert(sizeof(QuantizedRows) == 32, "arguments.rs");
