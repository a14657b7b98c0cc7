//! ARITHMETIC.md, 7 and 8, one value after the other.

use crate::packed::Packed;

/// A row of activations in int8: ARITHMETIC.md, 7.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRow {
    /// G
    pub group: usize,
    /// `[K]`
    pub codes: Vec<i8>,
    /// `[groups]`
    pub scales: Vec<f32>,
    /// `[groups]`
    pub sums: Vec<i32>,
}

/// Quantises a row in groups of `group`.
pub fn quantize_row(x: &[f32], group: usize) -> QuantizedRow {
    let mut row = QuantizedRow { group, codes: Vec::new(), scales: Vec::new(), sums: Vec::new() };
    for x in x.chunks(group) {
        let bad = x.iter().any(|x| !x.is_finite());
        let m = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let d = if bad { f32::NAN } else { power_of(m) };
        let codes: Vec<i8> =
            x.iter().map(|x| if bad { 0 } else { (x / d).round_ties_even() as i8 }).collect();
        row.sums.push(codes.iter().map(|&q| i32::from(q)).sum());
        row.codes.extend(codes);
        row.scales.push(d);
    }
    row
}

/// The scale of magnitudes up to `m`, a power of two.
fn power_of(m: f32) -> f32 {
    let mut k = -100;
    while m >= 2f32.powi(k + 1) {
        k += 1;
    }
    if m >= 127.5 * 2f32.powi(k - 6) {
        k += 1;
    }
    2f32.powi(k - 6)
}

/// The product of a quantised row with row `n` of packed weights: ARITHMETIC.md, 8.
pub fn packed_dot(x: &QuantizedRow, w: &Packed, n: usize) -> f32 {
    let format = w.format();
    assert_eq!((x.codes.len(), x.group), (w.cols(), format.group));
    let groups = w.groups();
    let chain = |c: usize| {
        let mut acc = 0.0f32;
        for g in c * groups / 4..(c + 1) * groups / 4 {
            let end = ((g + 1) * format.group).min(w.cols());
            let columns = g * format.group..end;
            let sum: i32 = columns.map(|i| format.codes.value(w.code(n, i)) * i32::from(x.codes[i])).sum();
            acc = (w.scale(n, g) * x.scales[g]).mul_add(sum as f32, acc);
            if let Some(offset) = w.offset(n, g) {
                acc = (offset * x.scales[g]).mul_add(x.sums[g] as f32, acc);
            }
        }
        acc
    };
    (chain(0) + chain(1)) + (chain(2) + chain(3))
}

/// `out[n] = product(x, w[n]) + bias[n]`.
pub fn packed_linear_row(x: &[f32], w: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
    let x = quantize_row(x, w.format().group);
    (0..w.rows())
        .map(|n| packed_dot(&x, w, n))
        .enumerate()
        .map(|(n, y)| bias.map_or(y, |b| y + b[n]))
        .collect()
}
