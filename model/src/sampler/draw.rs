//! Temperature, min-p, top-k, top-p, and the draw by inverse transform: one random number for a position.
//!
//! Whatever is kept, the draw runs through it in the order of the ids. Nothing is sorted: where top-k and top-p cut is
//! found by partial selection, or by halving where top-p keeps very many. Of tokens tied at the border of top-k the lowest ids stay, so that there are never more
//! than k; vLLM keeps all of the tied ones.

use super::params::SamplingParams;
use super::scan::{Cut, Maxima, Ranked, SUM_BLOCK, Weights, mass_from};

/// How many of the largest logits are looked at first for top-p; mostly they suffice.
const NUCLEUS_FIRST: usize = 512;
/// Halving ends when so few tokens lie at the border, or after so many times.
const BORDER_TOKENS: usize = 2048;
const HALVINGS_MAX: usize = 40;
/// Where halving begins: so many halvings of the largest weight down, beyond which nothing counts.
const NEGLIGIBLE: f32 = 60.0;

/// A token that may be drawn and its weight.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    ranked: Ranked,
    weight: f32,
}

/// Draws a token from the adjusted `logits` [V] with the random number `noise` in (0, 1).
pub fn draw(logits: &[f32], maxima: &Maxima, params: &SamplingParams, noise: f64) -> u32 {
    let floor = match params.min_p {
        0.0 => f32::NEG_INFINITY,
        // exp((floor - max) / temperature) = min_p
        min_p => maxima.max + min_p.ln() * params.temperature,
    };
    let weights = Weights::new(maxima.max, params.temperature, floor);
    if (1..logits.len()).contains(&(params.top_k as usize)) {
        let mut kept = weighted(maxima.largest(logits, params.top_k as usize), &weights);
        keep_nucleus(&mut kept, None, params.top_p);
        return pick(&kept, noise);
    }
    let sums = weights.block_sums(logits);
    if params.top_p >= 1.0 {
        return pick_from_all(logits, &weights, Cut::NOTHING, &sums, noise);
    }
    let total = sums.iter().sum();
    let first_floor = maxima.floor_of(NUCLEUS_FIRST).max(floor);
    let mut kept = weighted(maxima.at_least(logits, first_floor), &weights);
    if keep_nucleus(&mut kept, Some(total), params.top_p) || first_floor == floor {
        return pick(&kept, noise);
    }
    let kept = (kept.iter().map(|c| f64::from(c.weight)).sum(), kept.len());
    let wanted = total * f64::from(params.top_p);
    let cut = nucleus_cut(logits, &weights, maxima, wanted, (first_floor, kept));
    let sums = weights.block_sums_above(logits, cut);
    pick_from_all(logits, &weights, cut, &sums, noise)
}

/// Where the nucleus ends that weighs `wanted`, below a logit from which on tokens of less weight and so many lie.
fn nucleus_cut(
    logits: &[f32],
    weights: &Weights,
    maxima: &Maxima,
    wanted: f64,
    above: (f32, (f64, usize)),
) -> Cut {
    let each = weights.of_all(logits);
    let (mut high, mut at_high) = above;
    let mut low = maxima.max - NEGLIGIBLE / weights.scale();
    let mut at_low = mass_from(logits, &each, low);
    if at_low.0 < wanted {
        return Cut::NOTHING;
    }
    for _ in 0..HALVINGS_MAX {
        let middle = low + (high - low) / 2.0;
        if at_low.1 - at_high.1 <= BORDER_TOKENS || middle <= low || middle >= high {
            break;
        }
        let at_middle = mass_from(logits, &each, middle);
        if at_middle.0 >= wanted {
            (low, at_low) = (middle, at_middle);
        } else {
            (high, at_high) = (middle, at_middle);
        }
    }
    let mut border = weighted(maxima.between(logits, low, high), weights);
    border.sort_unstable_by_key(|candidate| candidate.ranked);
    let mut mass = at_high.0;
    let last = border.iter().find(|candidate| {
        mass += f64::from(candidate.weight);
        mass >= wanted
    });
    // Sums in another order may differ in their last bits, so that all of the border is needed.
    last.or(border.last()).map_or(Cut::NOTHING, |candidate| Cut::behind(candidate.ranked))
}

/// The tokens with their weights, without those that min-p drops.
fn weighted(kept: Vec<Ranked>, weights: &Weights) -> Vec<Candidate> {
    let candidates = kept.into_iter().map(|ranked| Candidate { ranked, weight: weights.of(ranked.logit()) });
    candidates.filter(|candidate| candidate.weight > 0.0).collect()
}

/// Keeps the likeliest tokens that have the share `top_p` of `total` together; the total of `kept` when absent.
///
/// Returns whether they have it; if not, all stay.
fn keep_nucleus(kept: &mut Vec<Candidate>, total: Option<f64>, top_p: f32) -> bool {
    let sum = |candidates: &[Candidate]| candidates.iter().map(|c| f64::from(c.weight)).sum::<f64>();
    let all = sum(kept);
    let wanted = total.unwrap_or(all) * f64::from(top_p);
    if top_p >= 1.0 || all < wanted {
        return false;
    }
    // Halves the range that holds the last token of the nucleus; `before` is what lies above the range.
    let mut scratch = kept.clone();
    let mut range = &mut scratch[..];
    let mut before = 0.0;
    while range.len() > 1 {
        let middle = range.len() / 2;
        range.select_nth_unstable_by_key(middle, |c| c.ranked);
        let (upper, lower) = range.split_at_mut(middle);
        let upper_sum = sum(upper);
        if before + upper_sum >= wanted {
            range = upper;
        } else {
            before += upper_sum;
            range = lower;
        }
    }
    if let Some(last) = range.first().map(|c| c.ranked) {
        kept.retain(|c| c.ranked <= last);
    }
    true
}

/// The token at the share `noise` of the weights of `kept`.
fn pick(kept: &[Candidate], noise: f64) -> u32 {
    let target = kept.iter().map(|c| f64::from(c.weight)).sum::<f64>() * noise;
    let mut sum = 0.0;
    let drawn = kept.iter().find(|c| {
        sum += f64::from(c.weight);
        sum > target
    });
    // The largest logit has weight 1, so that `kept` is never empty; rounding may leave the target at the end.
    drawn.unwrap_or(&kept[kept.len() - 1]).ranked.id()
}

/// The same over all logits before the cut: first the block, then the token within it.
fn pick_from_all(logits: &[f32], weights: &Weights, cut: Cut, sums: &[f64], noise: f64) -> u32 {
    let target = sums.iter().sum::<f64>() * noise;
    let mut sum = 0.0;
    let mut block = 0;
    while block + 1 < sums.len() && sum + sums[block] <= target {
        sum += sums[block];
        block += 1;
    }
    let start = block * SUM_BLOCK;
    let mut last = start;
    for (i, logit) in logits.iter().enumerate().skip(start).take(SUM_BLOCK) {
        let weight = if cut.keeps(*logit, i) { f64::from(weights.of(*logit)) } else { 0.0 };
        if weight > 0.0 && *logit > f32::NEG_INFINITY {
            last = i;
            sum += weight;
            if sum > target {
                break;
            }
        }
    }
    last as u32
}
