// quantize: rows of f32 as i8 with a scale and a sum per group. ARITHMETIC.md, 7.
//
//   x       [T, n]  f32, rows `x_stride` elements apart
//   codes   [T, ceil(n / G) * G]  i8; columns from n on are 0
//   scales  [T, ceil(n / G)]  f32
//   sums    [T, ceil(n / G)]  i32
//
// Launch: grid (ceil(groups / 8), T), block 256. A warp owns a group; nobody synchronises but the lanes of a warp.
// One warp per group and not per row: at one token the rows are few, and the groups of a row are what fills the GPU.
//
//
// Registers: quantize 40

#include "arithmetic.h"

struct QuantizeArgs {
    const float* x;
    i8* codes;
    float* scales;
    int* sums;
    u64 x_stride;
    u32 width;
    u32 group;
};
static_assert(sizeof(QuantizeArgs) == 48, "arguments.rs");

KERNEL(256, 1) quantize(QuantizeArgs args) {
    const int lane = threadIdx.x % 32;
    const u32 groups = (args.width + args.group - 1) / args.group;
    const u32 group = blockIdx.x * 8 + threadIdx.x / 32, row = blockIdx.y;
    if (group >= groups) return;
    const float* x = args.x + row * args.x_stride + group * args.group;
    const u32 left = args.width - group * args.group, length = left < args.group ? left : args.group;
    const u64 at = (u64)row * groups + group;
    quantize_group(
        lane, args.group, length, [x](int i) { return x[i]; }, args.codes + at * args.group, args.scales + at,
        args.sums + at);
}
