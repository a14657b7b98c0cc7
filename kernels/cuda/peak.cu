// peak_read, peak_multiply: what the device can do at most, measured on the spot. No operation: `gaterail-gpu-check` puts
// the experts' times beside them.
//
//   peak_read      words [n, 8 bytes]; out [blocks * 256] u32, the XOR of what each thread has read
//   peak_multiply  out [blocks * 256] i32, the sum of a chain of products of its own
//
// peak_read: any grid, block 256: the grid's threads stride over the words, four loads in flight each.
// peak_multiply: any grid, block 256: `rounds` rounds of 8 independent mma m16n8k32 per warp, 4,096 products each; the
//   operands change with the round, so that nothing can be taken out of the loop.
//
// Registers: peak_read 40; peak_multiply 96

#include "arithmetic.h"

struct PeakArgs {
    const uint2* words;
    u32* out;
    u64 count;  // of pairs of words
    u32 rounds;
    u32 padding;
};
static_assert(sizeof(PeakArgs) == 32, "arguments.rs");

KERNEL(256, 4) peak_read(PeakArgs args) {
    const u64 thread = (u64)blockIdx.x * 256 + threadIdx.x, threads = (u64)gridDim.x * 256;
    u32 seen = 0;
    for (u64 i = thread; i < args.count; i += 4 * threads) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u64 at = i + j * threads;
            if (at < args.count) {
                const uint2 word = load_constant(args.words + at);
                seen ^= word.x ^ word.y;
            }
        }
    }
    args.out[thread] = seen;
}

KERNEL(256, 2) peak_multiply(PeakArgs args) {
    int d[8][4] = {};
    for (u32 round = 0; round < args.rounds; round++) {
        const u32 a[4] = {round, threadIdx.x, round ^ 7, 3}, b[2] = {round + 1, threadIdx.x};
#pragma unroll
        for (int i = 0; i < 8; i++) mma_16_8_32(d[i], a, b);
    }
    int sum = 0;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) sum += d[i][j];
    args.out[(u64)blockIdx.x * 256 + threadIdx.x] = (u32)sum;
}
