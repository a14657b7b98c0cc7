// Functions of one value, by ARITHMETIC.md, 3, 6 and 7: the twins of cpu/math.rs and reference/.
#pragma once

#include "intrinsics.h"

DEVICE float power_of_two(int n) { return from_bits((u32)(n + 127) << 23); }

// e^x
DEVICE float exp_of(float x) {
    constexpr float LOG2E = 1.44269504f, LN2_HI = 0.693145752f, LN2_LO = 1.42860677e-6f;
    constexpr float ROUND = 12582912.0f, OVERFLOWS = 88.72284f, UNDERFLOWS = -104.0f;
    float clamped = x > UNDERFLOWS ? x : UNDERFLOWS;
    clamped = clamped < OVERFLOWS ? clamped : OVERFLOWS;
    const float n = add_rn(add_rn(mul_rn(clamped, LOG2E), ROUND), -ROUND);
    float r = fma_rn(n, -LN2_HI, clamped);
    r = fma_rn(n, -LN2_LO, r);
    float p = 1.0f / 5040.0f;
    p = fma_rn(p, r, 1.0f / 720.0f);
    p = fma_rn(p, r, 1.0f / 120.0f);
    p = fma_rn(p, r, 1.0f / 24.0f);
    p = fma_rn(p, r, 1.0f / 6.0f);
    p = fma_rn(p, r, 0.5f);
    p = fma_rn(p, r, 1.0f);
    p = fma_rn(p, r, 1.0f);
    const int whole = to_int(n), half = whole >> 1;
    float value = mul_rn(mul_rn(p, power_of_two(half)), power_of_two(whole - half));
    value = x > OVERFLOWS ? from_bits(0x7f800000u) : value;
    value = x < UNDERFLOWS ? 0.0f : value;
    return x == x ? value : x;
}

DEVICE float sigmoid_of(float x) { return div_rn(1.0f, add_rn(1.0f, exp_of(-x))); }

// The sum of 16 neighbouring lanes' values in the order of ARITHMETIC.md, 2, for all of them.
DEVICE float sum_of_16(float lane) {
    for (int lanes = 8; lanes > 0; lanes /= 2) lane = add_rn(lane, shuffle_xor(lane, lanes));
    return lane;
}

// What stands between gate | up and down. `clamped` chooses gpt-oss' form.
struct Activation {
    u32 clamped;
    float alpha;
    float limit;
};

DEVICE float activate(const Activation& kind, float gate, float up) {
    if (!kind.clamped) return mul_rn(div_rn(gate, add_rn(1.0f, exp_of(-gate))), up);
    gate = gate > kind.limit ? kind.limit : gate;
    up = up > kind.limit ? kind.limit : up;
    up = up < -kind.limit ? -kind.limit : up;
    const float sigmoid = div_rn(gate, add_rn(1.0f, exp_of(-mul_rn(gate, kind.alpha))));
    return mul_rn(add_rn(up, 1.0f), sigmoid);
}

// round_half_even(y * 2^B) of a term that fits: scaling by a power of two is exact in f32, so that one conversion
// rounds. Most terms take the 32-bit conversion, which is the fast one on every GPU.
DEVICE i64 fixed_point(float y, float two_to_b) {
    const float scaled_up = mul_rn(y, two_to_b);
    return abs_of(scaled_up) < 2147483648.0f ? (i64)to_int(scaled_up) : to_long(scaled_up);
}

// A warp quantises one group of a row: `value(i)` for i < length; codes of [length, G) become 0. Lane 0 writes the
// scale and the sum. All 32 lanes take part.
template <class Value>
DEVICE void quantize_group(int lane, int group, int length, Value value, i8* codes, float* scale, int* sum) {
    float x[4];
    u32 largest = 0;  // of the bits: NaN sorts above infinity, as it should
    for (int i = 0; i < 4; i++) {
        const int at = lane + 32 * i;
        x[i] = at < length ? value(at) : 0.0f;
        const u32 bits = bits_of(x[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const u32 other = (u32)shuffle_xor((int)largest, lanes);
        largest = other > largest ? other : largest;
    }
    const bool bad = largest >= 0x7f800000u;
    // The exponent of the largest, and one more where 127.5 steps would be rounded to 128.
    const u32 own = (largest + 0x10000u) >> 23, exponent = own > 127 - 100 ? own : 127 - 100;
    const float d = bad ? from_bits(0x7fc00000u) : from_bits((exponent - 6) << 23);
    const float r = from_bits((254 + 6 - exponent) << 23);
    int total = 0;
    for (int i = 0; i < 4; i++) {
        const int at = lane + 32 * i;
        if (at >= group) break;
        const int code = bad ? 0 : to_int(mul_rn(x[i], r));
        codes[at] = (i8)code;
        total += code;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) total += shuffle_xor(total, lanes);
    if (lane == 0) {
        *scale = d;
        *sum = total;
    }
}
