//! Groups of f32 weights into int4 and int8, by ARITHMETIC.md, 9. Plain operations with a fixed order, sixteen at once.

use crate::cpu::lanes::{LANES, Lanes, by_isa, tree};
use crate::packed::OWN_GROUP;

/// What the value of largest magnitude is divided by, in the order in which they are tried.
pub(crate) const DIVISORS: [f32; 8] = [8.0, 7.5, 8.5, 7.0, 9.0, 6.5, 9.5, 6.0];

/// A scale as f16 keeps it; beyond its range the largest finite one.
#[inline(always)]
fn f16_scale(scale: f32) -> f32 {
    let kept = half::f16::from_f32(scale).to_f32();
    if kept.is_infinite() && scale.is_finite() { half::f16::MAX.to_f32().copysign(scale) } else { kept }
}

/// The value of largest magnitude, the first of equals; NaN if one of them is not finite.
#[inline(always)]
fn extreme(x: &[f32; OWN_GROUP]) -> f32 {
    let largest = x.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    if !f32::from_bits(largest).is_finite() {
        return f32::NAN;
    }
    x.iter().copied().find(|x| x.to_bits() & 0x7fff_ffff == largest).unwrap_or(0.0)
}

/// Rounds half to even; exact for |x| < 2^22, and whatever is larger is cut off by the caller's clamp.
#[inline(always)]
fn round(x: f32) -> f32 {
    x.round_ties_even()
}

by_isa! {
    /// Codes of a group (`w + 128`) and its scale.
    fn int8_group(x: &[f32; OWN_GROUP], codes: &mut [u8; OWN_GROUP], scale: &mut f32) = int8
}

by_isa! {
    /// Codes of a group (`w + 8`) and its scale.
    fn int4_group(x: &[f32; OWN_GROUP], codes: &mut [u8; OWN_GROUP], scale: &mut f32) = int4
}

#[inline(always)]
fn int8<L: Lanes>(x: &[f32; OWN_GROUP], codes: &mut [u8; OWN_GROUP], scale: &mut f32) {
    *scale = int8_codes(x, codes);
}

#[inline(always)]
fn int4<L: Lanes>(x: &[f32; OWN_GROUP], codes: &mut [u8; OWN_GROUP], scale: &mut f32) {
    *scale = int4_codes(x, codes);
}

#[inline(always)]
fn int8_codes(x: &[f32; OWN_GROUP], codes: &mut [u8; OWN_GROUP]) -> f32 {
    let e = extreme(x);
    let scale = f16_scale(e.abs() / 127.0);
    if scale.is_nan() || scale == 0.0 {
        codes.fill(128);
        return scale;
    }
    let r = 1.0 / scale;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (round(x * r).clamp(-127.0, 127.0) as i32 + 128) as u8;
    }
    scale
}

#[inline(always)]
fn int4_codes(x: &[f32; OWN_GROUP], codes: &mut [u8; OWN_GROUP]) -> f32 {
    let e = extreme(x);
    if e.is_nan() {
        codes.fill(8);
        return f32::NAN;
    }
    let mut best = f16_scale(-e / DIVISORS[0]);
    let mut best_error = error(x, best);
    for divisor in &DIVISORS[1..] {
        let scale = f16_scale(-e / divisor);
        let error = error(x, scale);
        if error < best_error {
            (best, best_error) = (scale, error);
        }
    }
    let r = reciprocal(best);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (code_of(*x, r) as i32 + 8) as u8;
    }
    best
}

#[inline(always)]
fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn code_of(x: f32, r: f32) -> f32 {
    let w = round(x * r);
    let w = if w < -8.0 { -8.0 } else { w };
    if w > 7.0 { 7.0 } else { w }
}

/// The squared error of a scale, by the lanes of ARITHMETIC.md, 2.
#[inline(always)]
fn error(x: &[f32; OWN_GROUP], scale: f32) -> f32 {
    let r = reciprocal(scale);
    let mut acc = [0.0f32; LANES];
    for chunk in x.chunks_exact(LANES) {
        for (acc, x) in acc.iter_mut().zip(chunk) {
            let t = (-code_of(*x, r)).mul_add(scale, *x);
            *acc = t.mul_add(t, *acc);
        }
    }
    tree(&acc)
}
