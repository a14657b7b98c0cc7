// What the kernels of the operation `experts` share: ops/experts.rs on a GPU. ARITHMETIC.md, 6 to 8.
//
//   x        [T, H]  quantised in the groups of gate and up: quantize.cu
//   ids      [T, K]  u32, distinct within a row (a row that names an expert twice is poisoned)
//   weights  [T, K]  f32
//   pieces   [P]  runs of canonical units of experts; one CODES, GROUP and table of all gate and up, and one of all down
//   sums     [T, H]  i64, to which the pieces' terms are added;  poison [T] u32
//
// Four launches, all with grids that do not depend on the routing, so that a graph may hold them:
//
//   experts_plan      which rows choose which piece, on the device            experts_plan.cu
//   experts_gate_up   gate, up, bias, activation, quantised for down          experts_gate_up.cu
//   experts_down      down, unit by unit, into fixed point                    experts_down.cu
//   experts_sum       (many rows only) a row's terms into its sums            experts_plan.cu
//
// A (row, choice) pair is `t * K + k`. A piece's pairs lie one after the other, in ascending order; their places in that
// order over all pieces are `slots`. Work is cut into tiles of at most `tile_tokens` slots of one piece.
#pragma once

#include "arithmetic.h"
#include "weights.h"

struct ExpertPiece {
    PackedPart gate;  // [f, H]
    PackedPart up;    // [f, H]
    PackedPart down;  // [H, f]
    const float* gate_bias;  // [f], or null
    const float* up_bias;    // [f], or null
    const float* down_bias;  // [H] in the piece that holds unit 0; else null
    u32 expert;
    u32 width;  // f
};
static_assert(sizeof(ExpertPiece) == 128, "arguments.rs");

// Up to `tile_tokens` slots of one piece.
struct ExpertTile {
    u32 piece;
    u32 slot;
    u32 count;
    u32 padding;
};
static_assert(sizeof(ExpertTile) == 16, "arguments.rs");

struct ExpertsArgs {
    const ExpertPiece* pieces;  // [P], in ascending order of experts
    const u32* ids;
    const float* weights;
    QuantizedRows x;
    u32* pairs;         // [slots]: the pair of a slot
    int* slots;         // [T * K, copies]: the slots of a pair, -1 where there is none
    ExpertTile* tiles;  // [tile_limit]
    u32* tile_count;    // [1]
    i8* hidden_codes;   // [slots, hidden_groups * G of down]
    float* hidden_scales;  // [slots, hidden_groups]
    int* hidden_sums;      // [slots, hidden_groups]
    i64* terms;            // [slots, term_columns], many rows only
    i64* sums;
    u32* poison;
    Table inner_table;
    Table down_table;
    u32 piece_count;
    u32 experts;  // ids from here on have no piece
    u32 tokens;
    u32 top_k;
    u32 copies;  // the most pieces of one expert
    u32 width;   // H
    u32 inner_groups;
    u32 hidden_groups;
    u32 hidden_group;
    u32 widest;  // of the pieces' f
    u32 unit_groups;
    u32 tile_tokens;
    u32 first_column;  // of `terms`
    u32 term_columns;
    Activation activation;
    u32 weight_on_input;
    float two_to_b;
    float limit;  // 2^(51 - B)
};
static_assert(sizeof(ExpertsArgs) == 248, "arguments.rs");

// One term on its way into a sum; poisons its row if it does not fit.
DEVICE i64 term(const ExpertsArgs& args, float y, u32 row) {
    if (abs_of(y) < args.limit) return fixed_point(y, args.two_to_b);
    atomic_or(args.poison + row, 1);
    return 0;
}
