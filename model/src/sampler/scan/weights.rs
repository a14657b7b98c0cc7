//! Logits as weights, and the sums of those: of all tokens, or of those that rank before one.

use gaterail_kernels::widest::{Work, widest};

use super::{BLOCK, Maxima, Ranked};

/// Which logits count, and how they become weights: `exp((logit - max) * scale)` where `logit >= floor`, else 0.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    max: f32,
    /// In powers of two.
    scale: f32,
    /// Finite, so that -inf weighs nothing.
    floor: f32,
}

impl Weights {
    /// The weights of a distribution whose logits are divided by `temperature`; `floor` is -inf or a logit.
    pub fn new(max: f32, temperature: f32, floor: f32) -> Weights {
        Weights { max, scale: std::f32::consts::LOG2_E / temperature, floor: floor.max(f32::MIN) }
    }

    /// The weight of one logit.
    #[inline(always)]
    pub fn of(&self, logit: f32) -> f32 {
        let weight = self.unfloored(logit);
        if logit >= self.floor { weight } else { 0.0 }
    }

    #[inline(always)]
    fn unfloored(&self, logit: f32) -> f32 {
        exp2((logit - self.max) * self.scale)
    }

    /// The sums of the weights of all blocks.
    pub fn sums(&self, logits: &[f32], maxima: &Maxima) -> Vec<f64> {
        widest(Sums { weights: *self, logits, maxima: &maxima.blocks })
    }

    /// The sums of the weights of all blocks, of the tokens that rank before one; `None` where those are fewer than asked.
    pub fn sums_before(&self, logits: &[f32], maxima: &Maxima, before: Before<'_>) -> Option<Vec<f64>> {
        widest(SumsBefore { weights: *self, logits, maxima: &maxima.blocks, before })
    }
}

/// The sums of the weights of all blocks.
struct Sums<'a> {
    weights: Weights,
    logits: &'a [f32],
    maxima: &'a [f32],
}

impl Work for Sums<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Vec<f64> {
        let (weights, floor) = (self.weights, self.weights.floor);
        let mut sums = Vec::with_capacity(self.maxima.len());
        for (block, max) in self.logits.chunks(BLOCK).zip(self.maxima) {
            sums.push(if *max < floor { 0.0 } else { block_sum(block, weights, floor) });
        }
        sums
    }
}

/// Which tokens are summed, and when to stop.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// Those that rank before this one.
    pub end: Ranked,
    /// The sums of the blocks with more tokens in them.
    pub sums: &'a [f64],
    /// It is enough to know that those left out weigh more than this.
    pub enough: f64,
}

/// The sums of the weights of all blocks, of the tokens that rank before `before.end`.
struct SumsBefore<'a> {
    weights: Weights,
    logits: &'a [f32],
    maxima: &'a [f32],
    before: Before<'a>,
}

impl Work for SumsBefore<'_> {
    type Output = Option<Vec<f64>>;

    #[inline(always)]
    fn run(self) -> Option<Vec<f64>> {
        let (weights, end) = (self.weights, self.before.end);
        // Of equal logits the lower ids rank before: from which logit up to the border, and from which behind it.
        let (border, until, behind) =
            (end.id() as usize, weights.floor.max(end.logit()), weights.floor.max(end.logit().next_up()));
        let mut left_out = 0.0;
        let mut sums = Vec::with_capacity(self.maxima.len());
        let blocks = self.logits.chunks(BLOCK).zip(self.maxima).zip(self.before.sums);
        for (at, ((block, max), all)) in blocks.enumerate() {
            let before = border.saturating_sub(at * BLOCK);
            let sum = if *max < until {
                0.0
            } else if before >= block.len() {
                block_sum(block, weights, until)
            } else if before == 0 {
                block_sum(block, weights, behind)
            } else {
                let (first, second) = block.split_at(before);
                block_sum(first, weights, until) + block_sum(second, weights, behind)
            };
            left_out += all - sum;
            if left_out > self.before.enough {
                return None;
            }
            sums.push(sum);
        }
        Some(sums)
    }
}

/// The sum of the weights of at most [`BLOCK`] logits, of those that reach `from`.
#[inline(always)]
fn block_sum(block: &[f32], weights: Weights, from: f32) -> f64 {
    let mut summed = [0.0; BLOCK];
    match <&[f32; BLOCK]>::try_from(block) {
        // All of a known length: no loop's ends, only vectors.
        Ok(block) => weigh(&mut summed, block, weights, from),
        Err(_) => weigh(&mut summed[..block.len()], block, weights, from),
    }
    // The second half is added to the first until one value is left: an order that any vectors keep.
    let mut half = BLOCK / 2;
    while half > 0 {
        for i in 0..half {
            summed[i] += summed[i + half];
        }
        half /= 2;
    }
    f64::from(summed[0])
}

#[inline(always)]
fn weigh(summed: &mut [f32], block: &[f32], weights: Weights, from: f32) {
    for (to, logit) in summed.iter_mut().zip(block) {
        let weight = weights.unfloored(*logit);
        *to = if *logit >= from { weight } else { 0.0 };
    }
}

/// `2^x` for x <= 0 without a branch, so that the compiler vectorizes it; what is below 2^-126 becomes 2^-126.
///
/// x = k + r with |r| <= 1/2; `2^r` by a polynomial of degree 5 (least squares of the relative error on Chebyshev
/// nodes, within 2e-7), `2^k` by adding k to the exponent.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -126.0 { x } else { -126.0 };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.326_697_1e-3;
    for coefficient in [9.675_46e-3, 5.550_742_5e-2, 2.402_212_2e-1, 6.931_469_4e-1, 1.0] {
        p = p * r + coefficient;
    }
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_close() {
        let mut worst = 0.0f64;
        for i in 0..=1_260_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!((exp2(0.0), exp2(-1.0), exp2(-3.0)), (1.0, 0.5, 0.125));
        assert!(exp2(f32::NEG_INFINITY) < 2e-38 && exp2(-500.0) < 2e-38);
    }
}
