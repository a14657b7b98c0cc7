// Kernels with one fault each, and right ones beside them: what the shim must catch, and must not.

#include "launch.h"

#include "../arithmetic.h"

namespace {

struct TestArgs {
    const u8* in;
    u8* out;
};

// out[i] = in[(i + 32) % 256], through shared memory: 256 threads, 1 KiB.
DEVICE void rotate(TestArgs args, bool with_barrier) {
    int* shared = (int*)shared_memory();
    shared[threadIdx.x] = ((const int*)args.in)[threadIdx.x];
    if (with_barrier) sync_threads();
    ((int*)args.out)[threadIdx.x] = shared[(threadIdx.x + 32) % 256];
}
KERNEL(256, 1) test_barrier(TestArgs args) { rotate(args, true); }
KERNEL(256, 1) test_barrier_missing(TestArgs args) { rotate(args, false); }

// One thread goes home before the barrier.
KERNEL(256, 1) test_barrier_left(TestArgs) {
    if (threadIdx.x == 77) return;
    sync_threads();
}

// Half of the block waits in another barrier than the other half.
KERNEL(256, 1) test_barrier_apart(TestArgs) {
    if (threadIdx.x < 128) {
        sync_threads();
    } else {
        sync_threads();
    }
}

// Lane 5 does not come to the shuffle.
KERNEL(32, 1) test_shuffle_divergent(TestArgs args) {
    if (threadIdx.x == 5) {
        sync_warp();
        return;
    }
    ((int*)args.out)[threadIdx.x] = shuffle_xor((int)threadIdx.x, 1);
}

// Even lanes exchange among themselves, and odd ones.
KERNEL(32, 1) test_shuffle_masks(TestArgs args) {
    const u32 mask = threadIdx.x % 2 ? 0xaaaaaaaau : 0x55555555u;
    int value = shuffle_xor((int)threadIdx.x, 2, mask);
    value = value * 1000 + (int)(vote(threadIdx.x < 4, mask) & 0xff);
    ((int*)args.out)[threadIdx.x] = value;
}

// 4 KiB in sixteen copies a warp, two groups: `waits` of 2, 1 or 0 groups, and barriers or none.
template <int PENDING>
DEVICE void copies(TestArgs args, bool with_wait, bool with_barrier) {
    u8* shared = shared_memory();
    const int at = threadIdx.x * 16;
    copy_async_16(shared + at, args.in + at);
    copy_async_commit();
    copy_async_16(shared + 4096 + at, args.in + 4096 + at);
    copy_async_commit();
    if (with_wait) copy_async_wait<PENDING>();
    if (with_barrier) sync_threads();
    const int other = (at + 4096 - 16 * 40) % 4096;
    memcpy(args.out + at, shared + other, 16);
    memcpy(args.out + 4096 + at, shared + 4096 + other, 16);
}
KERNEL(256, 1) test_copies(TestArgs args) { copies<0>(args, true, true); }
KERNEL(256, 1) test_copies_no_wait(TestArgs args) { copies<0>(args, false, true); }
KERNEL(256, 1) test_copies_short_wait(TestArgs args) { copies<1>(args, true, true); }
KERNEL(256, 1) test_copies_no_barrier(TestArgs args) { copies<0>(args, true, false); }

// A ring of one stage that is refilled before all have read it: 64 threads, four rounds of 256 bytes.
DEVICE void ring(TestArgs args, bool with_barrier) {
    u8* shared = shared_memory();
    for (int round = 0; round < 4; round++) {
        copy_async_4(shared + threadIdx.x * 4, args.in + round * 256 + threadIdx.x * 4);
        copy_async_commit();
        copy_async_wait<0>();
        sync_threads();
        const int other = (threadIdx.x + 33) % 64;
        memcpy(args.out + round * 256 + threadIdx.x * 4, shared + other * 4, 4);
        if (with_barrier) sync_threads();
    }
}
KERNEL(64, 1) test_ring(TestArgs args) { ring(args, true); }
KERNEL(64, 1) test_ring_refilled(TestArgs args) { ring(args, false); }

// Writes one word behind what was asked for.
KERNEL(32, 1) test_shared_overrun(TestArgs) { ((int*)shared_memory())[32 + threadIdx.x / 31] = 1; }

// A copy that ends one word behind.
KERNEL(32, 1) test_copy_overrun(TestArgs args) {
    copy_async_4(shared_memory() + 4 + threadIdx.x * 4, args.in + threadIdx.x * 4);
}

// Shared memory as a block finds it.
KERNEL(32, 1) test_poison(TestArgs args) {
    ((int*)args.out)[threadIdx.x] = ((const int*)shared_memory())[threadIdx.x];
    ((int*)shared_memory())[threadIdx.x] = 0;
}

// D[16][8] i32 += A[16][32] i8 * B[32][8] i8, all row by row: in = A then B, out = D.
KERNEL(32, 1) test_mma(TestArgs args) {
    const u8 *a_in = args.in, *b_in = args.in + 512;
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    u32 a[4], b[2];
    int d[4];
    for (int i = 0; i < 4; i++) memcpy(&a[i], a_in + (g + i % 2 * 8) * 32 + i / 2 * 16 + 4 * t, 4);
    for (int i = 0; i < 2; i++) {
        b[i] = 0;
        for (int j = 0; j < 4; j++) b[i] |= (u32)b_in[(16 * i + 4 * t + j) * 8 + g] << (8 * j);
    }
    int* out = (int*)args.out;
    for (int i = 0; i < 4; i++) d[i] = out[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    mma_16_8_32(d, a, b);
    for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// in = (a, b, c) words by thread; out = pick_bytes, dot4.
KERNEL(32, 1) test_words(TestArgs args) {
    const u32* in = (const u32*)args.in + 3 * threadIdx.x;
    u32* out = (u32*)args.out + 2 * threadIdx.x;
    out[0] = pick_bytes(in[0], in[1], in[2] & 0x7777);
    out[1] = (u32)dot4(in[0], in[1], (int)in[2]);
}

// in = 65,536 halves; out = their values.
KERNEL(256, 1) test_halves(TestArgs args) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    ((float*)args.out)[i] = half_to_float(((const u16*)args.in)[i]);
}

}  // namespace

void shim_announce_wrong() {
    SHIM_ANNOUNCE(test_barrier);
    SHIM_ANNOUNCE(test_barrier_missing);
    SHIM_ANNOUNCE(test_barrier_left);
    SHIM_ANNOUNCE(test_barrier_apart);
    SHIM_ANNOUNCE(test_shuffle_divergent);
    SHIM_ANNOUNCE(test_shuffle_masks);
    SHIM_ANNOUNCE(test_copies);
    SHIM_ANNOUNCE(test_copies_no_wait);
    SHIM_ANNOUNCE(test_copies_short_wait);
    SHIM_ANNOUNCE(test_copies_no_barrier);
    SHIM_ANNOUNCE(test_ring);
    SHIM_ANNOUNCE(test_ring_refilled);
    SHIM_ANNOUNCE(test_shared_overrun);
    SHIM_ANNOUNCE(test_copy_overrun);
    SHIM_ANNOUNCE(test_poison);
    SHIM_ANNOUNCE(test_mma);
    SHIM_ANNOUNCE(test_words);
    SHIM_ANNOUNCE(test_halves);
}
