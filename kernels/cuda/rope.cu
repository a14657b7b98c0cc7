// rope: rotates the first 2R columns of every (row, head) in place. ARITHMETIC.md, 3.
//
//   x         [T, heads, 2R]  f32, rows and heads at strides
//   cos, sin  [T, R]  f32, made on the host (ARITHMETIC.md, 10)
//
// Launch: grid (heads, T), block 128. A thread owns a pair, which nobody else reads.
//
// Registers: rope 40

#include "arithmetic.h"

struct RopeArgs {
    float* x;
    const float* cos;
    const float* sin;
    u64 x_row, x_head;
    u32 half;
    // Pair i is (2i, 2i + 1), not (i, i + R).
    u32 pairs;
};
static_assert(sizeof(RopeArgs) == 48, "arguments.rs");

KERNEL(128, 1) rope(RopeArgs args) {
    float* x = args.x + blockIdx.y * args.x_row + blockIdx.x * args.x_head;
    for (u32 i = threadIdx.x; i < args.half; i += 128) {
        const u32 a = args.pairs ? 2 * i : i, b = args.pairs ? 2 * i + 1 : i + args.half;
        const float cos = args.cos[blockIdx.y * args.half + i], sin = args.sin[blockIdx.y * args.half + i];
        const float xa = x[a], xb = x[b];
        x[a] = fma_rn(xa, cos, -mul_rn(xb, sin));
        x[b] = fma_rn(xb, cos, mul_rn(xa, sin));
    }
}
