//! Row-wise operations: norm, activation, RoPE, sums of rows. One row, one result; no order but the lanes'.

use crate::cpu::lanes::{LANES, Lanes, by_isa, tree};
use crate::cpu::math::{exp, sigmoid, silu};
use crate::ops::Activation;

/// dot(x, x) by the 16 lanes.
#[inline(always)]
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lane = [0.0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for j in 0..LANES {
            lane[j] = chunk[j].mul_add(chunk[j], lane[j]);
        }
    }
    for (j, &value) in chunks.remainder().iter().enumerate() {
        lane[j] = value.mul_add(value, lane[j]);
    }
    tree(&lane)
}

by_isa! {
    /// RMS norm of one row into another; without weight it only scales.
    fn rms_norm_row(x: &[f32], weight: Option<&[f32]>, eps: f32, out: &mut [f32]) = rms_norm
}

#[inline(always)]
fn rms_norm<L: Lanes>(x: &[f32], weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let r = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    match weight {
        Some(weight) => {
            for ((y, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                *y = (x * r) * w;
            }
        }
        None => {
            for (y, &x) in out.iter_mut().zip(x) {
                *y = x * r;
            }
        }
    }
}

by_isa! {
    /// `gate <- activation(gate, up)` over one row.
    fn activation_row(kind: Activation, gate: &mut [f32], up: &[f32]) = activation
}

#[inline(always)]
pub(crate) fn activation<L: Lanes>(kind: Activation, gate: &mut [f32], up: &[f32]) {
    match kind {
        Activation::SwiGlu => {
            for (g, &u) in gate.iter_mut().zip(up) {
                *g = silu(*g) * u;
            }
        }
        Activation::ClampedSwiGlu { alpha, limit } => {
            for (g, &u) in gate.iter_mut().zip(up) {
                let clamped = if *g > limit { limit } else { *g };
                let u = if u > limit { limit } else { u };
                let u = if u < -limit { -limit } else { u };
                *g = (u + 1.0) * (clamped / (1.0 + exp(-(clamped * alpha))));
            }
        }
    }
}

by_isa! {
    /// Rotates the pairs (i, i + n/2) of one head.
    fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) = halves
}

#[inline(always)]
fn halves<L: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (a.mul_add(c, -(*b * s)), b.mul_add(c, *a * s));
    }
}

by_isa! {
    /// Rotates the pairs (2i, 2i + 1) of one head.
    fn rope_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) = pairs
}

#[inline(always)]
fn pairs<L: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &c), &s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a.mul_add(c, -(b * s));
        pair[1] = b.mul_add(c, a * s);
    }
}

by_isa! { fn add_row(to: &mut [f32], from: &[f32]) = add }

#[inline(always)]
fn add<L: Lanes>(to: &mut [f32], from: &[f32]) {
    for (y, &x) in to.iter_mut().zip(from) {
        *y += x;
    }
}

by_isa! {
    /// `to <- to + sigmoid(logit) * from`.
    fn add_gated_row(to: &mut [f32], from: &[f32], logit: f32) = add_gated
}

#[inline(always)]
fn add_gated<L: Lanes>(to: &mut [f32], from: &[f32], logit: f32) {
    let scale = sigmoid(logit);
    for (y, &x) in to.iter_mut().zip(from) {
        *y += scale * x;
    }
}
