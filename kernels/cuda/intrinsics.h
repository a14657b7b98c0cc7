// Every instruction that C++ has no word for, behind a function: real for a GPU, emulated in the shim.
//
// Rules for the kernels, which the shim enforces or relies on:
// * shared memory is dynamic only, through `shared_memory()`; the shim poisons it before each block;
// * all 32 lanes of a warp take part in a collective, and all threads of a block in a barrier, unless a mask says so;
// * no thread leaves before its block's last barrier;
// * arithmetic that rounds is written with the names below: nothing is contracted, nothing is flushed to zero.
#pragma once

using u8 = unsigned char;
using i8 = signed char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr u32 FULL_WARP = 0xffffffffu;

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
// A kernel with the most threads of a block and the least blocks of a multiprocessor that its registers must allow.
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)

DEVICE u8* shared_memory() {
    extern __shared__ __align__(16) u8 shared_bytes[];
    return shared_bytes;
}

DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp(u32 mask = FULL_WARP) { __syncwarp(mask); }
DEVICE int shuffle_xor(int value, int lanes, u32 mask = FULL_WARP) { return __shfl_xor_sync(mask, value, lanes); }
DEVICE float shuffle_xor(float value, int lanes, u32 mask = FULL_WARP) { return __shfl_xor_sync(mask, value, lanes); }
DEVICE u32 vote(bool value, u32 mask = FULL_WARP) { return __ballot_sync(mask, value); }
DEVICE int count_bits(u32 value) { return __popc(value); }

// The bytes of (high, low) that the four low nibbles of `select` name; bit 3 of a nibble must be 0.
DEVICE u32 pick_bytes(u32 low, u32 high, u32 select) {
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(select));
    return out;
}

// sum + the dot product of four i8 with four i8.
DEVICE int dot4(u32 a, u32 b, int sum) { return __dp4a((int)a, (int)b, sum); }

// d += A[16 x 32] * B[32 x 8], i8 into i32. With g = lane / 4 and t = lane % 4, byte i of a register lowest first:
//   a[0] = A[g][4t + i]   a[1] = A[g + 8][4t + i]   a[2] = A[g][16 + 4t + i]   a[3] = A[g + 8][16 + 4t + i]
//   b[0] = B[4t + i][g]   b[1] = B[16 + 4t + i][g]
//   d[0] = D[g][2t]       d[1] = D[g][2t + 1]       d[2] = D[g + 8][2t]        d[3] = D[g + 8][2t + 1]
DEVICE void mma_16_8_32(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies into shared memory that have landed only after the wait for their group (and a barrier, for other threads).
DEVICE void copy_async_16(void* to_shared, const void* from) {
    u32 to = (u32)__cvta_generic_to_shared(to_shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_async_4(void* to_shared, const void* from) {
    u32 to = (u32)__cvta_generic_to_shared(to_shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
// Ends the group of this thread's copies.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups of this thread but the latest `PENDING`.
template <int PENDING>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Words that no one writes while the kernel runs.
DEVICE u32 load_constant(const u32* from) { return __ldg(from); }
DEVICE u16 load_constant(const u16* from) { return __ldg(from); }
DEVICE int load_constant(const int* from) { return __ldg(from); }
DEVICE float load_constant(const float* from) { return __ldg(from); }
DEVICE uint2 load_constant(const uint2* from) { return __ldg(from); }

DEVICE void atomic_or(u32* to, u32 bits) { atomicOr(to, bits); }
DEVICE void atomic_add_shared(u32* to, u32 value) { atomicAdd(to, value); }

DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float sqrt_rn(float a) { return __fsqrt_rn(a); }
DEVICE float abs_of(float a) { return __uint_as_float(__float_as_uint(a) & 0x7fffffffu); }
DEVICE u32 bits_of(float a) { return __float_as_uint(a); }
DEVICE float from_bits(u32 a) { return __uint_as_float(a); }
// Rounded half to even; for integers of less than 24 bits the way back is exact.
DEVICE int to_int(float a) { return __float2int_rn(a); }
DEVICE i64 to_long(float a) { return __float2ll_rn(a); }
DEVICE float to_float(int a) { return __int2float_rn(a); }
DEVICE float half_to_float(u16 a) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(a));
    return out;
}
// Rounded half to even, subnormals included.
DEVICE u16 float_to_half(float a) {
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(a));
    return out;
}
// f32(f64(a) * scale)
DEVICE float scaled(i64 a, double scale) { return __double2float_rn(__dmul_rn(__ll2double_rn(a), scale)); }

#else
#include "shim/shim.h"
#endif
