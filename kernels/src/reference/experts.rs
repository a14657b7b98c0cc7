//! ARITHMETIC.md, 6, for one row and one whole expert.

use super::{activate, dot, packed_dot, quantize_row};
use crate::ops::{Activation, WeightOn};
use crate::packed::Packed;

/// A matrix of an expert.
#[derive(Clone, Copy)]
pub enum RowWeight<'a> {
    /// Row-major f32.
    Plain(&'a [f32]),
    Packed(&'a Packed),
}

impl RowWeight<'_> {
    /// The product of row `n` with `x`, which stands at column `first`; the matrix has `cols` columns.
    fn product(self, x: &[f32], n: usize, first: usize, cols: usize) -> f32 {
        match self {
            RowWeight::Plain(w) => dot(x, &w[n * cols + first..][..x.len()]),
            RowWeight::Packed(w) => {
                let part = w.col_slice(first, x.len());
                packed_dot(&quantize_row(x, part.format().group), &part, n)
            }
        }
    }
}

/// One expert: gate and up `[F, H]`, down `[H, F]`.
pub struct ExpertRow<'a> {
    pub x: &'a [f32],
    /// F
    pub f: usize,
    pub weight: f32,
    pub gate: RowWeight<'a>,
    pub up: RowWeight<'a>,
    pub down: RowWeight<'a>,
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
    let (h, f) = (e.x.len(), e.f);
    let inner = |matrix: RowWeight<'_>, row: usize, bias: Option<&[f32]>| {
        let y = matrix.product(e.x, row, 0, h);
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
            add(sum, e.down.product(&a[unit..end], column, unit, f));
        }
        if let Some(bias) = e.down_bias {
            add(sum, bias[column]);
        }
    }
    poisoned
}
