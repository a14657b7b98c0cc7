//! Temperature, min-p, top-k, top-p, and the draw by inverse transform: one random number for a position.

use super::params::SamplingParams;
use super::scan::{Maxima, SUM_BLOCK, Weights};

/// How many of the largest logits are looked at first for top-p, and how fast that grows while they do not suffice.
const NUCLEUS_FIRST: usize = 512;
const NUCLEUS_GROWTH: usize = 8;

/// Draws a token from the adjusted `logits` [V] with the random number `noise` in (0, 1).
pub fn draw(logits: &[f32], maxima: &Maxima, params: &SamplingParams, noise: f64) -> u32 {
    // exp(scale * (floor - max)) = min_p
    let floor = match params.min_p {
        0.0 => f32::NEG_INFINITY,
        min_p => maxima.max + min_p.ln() * params.temperature,
    };
    let weights = Weights { max: maxima.max, scale: 1.0 / params.temperature, floor };
    let top_k = match params.top_k as usize {
        0 => logits.len(),
        count => count.min(logits.len()),
    };
    if top_k < logits.len() {
        let kept = weighted(maxima.largest(logits, top_k), &weights);
        let total = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
        return pick(nucleus(&kept, total, params.top_p).unwrap_or(&kept), noise);
    }
    let sums = weights.block_sums(logits);
    if params.top_p >= 1.0 {
        return pick_from_all(logits, &weights, &sums, noise);
    }
    let total = sums.iter().sum();
    let mut count = NUCLEUS_FIRST;
    loop {
        let kept = weighted(maxima.largest(logits, count), &weights);
        match nucleus(&kept, total, params.top_p) {
            Some(kept) => return pick(kept, noise),
            None if count >= logits.len() => return pick(&kept, noise),
            None => count *= NUCLEUS_GROWTH,
        }
    }
}

/// The tokens with their weights, without those that min-p dropped; still largest first.
fn weighted(mut largest: Vec<(u32, f32)>, weights: &Weights) -> Vec<(u32, f32)> {
    let kept = largest.partition_point(|(_, logit)| *logit >= weights.floor);
    largest.truncate(kept);
    largest.iter_mut().for_each(|(_, value)| *value = weights.of(*value));
    largest
}

/// The first tokens that have the share `top_p` of `total` together; `None` if all of them have less.
fn nucleus(kept: &[(u32, f32)], total: f64, top_p: f32) -> Option<&[(u32, f32)]> {
    let wanted = total * f64::from(top_p);
    let mut sum = 0.0;
    let last = kept.iter().position(|(_, weight)| {
        sum += f64::from(*weight);
        sum >= wanted
    });
    last.map(|last| &kept[..=last])
}

/// The token at the share `noise` of the weights of `kept`.
fn pick(kept: &[(u32, f32)], noise: f64) -> u32 {
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let target = total * noise;
    let mut sum = 0.0;
    let drawn = kept.iter().find(|(_, weight)| {
        sum += f64::from(*weight);
        sum > target
    });
    // The largest logit has weight 1, so that `kept` is never empty; rounding may leave the target at the end.
    drawn.unwrap_or(&kept[kept.len() - 1]).0
}

/// The same over all logits, in the order of their ids: first the block, then the token within it.
fn pick_from_all(logits: &[f32], weights: &Weights, sums: &[f64], noise: f64) -> u32 {
    let target = sums.iter().sum::<f64>() * noise;
    let mut before = 0.0;
    let mut block = 0;
    while block + 1 < sums.len() && before + sums[block] <= target {
        before += sums[block];
        block += 1;
    }
    let start = block * SUM_BLOCK;
    let mut last = start as u32;
    let mut sum = before;
    for (i, logit) in logits[start..].iter().take(SUM_BLOCK).enumerate() {
        let weight = f64::from(weights.of(*logit));
        if weight > 0.0 {
            last = (start + i) as u32;
            sum += weight;
            if sum > target {
                break;
            }
        }
    }
    last
}
