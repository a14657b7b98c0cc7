// Packed weights and quantised rows as the kernels are told of them: kernels/src/cuda/arguments.rs has the twins.
#pragma once

#include "intrinsics.h"

// Whole panels and whole groups of a packed matrix.
struct PackedPart {
    const u8* records;  // of the first panel's first group
    u64 panel_bytes;
};
static_assert(sizeof(PackedPart) == 16, "arguments.rs");

struct PackedForm {
    u32 table[4];     // 16 i8, for CODES == 1
    u32 wide_scales;  // f32, else f16
    u32 offsets;      // whether records have them
    u32 record;       // bytes
    u32 codes_at;     // in a record
};
static_assert(sizeof(PackedForm) == 32, "arguments.rs");

// Rows in i8 by groups: quantize.cu.
struct QuantizedRows {
    const i8* codes;
    const float* scales;
    const int* sums;
    u64 groups;  // of a row
};
static_assert(sizeof(QuantizedRows) == 32, "arguments.rs");
