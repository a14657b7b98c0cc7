//! From a row's gate logits to its experts and their weights, by ARITHMETIC.md, 5.

use crate::cpu::lanes::{LANES, Lanes, by_isa, tree};
use crate::cpu::math::{exp, sigmoid};
use crate::ops::{Gate, GroupScore, Score};

/// Scratch of one thread, `[E]` each.
pub(crate) struct Scratch {
    scores: Vec<f32>,
    choice: Vec<f32>,
    groups: Vec<f32>,
    taken: Vec<bool>,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch { scores: Vec::new(), choice: Vec::new(), groups: Vec::new(), taken: Vec::new() }
    }
}

by_isa! {
    /// One row: `logits[E]` -> `ids[K]`, `weights[K]`, in order of selection.
    fn select_row(gate: &Gate, logits: &[f32], correction: Option<&[f32]>, scratch: &mut Scratch,
        ids: &mut [u32], weights: &mut [f32]) = select
}

#[inline(always)]
fn select<L: Lanes>(
    gate: &Gate,
    logits: &[f32],
    correction: Option<&[f32]>,
    scratch: &mut Scratch,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    scratch.scores.clear();
    scratch.scores.extend_from_slice(logits);
    match gate.score {
        Score::Softmax => softmax(&mut scratch.scores),
        Score::Sigmoid => scratch.scores.iter_mut().for_each(|x| *x = sigmoid(*x)),
        Score::SoftmaxOfSelected | Score::SigmoidOfSelected => {}
    }
    scratch.choice.clear();
    match correction {
        Some(bias) => scratch.choice.extend(scratch.scores.iter().zip(bias).map(|(s, b)| s + b)),
        None => scratch.choice.extend_from_slice(&scratch.scores),
    }
    scratch.taken.clear();
    scratch.taken.resize(logits.len(), false);
    if let Some(groups) = &gate.groups {
        let size = logits.len() / groups.count;
        scratch.groups.clear();
        scratch
            .groups
            .extend(scratch.choice.chunks_exact(size).map(|group| group_score(groups.score, group)));
        let mut chosen = [false; MAX_GROUPS];
        for _ in 0..groups.taken {
            take_best(&scratch.groups, &mut chosen[..groups.count]);
        }
        for (group, taken) in scratch.taken.chunks_exact_mut(size).enumerate() {
            taken.fill(!chosen[group]);
        }
    }
    for (id, weight) in ids.iter_mut().zip(weights.iter_mut()) {
        let best = take_best(&scratch.choice, &mut scratch.taken);
        *id = best as u32;
        *weight = scratch.scores[best];
    }
    finish(gate, weights);
}

/// The most groups a gate may have; configurations are checked against it.
pub const MAX_GROUPS: usize = 64;

fn finish(gate: &Gate, weights: &mut [f32]) {
    match gate.score {
        Score::SoftmaxOfSelected => softmax(weights),
        Score::SigmoidOfSelected => weights.iter_mut().for_each(|x| *x = sigmoid(*x)),
        Score::Softmax | Score::Sigmoid => {}
    }
    if let Some(epsilon) = gate.normalise {
        let sum = weights.iter().fold(0.0f32, |sum, w| sum + w) + epsilon;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    if gate.scale != 1.0 {
        weights.iter_mut().for_each(|w| *w *= gate.scale);
    }
}

/// Takes the largest entry that is not taken yet, the lowest of equals. NaN sorts below everything. The caller takes no
/// more than there are.
#[inline(always)]
fn take_best(scores: &[f32], taken: &mut [bool]) -> usize {
    let mut best: Option<usize> = None;
    for (i, &score) in scores.iter().enumerate() {
        if !taken[i] && best.is_none_or(|top| better(score, scores[top])) {
            best = Some(i);
        }
    }
    // `select` asserts that top_k and the taken groups leave enough.
    let best = best.expect("an expert that is not taken");
    taken[best] = true;
    best
}

/// Whether `a` sorts above `b`; NaN sorts below everything.
#[inline(always)]
fn better(a: f32, b: f32) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}

fn group_score(kind: GroupScore, group: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NAN, f32::NAN);
    for &score in group {
        if better(score, first) {
            (first, second) = (score, first);
        } else if better(score, second) {
            second = score;
        }
    }
    match kind {
        GroupScore::Largest => first,
        GroupScore::TwoLargest => first + second,
    }
}

#[inline(always)]
fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &v| if v > max { v } else { max });
    let mut lane = [0.0f32; LANES];
    for v in x.iter_mut() {
        *v = exp(*v - max);
    }
    for (j, &v) in x.iter().enumerate() {
        lane[j % LANES] += v;
    }
    let sum = tree(&lane);
    x.iter_mut().for_each(|v| *v /= sum);
}
