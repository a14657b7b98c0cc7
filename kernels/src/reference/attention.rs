//! ARITHMETIC.md, 4, for one head of one row.

use super::{dot, sum};
use crate::cpu::math::exp;
use crate::ops::ATTENTION_CHUNK;

/// What one head of a row sees.
pub struct AttendedRow<'a> {
    pub q: &'a [f32],
    /// Key and value of every position up to the row's own.
    pub keys: &'a [Vec<f32>],
    pub values: &'a [Vec<f32>],
    /// The first position that the mask allows.
    pub first: usize,
    pub scale: f32,
    pub sink: Option<f32>,
}

pub fn attention_row(row: &AttendedRow<'_>) -> Vec<f32> {
    let width = row.values[0].len();
    let (mut max, mut total, mut out) = (f32::NEG_INFINITY, 0.0f32, vec![0.0f32; width]);
    let mut merge = |m: f32, l: f32, o: &[f32]| {
        let new = if m > max { m } else { max };
        let (a, b) = (exp(max - new), exp(m - new));
        total = total.mul_add(a, l * b);
        for (out, o) in out.iter_mut().zip(o) {
            *out = out.mul_add(a, o * b);
        }
        max = new;
    };
    for chunk in (0..row.keys.len()).step_by(ATTENTION_CHUNK) {
        let seen = chunk.max(row.first)..(chunk + ATTENTION_CHUNK).min(row.keys.len());
        if seen.is_empty() {
            continue;
        }
        let scores: Vec<f32> = seen.clone().map(|j| dot(row.q, &row.keys[j]) * row.scale).collect();
        let m = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
        let e: Vec<f32> = scores.iter().map(|s| exp(s - m)).collect();
        let mut o = vec![0.0f32; width];
        for (e, j) in e.iter().zip(seen.clone()) {
            for (o, v) in o.iter_mut().zip(&row.values[j]) {
                *o = e.mul_add(*v, *o);
            }
        }
        merge(m, sum(&e, seen.start - chunk), &o);
    }
    if let Some(sink) = row.sink {
        merge(sink, 1.0, &vec![0.0; width]);
    }
    out.iter().map(|o| o / total).collect()
}
