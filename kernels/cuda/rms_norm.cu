// rms_norm: y = (x * (1 / sqrt(dot(x, x) / n + eps))) * w over the n columns of every (row, head). ARITHMETIC.md, 3.
//
//   x  [T, heads, n]  f32, rows and heads at strides
//   w  [n]  f32, or null: y = x * r
//   y  [T, heads, n]  f32, rows and heads at strides; may be x
//
// Launch: grid (heads, T), block 256, shared 4 * (n + 4) bytes. A block owns a (row, head): it brings the row into
// shared memory, its first 16 lanes run the 16 chains of ARITHMETIC.md, 2, and a barrier hands over the factor.
// The chains fix the order of summation, so that sixteen lanes are all that can work on a sum; a row of 4,096 takes 256
// dependent FMAs, about a microsecond.
//
// Registers: rms_norm 40

#include "arithmetic.h"

struct RmsNormArgs {
    const float* x;
    const float* weight;
    float* out;
    u64 x_row, x_head, out_row, out_head;
    u32 width;
    float eps;
};
static_assert(sizeof(RmsNormArgs) == 64, "arguments.rs");

KERNEL(256, 1) rms_norm(RmsNormArgs args) {
    float* factor = (float*)shared_memory();
    float* row = factor + 4;
    const float* x = args.x + blockIdx.y * args.x_row + blockIdx.x * args.x_head;
    float* out = args.out + blockIdx.y * args.out_row + blockIdx.x * args.out_head;
    for (u32 i = threadIdx.x; i < args.width; i += 256) row[i] = x[i];
    sync_threads();
    if (threadIdx.x < 32) {
        float lane = 0.0f;
        if (threadIdx.x < 16)
            for (u32 i = threadIdx.x; i < args.width; i += 16) lane = fma_rn(row[i], row[i], lane);
        const float mean = div_rn(sum_of_16(lane), to_float((int)args.width));
        if (threadIdx.x == 0) *factor = div_rn(1.0f, sqrt_rn(add_rn(mean, args.eps)));
    }
    sync_threads();
    const float r = *factor;
    for (u32 i = threadIdx.x; i < args.width; i += 256) {
        const float y = mul_rn(row[i], r);
        out[i] = args.weight ? mul_rn(y, args.weight[i]) : y;
    }
}
