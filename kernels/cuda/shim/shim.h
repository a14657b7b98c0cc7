// What the kernels see of the shim: the language's missing words, and the functions of intrinsics.h on the CPU.
//
// One fiber per CUDA thread; the scheduler lives in shim.cpp. Included by intrinsics.h only.
#pragma once

#include <cstdint>
#include <cstring>

#define DEVICE static inline
#define DEVICE_MEMBER
#define KERNEL(threads, blocks) extern "C" void

struct uint2 {
    alignas(8) unsigned x;
    unsigned y;
};
struct uint3 {
    unsigned x, y, z;
};
using dim3 = uint3;

// Set by the scheduler whenever a fiber runs.
extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

namespace shim {

// The place in a kernel from which a collective was called.
struct Site {
    const char* file;
    int line;
};

enum class Collective { SyncWarp, Shuffle, Vote, Mma };

// Waits until the lanes of `mask` have come with the same call. Each lane hands over `in` and gets `out`, in words.
void rendezvous(Collective kind, Site site, u32 mask, const u32* in, int words_in, u32* out, int words_out);
void barrier(Site site);
u8* shared_memory();
void copy_async(void* to, const void* from, int bytes, Site site);
void copy_async_commit();
void copy_async_wait(int pending);

}  // namespace shim

#define SHIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

DEVICE u8* shared_memory() { return shim::shared_memory(); }
DEVICE void sync_threads(SHIM_SITE) { shim::barrier({file, line}); }
DEVICE void sync_warp(u32 mask = FULL_WARP, SHIM_SITE) {
    shim::rendezvous(shim::Collective::SyncWarp, {file, line}, mask, nullptr, 0, nullptr, 0);
}
DEVICE u32 shim_shuffle(u32 value, int lanes, u32 mask, const char* file, int line) {
    u32 in[2] = {value, (u32)lanes}, out = 0;
    shim::rendezvous(shim::Collective::Shuffle, {file, line}, mask, in, 2, &out, 1);
    return out;
}
DEVICE int shuffle_xor(int value, int lanes, u32 mask = FULL_WARP, SHIM_SITE) {
    return (int)shim_shuffle((u32)value, lanes, mask, file, line);
}
DEVICE float shuffle_xor(float value, int lanes, u32 mask = FULL_WARP, SHIM_SITE) {
    u32 bits;
    memcpy(&bits, &value, 4);
    bits = shim_shuffle(bits, lanes, mask, file, line);
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE u32 vote(bool value, u32 mask = FULL_WARP, SHIM_SITE) {
    u32 in = value, out = 0;
    shim::rendezvous(shim::Collective::Vote, {file, line}, mask, &in, 1, &out, 1);
    return out;
}
DEVICE int count_bits(u32 value) { return __builtin_popcount(value); }

DEVICE u32 pick_bytes(u32 low, u32 high, u32 select) {
    const u64 bytes = (u64)high << 32 | low;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
        const u32 nibble = select >> (4 * i) & 15;
        u32 byte = (u32)(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;  // the instruction repeats the sign
        out |= byte << (8 * i);
    }
    return out;
}

DEVICE int dot4(u32 a, u32 b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int)(i8)(a >> (8 * i)) * (int)(i8)(b >> (8 * i));
    return sum;
}

DEVICE void mma_16_8_32(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SHIM_SITE) {
    u32 in[10];
    memcpy(in, a, 16);
    memcpy(in + 4, b, 8);
    memcpy(in + 6, d, 16);
    shim::rendezvous(shim::Collective::Mma, {file, line}, FULL_WARP, in, 10, (u32*)d, 4);
}

DEVICE void copy_async_16(void* to, const void* from, SHIM_SITE) { shim::copy_async(to, from, 16, {file, line}); }
DEVICE void copy_async_4(void* to, const void* from, SHIM_SITE) { shim::copy_async(to, from, 4, {file, line}); }
DEVICE void copy_async_commit() { shim::copy_async_commit(); }
template <int PENDING>
DEVICE void copy_async_wait() {
    shim::copy_async_wait(PENDING);
}

template <class T>
DEVICE T load_constant(const T* from) {
    return *from;
}

// Fibers of a launch share one thread of the machine.
DEVICE void atomic_or(u32* to, u32 bits) { *to |= bits; }
DEVICE void atomic_add_shared(u32* to, u32 value) { *to += value; }

DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float div_rn(float a, float b) { return a / b; }
DEVICE float sqrt_rn(float a) { return __builtin_sqrtf(a); }
DEVICE float abs_of(float a) { return __builtin_fabsf(a); }
DEVICE u32 bits_of(float a) {
    u32 bits;
    memcpy(&bits, &a, 4);
    return bits;
}
DEVICE float from_bits(u32 bits) {
    float a;
    memcpy(&a, &bits, 4);
    return a;
}
// The GPU's conversions saturate, and give 0 (i32) or the least integer (i64) for NaN.
DEVICE int to_int(float a) {
    if (!(a == a)) return 0;
    if (a >= 2147483648.0f) return 0x7fffffff;
    if (a < -2147483648.0f) return -0x7fffffff - 1;
    return (int)__builtin_rintf(a);
}
DEVICE i64 to_long(float a) {
    if (!(a == a) || a < -9223372036854775808.0f) return -0x7fffffffffffffffLL - 1;
    if (a >= 9223372036854775808.0f) return 0x7fffffffffffffffLL;
    return (i64)__builtin_rintf(a);
}
DEVICE float to_float(int a) { return (float)a; }
DEVICE float half_to_float(u16 a) {
    const u32 sign = (u32)(a >> 15) << 31, exponent = a >> 10 & 31, mantissa = a & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        const float value = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -value : value;
    }
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}
DEVICE u16 float_to_half(float a) {
    const u32 bits = bits_of(a), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return (u16)(sign | 0x7c00u);  // 65520 and more
    if (magnitude < 0x38800000u) {                               // less than 2^-14: a multiple of 2^-24
        return (u16)(sign | (u32)__builtin_rintf(abs_of(a) * 16777216.0f));
    }
    const u32 rounded = (magnitude + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    return (u16)(sign | (rounded - (112u << 10)));
}
DEVICE float scaled(i64 a, double scale) { return (float)((double)a * scale); }
