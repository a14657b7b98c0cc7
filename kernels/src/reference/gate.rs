//! ARITHMETIC.md, 5, for one row.

use super::sum;
use crate::cpu::math::{exp, sigmoid};
use crate::ops::{Gate, GroupScore, Score};

fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &v| if v > max { v } else { max });
    let e: Vec<f32> = x.iter().map(|v| exp(v - max)).collect();
    let total = sum(&e, 0);
    e.iter().map(|e| e / total).collect()
}

/// The indices of the `count` largest, ties to the lowest index.
fn largest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("numbers").then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// The experts of a row and their weights, in order of selection. Logits must be numbers.
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
    let mut choice: Vec<f32> = match correction {
        Some(bias) => scores.iter().zip(bias).map(|(s, b)| s + b).collect(),
        None => scores.clone(),
    };
    if let Some(groups) = gate.groups {
        let size = logits.len() / groups.count;
        let group_scores: Vec<f32> = choice
            .chunks(size)
            .map(|group| {
                let mut group = group.to_vec();
                group.sort_by(|a, b| b.partial_cmp(a).expect("numbers"));
                match groups.score {
                    GroupScore::Largest => group[0],
                    GroupScore::TwoLargest => group[0] + group.get(1).copied().unwrap_or(f32::NEG_INFINITY),
                }
            })
            .collect();
        let taken = largest(&group_scores, groups.taken);
        for (i, c) in choice.iter_mut().enumerate() {
            if !taken.contains(&(i / size)) {
                *c = f32::NEG_INFINITY;
            }
        }
    }
    let ids = largest(&choice, top_k);
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
