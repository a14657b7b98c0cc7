// linear: out[t, n] = dot(x[t], W[n]) + bias[n], with W plain. ARITHMETIC.md, 2.
//
//   x     [T, K]  f32, rows `x_stride` elements apart
//   W     [N, K]  f32, f16 or bf16, row-major
//   bias  [N]  f32, or null
//   out   [T, N]  f32, rows `out_stride` elements apart
//
// Launch: grid (ceil(N / 16), ceil(T / 8)), block 256. Sixteen lanes own a row of W, each one of the 16 chains, and go
// through it once for up to eight rows of x; four shuffles add the chains. Nobody synchronises but the lanes of a warp.
// It is the plain form: gates and other small matrices that keep their precision. A lane reads 2 or 4 bytes at a time,
// 64 bytes of a row of W together, so that large matrices are far from the memory's bandwidth.
//
// Registers: linear 96

#include "arithmetic.h"
#include "weights.h"

struct LinearArgs {
    const float* x;
    PlainMatrix weights;
    const float* bias;
    float* out;
    u64 x_stride, out_stride;
    u32 tokens;
    u32 rows;
};
static_assert(sizeof(LinearArgs) == 64, "arguments.rs");

constexpr int LINEAR_TOKENS = 8;

KERNEL(256, 2) linear(LinearArgs args) {
    const u32 lane = threadIdx.x % 16, row = blockIdx.x * 16 + threadIdx.x / 16;
    const u32 first = blockIdx.y * LINEAR_TOKENS, left = args.tokens - first, width = args.weights.cols;
    const u32 count = left < LINEAR_TOKENS ? left : LINEAR_TOKENS;
    const float* x = args.x + first * args.x_stride;
    float acc[LINEAR_TOKENS];
#pragma unroll
    for (int t = 0; t < LINEAR_TOKENS; t++) acc[t] = 0.0f;
    if (row < args.rows)
        for (u32 i = lane; i < width; i += 16) {
            const float w = plain_element(args.weights, (u64)row * width + i);
#pragma unroll
            for (u32 t = 0; t < LINEAR_TOKENS; t++)
                if (t < count) acc[t] = fma_rn(x[t * args.x_stride + i], w, acc[t]);
        }
#pragma unroll
    for (u32 t = 0; t < LINEAR_TOKENS; t++) {
        float y = sum_of_16(acc[t]);
        if (lane != 0 || row >= args.rows || t >= count) continue;
        if (args.bias) y = add_rn(y, args.bias[row]);
        args.out[(first + t) * args.out_stride + row] = y;
    }
}
