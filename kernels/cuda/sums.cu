// sums_add, sums_finish: what the partial sums of shards go through. ARITHMETIC.md, 6.
//
//   sums    [T, H]  i64, fixed point;  poison [T]  u32: not 0 where the row's sums mean nothing
//   from_*  the same of another shard: added to sums, and its flags to the flags
//   out     [T, H]  f32, rows `out_stride` elements apart: f32(f64(sum) * 2^-B), NaN in poisoned rows
//
// Launch: both grid (ceil(H / 256), T), block 256. A thread owns a (row, column); nobody synchronises. Reading and
// writing once is all there is to do.
//
// Registers: sums_add 32; sums_finish 32

#include "arithmetic.h"

struct SumsArgs {
    i64* sums;
    u32* poison;
    const i64* from_sums;
    const u32* from_poison;
    float* out;
    u64 out_stride;
    double unit;  // 2^-B
    u32 width;    // H
    u32 padding;
};
static_assert(sizeof(SumsArgs) == 64, "arguments.rs");

KERNEL(256, 1) sums_add(SumsArgs args) {
    const u32 column = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    if (column >= args.width) return;
    const u64 at = (u64)row * args.width + column;
    // Sums of poisoned rows may be anything, and wrap.
    args.sums[at] = (i64)((u64)args.sums[at] + (u64)args.from_sums[at]);
    if (column == 0) args.poison[row] |= args.from_poison[row];
}

KERNEL(256, 1) sums_finish(SumsArgs args) {
    const u32 column = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    if (column >= args.width) return;
    const float value = scaled(args.sums[(u64)row * args.width + column], args.unit);
    args.out[row * args.out_stride + column] = args.poison[row] ? from_bits(0x7fc00000u) : value;
}
