//! Integer products of a group with AVX-512 (VNNI) and with AVX2.

#![allow(clippy::undocumented_unsafe_blocks)] // as the trait says: extents by the caller, instructions by `by_isa!`
#![allow(clippy::needless_range_loop)] // rows by number, over several arrays at once

use super::PEAK_CHAINS;
use super::form::{Decode, Form, INT8, PLAIN4};
use super::tile::{IntLanes, SMALL};
use crate::cpu::lanes::LANES;
use crate::cpu::lanes::x86::{Avx2, Avx512};
use crate::packed::LINE;
use std::arch::x86_64::*;

impl IntLanes for Avx512 {
    type Int = __m512i;
    /// Unsigned codes: the bias times the row's sum is taken off at the start.
    #[inline(always)]
    unsafe fn group<F: Form, const T: usize>(
        codes: *const u8,
        lines: usize,
        decode: &Decode,
        x: *const i8,
        starts: *const i32,
    ) -> [__m512i; T] {
        unsafe {
            let mut acc = [_mm512_setzero_si512(); T];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_set1_epi32(*starts.add(t));
            }
            let group = lines * if F::KIND == INT8 { 4 } else { 8 };
            let low = _mm512_set1_epi8(15);
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(decode.table.as_ptr() as *const __m128i));
            for line in 0..lines {
                let v = _mm512_loadu_si512(codes.add(line * LINE) as *const __m512i);
                if F::KIND == INT8 {
                    for t in 0..T {
                        acc[t] = _mm512_dpbusd_epi32(acc[t], v, four(x.add(t * group + 4 * line)));
                    }
                    continue;
                }
                let (mut a, mut b) =
                    (_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
                if F::KIND != PLAIN4 {
                    (a, b) = (_mm512_shuffle_epi8(table, a), _mm512_shuffle_epi8(table, b));
                }
                for t in 0..T {
                    acc[t] = _mm512_dpbusd_epi32(acc[t], a, four(x.add(t * group + 8 * line)));
                }
                for t in 0..T {
                    acc[t] = _mm512_dpbusd_epi32(acc[t], b, four(x.add(t * group + 8 * line + 4)));
                }
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn peak(line: *const u8, rounds: usize) {
        unsafe {
            let v = _mm512_loadu_si512(line as *const __m512i);
            let mut acc = [_mm512_setzero_si512(); PEAK_CHAINS];
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = _mm512_dpbusd_epi32(*acc, v, v);
                }
            }
            std::hint::black_box(acc);
        }
    }
    #[inline(always)]
    unsafe fn to_f32(int: __m512i) -> Self {
        unsafe { Avx512(_mm512_cvtepi32_ps(int)) }
    }
    #[inline(always)]
    unsafe fn times_power(self, d: f32) -> Self {
        // The product, bit for bit, and not on the pipes that the integer products are waiting for.
        unsafe { Avx512(_mm512_scalef_ps(self.0, _mm512_getexp_ps(_mm512_set1_ps(d)))) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn add_rounded(
        y: *const [f32; LANES],
        step: usize,
        count: usize,
        scale: f32,
        sums: &mut [i64; LANES],
    ) -> bool {
        unsafe {
            let (scale, mask) = (_mm512_set1_ps(scale), _mm512_set1_epi32(i32::MAX));
            let (mut sum, mut most) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for i in 0..count {
                let y = _mm512_mul_ps(_mm512_loadu_ps(y.add(i * step) as *const f32), scale);
                // As integers magnitudes order like the values, NaN on top.
                most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(y), mask));
                sum = _mm512_add_epi32(sum, _mm512_cvtps_epi32(y));
            }
            let small = _mm512_cmplt_epu32_mask(most, _mm512_set1_epi32(SMALL.to_bits() as i32)) == u16::MAX;
            if small {
                let halves = [_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum)];
                for (half, sums) in halves.into_iter().zip(sums.as_chunks_mut::<8>().0) {
                    let at = sums.as_mut_ptr() as *mut __m512i;
                    let total = _mm512_add_epi64(_mm512_loadu_si512(at), _mm512_cvtepi32_epi64(half));
                    _mm512_storeu_si512(at, total);
                }
            }
            small
        }
    }
}

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m512i {
    unsafe { _mm512_set1_epi32((x as *const i32).read_unaligned()) }
}

impl IntLanes for Avx2 {
    type Int = (__m256i, __m256i);
    #[inline(always)]
    unsafe fn group<F: Form, const T: usize>(
        codes: *const u8,
        lines: usize,
        decode: &Decode,
        x: *const i8,
        starts: *const i32,
    ) -> [Self::Int; T] {
        unsafe {
            match F::KIND {
                PLAIN4 => plain4::<T>(codes, lines, x, starts),
                _ => signed::<F, T>(codes, lines, decode, x),
            }
        }
    }
    #[inline(always)]
    unsafe fn peak(line: *const u8, rounds: usize) {
        unsafe {
            let v = _mm256_loadu_si256(line as *const __m256i);
            // Half a line each; as in `plain4`, eight products of pairs share the steps to i32.
            let mut acc = [_mm256_setzero_si256(); 4];
            for _ in 0..rounds {
                for acc in &mut acc {
                    let mut pairs = _mm256_setzero_si256();
                    for _ in 0..2 * PEAK_CHAINS / 4 {
                        let x = std::hint::black_box(v);
                        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(v, x));
                    }
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, v));
                }
            }
            std::hint::black_box(acc);
        }
    }
    #[inline(always)]
    unsafe fn to_f32(int: Self::Int) -> Self {
        unsafe { Avx2(_mm256_cvtepi32_ps(int.0), _mm256_cvtepi32_ps(int.1)) }
    }
    #[inline(always)]
    unsafe fn times_power(self, d: f32) -> Self {
        unsafe {
            let d = _mm256_set1_ps(d);
            Avx2(_mm256_mul_ps(self.0, d), _mm256_mul_ps(self.1, d))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn add_rounded(
        y: *const [f32; LANES],
        step: usize,
        count: usize,
        scale: f32,
        sums: &mut [i64; LANES],
    ) -> bool {
        unsafe {
            let (scale, mask) = (_mm256_set1_ps(scale), _mm256_set1_epi32(i32::MAX));
            let (mut sum, mut most) = ([_mm256_setzero_si256(); 2], _mm256_setzero_si256());
            for i in 0..count {
                for (half, sum) in sum.iter_mut().enumerate() {
                    let at = (y.add(i * step) as *const f32).add(half * LANES / 2);
                    let y = _mm256_mul_ps(_mm256_loadu_ps(at), scale);
                    most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(y), mask));
                    *sum = _mm256_add_epi32(*sum, _mm256_cvtps_epi32(y));
                }
            }
            // No magnitude has the highest bit.
            let less = _mm256_cmpgt_epi32(_mm256_set1_epi32(SMALL.to_bits() as i32), most);
            let small = _mm256_movemask_epi8(less) == -1;
            if small {
                let quarters =
                    sum.map(|sum| [_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum)]);
                for (quarter, sums) in quarters.as_flattened().iter().zip(sums.as_chunks_mut::<4>().0) {
                    let at = sums.as_mut_ptr() as *mut __m256i;
                    let total = _mm256_add_epi64(_mm256_loadu_si256(at), _mm256_cvtepi32_epi64(*quarter));
                    _mm256_storeu_si256(at, total);
                }
            }
            small
        }
    }
}

#[inline(always)]
unsafe fn eight(x: *const i8) -> __m256i {
    unsafe { _mm256_set1_epi32((x as *const i32).read_unaligned()) }
}

/// Unsigned nibbles: a pair's products are at most 2 * 15 * 127 = 3,810, so that eight of them fit an i16.
#[inline(always)]
unsafe fn plain4<const T: usize>(
    codes: *const u8,
    lines: usize,
    x: *const i8,
    starts: *const i32,
) -> [(__m256i, __m256i); T] {
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut acc = [(zero, zero); T];
        for (t, acc) in acc.iter_mut().enumerate() {
            *acc = (_mm256_set1_epi32(*starts.add(t)), _mm256_set1_epi32(*starts.add(t)));
        }
        let group = 8 * lines;
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let mut line = 0;
        while line < lines {
            let mut halves = [[_mm256_setzero_si256(); T]; 2];
            for step in line..line + 4 {
                for (half, sums) in halves.iter_mut().enumerate() {
                    let v = _mm256_loadu_si256(codes.add(step * LINE + 32 * half) as *const __m256i);
                    let a = _mm256_and_si256(v, low);
                    let b = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
                    for t in 0..T {
                        let a = _mm256_maddubs_epi16(a, eight(x.add(t * group + 8 * step)));
                        let b = _mm256_maddubs_epi16(b, eight(x.add(t * group + 8 * step + 4)));
                        sums[t] = _mm256_add_epi16(sums[t], _mm256_add_epi16(a, b));
                    }
                }
            }
            for t in 0..T {
                acc[t].0 = _mm256_add_epi32(acc[t].0, _mm256_madd_epi16(halves[0][t], ones));
                acc[t].1 = _mm256_add_epi32(acc[t].1, _mm256_madd_epi16(halves[1][t], ones));
            }
            line += 4;
        }
        acc
    }
}

/// Signed integers w: |w| times x with w's sign. A pair's products are at most 2 * 128 * 127 = 32,512 and fit an i16.
#[inline(always)]
unsafe fn signed<F: Form, const T: usize>(
    codes: *const u8,
    lines: usize,
    decode: &Decode,
    x: *const i8,
) -> [(__m256i, __m256i); T] {
    unsafe {
        let group = lines * if F::KIND == INT8 { 4 } else { 8 };
        let zero = _mm256_setzero_si256();
        let mut acc = [(zero, zero); T];
        let low = _mm256_set1_epi8(15);
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(decode.signed.as_ptr() as *const __m128i));
        let flip = _mm256_set1_epi8(-128);
        for line in 0..lines {
            for half in 0..2 {
                let v = _mm256_loadu_si256(codes.add(line * LINE + 32 * half) as *const __m256i);
                if F::KIND == INT8 {
                    signed_step(_mm256_xor_si256(v, flip), half, (4 * line, group), x, &mut acc);
                } else {
                    let a = _mm256_shuffle_epi8(table, _mm256_and_si256(v, low));
                    signed_step(a, half, (8 * line, group), x, &mut acc);
                    let b = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
                    signed_step(_mm256_shuffle_epi8(table, b), half, (8 * line + 4, group), x, &mut acc);
                }
            }
        }
        acc
    }
}

/// Adds the products of 8 rows' four integers `w` with each row's four activations from `at` on.
#[inline(always)]
unsafe fn signed_step<const T: usize>(
    w: __m256i,
    half: usize,
    (at, group): (usize, usize),
    x: *const i8,
    acc: &mut [(__m256i, __m256i); T],
) {
    unsafe {
        let (magnitude, ones) = (_mm256_abs_epi8(w), _mm256_set1_epi16(1));
        for t in 0..T {
            let x = _mm256_sign_epi8(eight(x.add(t * group + at)), w);
            let products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
            match half {
                0 => acc[t].0 = _mm256_add_epi32(acc[t].0, products),
                _ => acc[t].1 = _mm256_add_epi32(acc[t].1, products),
            }
        }
    }
}
