//! ARITHMETIC.md, 5, for one row.

use std::cmp::Ordering;

use super::sum;
use crate::cpu::math::{exp, sigmoid};
use crate::ops::{Gate, GroupScore, Score};

fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &v| if v > max { v } else { max });
    let e: Vec<f32> = x.iter().map(|v| exp(v - max)).collect();
    let total = sum(&e, 0);
    e.iter().map(|e| e / total).collect()
}

/// Numbers in their order, NaN below all of them.
fn order(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// The indices of the `count` largest among those allowed, ties to the lowest index.
fn largest(scores: &[f32], allowed: impl Fn(usize) -> bool, count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..scores.len()).filter(|&i| allowed(i)).collect();
    indices.sort_by(|&a, &b| order(scores[b], scores[a]).then(a.cmp(&b)));
    indices.truncate(count);
    indices
}

/// The experts of a row and their weights, in order of selection.
pub fn gate_row(
    gate: &Gate,
    top_k: usize,
    logits: &[f32],
    correction: Option<&[f32]>,
) -> (Vec<u32>, Vec<f32>) {
    let scores: Vec<f32> = match gate.score {
        Score::Softmax => softmax(logits),
        Score::Sigmoid => logits.iter().map(|&x| sigmoid(x)).collect(),
        Score::SoftmaxOfSelected | Score::SigmoidOfSelected => logits.to_vec(),
    };
    let choice: Vec<f32> = match correction {
        Some(bias) => scores.iter().zip(bias).map(|(s, b)| s + b).collect(),
        None => scores.clone(),
    };
    let ids = match gate.groups {
        None => largest(&choice, |_| true, top_k),
        Some(groups) => {
            let size = logits.len() / groups.count;
            let group_score = |group: &[f32]| {
                let mut group = group.to_vec();
                group.sort_by(|&a, &b| order(b, a));
                match groups.score {
                    GroupScore::Largest => group[0],
                    GroupScore::TwoLargest => group[0] + group[1],
                }
            };
            let scores: Vec<f32> = choice.chunks(size).map(group_score).collect();
            let taken = largest(&scores, |_| true, groups.taken);
            largest(&choice, |i| taken.contains(&(i / size)), top_k)
        }
    };
    let selected: Vec<f32> = ids.iter().map(|&id| scores[id]).collect();
    let mut weights = match gate.score {
        Score::SoftmaxOfSelected => softmax(&selected),
        Score::SigmoidOfSelected => selected.iter().map(|&x| sigmoid(x)).collect(),
        Score::Softmax | Score::Sigmoid => selected,
    };
    if let Some(epsilon) = gate.normalise {
        let total = weights.iter().fold(0.0f32, |total, w| total + w) + epsilon;
        weights.iter_mut().for_each(|w| *w /= total);
    }
    if gate.scale != 1.0 {
        weights.iter_mut().for_each(|w| *w *= gate.scale);
    }
    (ids.into_iter().map(|id| id as u32).collect(), weights)
}
