//! The plain twins: each operation as ARITHMETIC.md writes it, one value after the other, with no thought of speed.
//!
//! They work on slices and know no device. Kernels of every backend must give their bits.

mod attention;
mod experts;
mod gate;
mod pack;
mod packed;

pub use attention::{AttendedRow, attention_row};
pub use experts::{ExpertRow, RowWeight, add_expert_row};
pub use gate::gate_row;
pub use pack::{int4_group, int8_group};
pub use packed::{QuantizedRow, packed_dot, packed_linear_row, quantize_row};

use crate::cpu::math::exp;
use crate::ops::{Activation, RopeStyle};

/// ARITHMETIC.md, 2: sixteen lanes of fused multiply-adds, then a fixed tree.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut acc = [0.0f32; 16];
    for i in 0..a.len() {
        acc[i % 16] = a[i].mul_add(b[i], acc[i % 16]);
    }
    tree(acc)
}

/// ARITHMETIC.md, 2: the same lanes without products, beginning at lane `first % 16`.
pub fn sum(a: &[f32], first: usize) -> f32 {
    let mut acc = [0.0f32; 16];
    for (i, value) in a.iter().enumerate() {
        acc[(first + i) % 16] += value;
    }
    tree(acc)
}

fn tree(acc: [f32; 16]) -> f32 {
    let s8: [f32; 8] = std::array::from_fn(|j| acc[j] + acc[j + 8]);
    let s4: [f32; 4] = std::array::from_fn(|j| s8[j] + s8[j + 4]);
    let s2: [f32; 2] = std::array::from_fn(|j| s4[j] + s4[j + 2]);
    s2[0] + s2[1]
}

/// `out[n] = dot(x, w[n]) + bias[n]`, w `[N, K]`.
pub fn linear_row(x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let rows = w.chunks_exact(x.len()).map(|row| dot(x, row)).enumerate();
    rows.map(|(n, y)| bias.map_or(y, |bias| y + bias[n])).collect()
}

/// ARITHMETIC.md, 3: RMS norm.
pub fn rms_norm_row(x: &[f32], weight: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let r = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().enumerate().map(|(i, x)| weight.map_or(x * r, |weight| (x * r) * weight[i])).collect()
}

/// ARITHMETIC.md, 3: RoPE of one head.
pub fn rope_head(x: &mut [f32], style: RopeStyle, cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    for i in 0..half {
        let (a, b) = match style {
            RopeStyle::Halves => (i, i + half),
            RopeStyle::Pairs => (2 * i, 2 * i + 1),
        };
        let (xa, xb) = (x[a], x[b]);
        x[a] = xa.mul_add(cos[i], -(xb * sin[i]));
        x[b] = xb.mul_add(cos[i], xa * sin[i]);
    }
}

/// ARITHMETIC.md, 3: what stands between gate|up and down.
pub fn activate(kind: Activation, gate: f32, up: f32) -> f32 {
    match kind {
        Activation::SwiGlu => (gate / (1.0 + exp(-gate))) * up,
        Activation::ClampedSwiGlu { alpha, limit } => {
            let gate = if gate > limit { limit } else { gate };
            let up = if up > limit { limit } else { up };
            let up = if up < -limit { -limit } else { up };
            (up + 1.0) * (gate / (1.0 + exp(-(gate * alpha))))
        }
    }
}
