//! ARITHMETIC.md, 6, for one row and one whole expert.

use super::{activate, dot};
use crate::ops::{Activation, WeightOn};

/// One expert as plain f32: gate and up `[F, H]`, down `[H, F]`, row-major.
pub struct ExpertRow<'a> {
    pub x: &'a [f32],
    pub weight: f32,
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub down: &'a [f32],
    pub gate_bias: Option<&'a [f32]>,
    pub up_bias: Option<&'a [f32]>,
    pub down_bias: Option<&'a [f32]>,
    pub activation: Activation,
    pub weight_on: WeightOn,
    pub unit: usize,
    pub fraction_bits: u32,
}

/// Adds the expert's terms to a row's sums; the result says whether the row is poisoned.
pub fn add_expert_row(e: &ExpertRow<'_>, sums: &mut [i64]) -> bool {
    let (h, f) = (e.x.len(), e.gate.len() / e.x.len());
    let inner = |matrix: &[f32], row: usize, bias: Option<&[f32]>| {
        let y = dot(e.x, &matrix[row * h..][..h]);
        let y = if e.weight_on == WeightOn::Input { e.weight * y } else { y };
        bias.map_or(y, |bias| y + bias[row])
    };
    let a: Vec<f32> = (0..f)
        .map(|i| activate(e.activation, inner(e.gate, i, e.gate_bias), inner(e.up, i, e.up_bias)))
        .collect();
    let mut poisoned = false;
    let mut add = |sum: &mut i64, y: f32| {
        let y = if e.weight_on == WeightOn::Output { e.weight * y } else { y };
        if y.abs() < 2f32.powi(51 - e.fraction_bits as i32) {
            *sum += (f64::from(y) * 2f64.powi(e.fraction_bits as i32)).round_ties_even() as i64;
        } else {
            poisoned = true;
        }
    };
    for (column, sum) in sums.iter_mut().enumerate() {
        for unit in (0..f).step_by(e.unit) {
            let end = (unit + e.unit).min(f);
            add(sum, dot(&a[unit..end], &e.down[column * f + unit..column * f + end]));
        }
        if let Some(bias) = e.down_bias {
            add(sum, bias[column]);
        }
    }
    poisoned
}
