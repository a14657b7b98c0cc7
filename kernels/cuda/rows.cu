// Small row-wise operations, as ops/elementwise.rs and ops/embed.rs: all on f32 [T, heads, n], rows and heads at strides.
//
//   rows_activation  to <- activation(to, from)                rows_copy    to <- from
//   rows_add         to <- to + from                           rows_gather  to[t] <- from[index[t]]
//   rows_add_gated   to <- to + sigmoid(scales[t]) * from      rows_embed   to[t] <- table[index[t]], widened
//   rows_clamp       to <- min(max(to, -limit), limit)         rows_scale   to <- to * scales[t]
//
//   scales  [T]  f32;  index [T]  u32: a row that `from` or the table does not have gives NaN
//
// Launch: grid (ceil(n / 256), heads, T), block 256. A thread owns an element; nobody synchronises. One launch each: what
// could be fused into a neighbour is a matter of measuring first.
//
// Registers: rows_ 32

#include "arithmetic.h"
#include "weights.h"

struct RowsArgs {
    float* to;
    const float* from;
    u64 to_row, to_head, from_row, from_head;
    const float* scales;
    const u32* index;
    PlainMatrix table;
    u32 width;
    u32 from_rows;  // of `from` or the table
    float limit;
    Activation activation;
    u32 padding[2];
};
static_assert(sizeof(RowsArgs) == 112, "arguments.rs");

// This thread's element; false if there is none.
DEVICE bool element_of(const RowsArgs& args, u32& column, u64& to) {
    column = blockIdx.x * 256 + threadIdx.x;
    to = blockIdx.z * args.to_row + blockIdx.y * args.to_head + column;
    return column < args.width;
}

// The element of `from` at the same place.
DEVICE float beside(const RowsArgs& args, u32 column) {
    return args.from[blockIdx.z * args.from_row + blockIdx.y * args.from_head + column];
}

KERNEL(256, 1) rows_activation(RowsArgs args) {
    u32 column;
    u64 to;
    if (element_of(args, column, to)) args.to[to] = activate(args.activation, args.to[to], beside(args, column));
}

KERNEL(256, 1) rows_add(RowsArgs args) {
    u32 column;
    u64 to;
    if (element_of(args, column, to)) args.to[to] = add_rn(args.to[to], beside(args, column));
}

KERNEL(256, 1) rows_add_gated(RowsArgs args) {
    u32 column;
    u64 to;
    if (!element_of(args, column, to)) return;
    const float scale = sigmoid_of(args.scales[blockIdx.z]);
    args.to[to] = add_rn(args.to[to], mul_rn(scale, beside(args, column)));
}

KERNEL(256, 1) rows_clamp(RowsArgs args) {
    u32 column;
    u64 to;
    if (!element_of(args, column, to)) return;
    float x = args.to[to];
    x = x > args.limit ? args.limit : x;
    args.to[to] = x < -args.limit ? -args.limit : x;
}

KERNEL(256, 1) rows_copy(RowsArgs args) {
    u32 column;
    u64 to;
    if (element_of(args, column, to)) args.to[to] = beside(args, column);
}

KERNEL(256, 1) rows_gather(RowsArgs args) {
    u32 column;
    u64 to;
    if (!element_of(args, column, to)) return;
    const u32 row = args.index[blockIdx.z];
    args.to[to] = row < args.from_rows ? args.from[row * args.from_row + column] : from_bits(0x7fc00000u);
}

KERNEL(256, 1) rows_embed(RowsArgs args) {
    u32 column;
    u64 to;
    if (!element_of(args, column, to)) return;
    const u32 row = args.index[blockIdx.z];
    args.to[to] =
        row < args.from_rows ? plain_element(args.table, (u64)row * args.table.cols + column) : from_bits(0x7fc00000u);
}

KERNEL(256, 1) rows_scale(RowsArgs args) {
    u32 column;
    u64 to;
    if (element_of(args, column, to)) args.to[to] = mul_rn(args.to[to], args.scales[blockIdx.z]);
}
