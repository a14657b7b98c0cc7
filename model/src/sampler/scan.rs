//! The passes over all logits [V]: block maxima, sums of exponentials, the largest logits.
//!
//! All are written so that the compiler can use vector registers of any width (`widest`), and give the same bits
//! whichever it uses: maxima are those of integers, and sums are halved from the ends of a block, element by element.

use gaterail_kernels::widest::{Work, widest};

use super::params::SamplerError;

/// Logits of a block whose maximum is kept.
const BLOCK: usize = 64;
/// Logits whose exponentials are summed in f32 lanes before the sum goes on in f64.
pub const SUM_BLOCK: usize = 4096;

/// The maxima of the blocks of logits.
#[derive(Debug)]
pub struct Maxima {
    blocks: Vec<f32>,
    pub max: f32,
}

impl Maxima {
    /// Fails on NaN or +inf, and when nothing is left above -inf.
    pub fn of(logits: &[f32]) -> Result<Maxima, SamplerError> {
        if logits.is_empty() {
            return Err(SamplerError::Empty);
        }
        let (blocks, bad) = widest(BlockMaxima(logits));
        if bad {
            return Err(SamplerError::BadLogits);
        }
        match blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max) {
            f32::NEG_INFINITY => Err(SamplerError::NothingLeft),
            max => Ok(Maxima { blocks, max }),
        }
    }

    /// The lowest id with the largest logit.
    pub fn argmax(&self, logits: &[f32]) -> u32 {
        // The maximum is one of the blocks' maxima, and each of those one of its block's logits.
        let block = self.blocks.iter().position(|max| *max == self.max).unwrap_or(0) * BLOCK;
        let within = logits[block..].iter().position(|logit| *logit == self.max).unwrap_or(0);
        (block + within) as u32
    }

    /// A logit that at least `count` logits reach: the `count`-th largest of the blocks' maxima, -inf beyond those.
    pub fn floor_of(&self, count: usize) -> f32 {
        if !(1..self.blocks.len()).contains(&count) {
            return f32::NEG_INFINITY;
        }
        let mut maxima = self.blocks.clone();
        *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    }

    /// Every logit above -inf that reaches `floor`, in the order of the ids.
    pub fn at_least(&self, logits: &[f32], floor: f32) -> Vec<Ranked> {
        let mut kept = Vec::new();
        for (at, (block, max)) in logits.chunks(BLOCK).zip(&self.blocks).enumerate() {
            if *max < floor {
                continue;
            }
            for (i, logit) in block.iter().enumerate() {
                if *logit >= floor && *logit > f32::NEG_INFINITY {
                    kept.push(Ranked::new(*logit, (at * BLOCK + i) as u32));
                }
            }
        }
        kept
    }

    /// Every logit from `low` on and below `high`, in the order of the ids.
    pub fn between(&self, logits: &[f32], low: f32, high: f32) -> Vec<Ranked> {
        let mut kept = Vec::new();
        for (at, (block, max)) in logits.chunks(BLOCK).zip(&self.blocks).enumerate() {
            if *max < low {
                continue;
            }
            let within = block.iter().enumerate().filter(|(_, logit)| **logit >= low && **logit < high);
            kept.extend(within.map(|(i, logit)| Ranked::new(*logit, (at * BLOCK + i) as u32)));
        }
        kept
    }

    /// The `count` largest logits above -inf, in the order of the ids; of equal ones the lowest ids.
    pub fn largest(&self, logits: &[f32], count: usize) -> Vec<Ranked> {
        let mut kept = self.at_least(logits, self.floor_of(count));
        if kept.len() > count {
            let last = count.checked_sub(1).map(|last| *kept.clone().select_nth_unstable(last).1);
            kept.retain(|ranked| Some(*ranked) <= last);
        }
        kept
    }
}

/// A logit and its id in one number, which is smaller for larger logits and, of equal ones, for lower ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranked(u64);

impl Ranked {
    fn new(logit: f32, id: u32) -> Ranked {
        // -0 becomes +0, which it equals.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Ranked(u64::from(!ascending) << 32 | u64::from(id))
    }

    pub fn id(self) -> u32 {
        self.0 as u32
    }

    pub fn logit(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        f32::from_bits(if ascending >> 31 == 1 { ascending ^ 1 << 31 } else { !ascending })
    }
}

/// The maximum of every block, and whether any logit is unusable.
struct BlockMaxima<'a>(&'a [f32]);

impl Work for BlockMaxima<'_> {
    type Output = (Vec<f32>, bool);

    #[inline(always)]
    fn run(self) -> (Vec<f32>, bool) {
        let (mut largest, mut smallest) = (i32::MIN, i32::MAX);
        let mut blocks = Vec::with_capacity(self.0.len().div_ceil(BLOCK));
        for block in self.0.chunks(BLOCK) {
            let (mut high, mut low) = (i32::MIN, i32::MAX);
            for logit in block {
                let ordered = ordered(*logit);
                high = high.max(ordered);
                low = low.min(ordered);
            }
            (largest, smallest) = (largest.max(high), smallest.min(low));
            blocks.push(from_ordered(high));
        }
        // NaN lies beyond the infinities, on the side of its sign.
        (blocks, largest >= ordered(f32::INFINITY) || smallest < ordered(f32::NEG_INFINITY))
    }
}

/// An integer that orders as the value does; its own inverse on the bits.
#[inline(always)]
fn ordered(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ (bits >> 31 & i32::MAX)
}

#[inline(always)]
fn from_ordered(ordered: i32) -> f32 {
    f32::from_bits((ordered ^ (ordered >> 31 & i32::MAX)) as u32)
}

/// Which logits count, and how they become weights: `exp((logit - max) * scale)` where `logit >= floor`, else 0.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    max: f32,
    /// In powers of two.
    scale: f32,
    floor: f32,
}

impl Weights {
    /// The weights of a distribution whose logits are divided by `temperature`; `floor` is -inf or a logit.
    pub fn new(max: f32, temperature: f32, floor: f32) -> Weights {
        Weights { max, scale: std::f32::consts::LOG2_E / temperature, floor }
    }

    /// The weight of one logit; at most about 1e-38 for one that is -inf.
    #[inline(always)]
    pub fn of(&self, logit: f32) -> f32 {
        let weight = self.unfloored(logit);
        if logit >= self.floor { weight } else { 0.0 }
    }

    #[inline(always)]
    fn unfloored(&self, logit: f32) -> f32 {
        exp2((logit - self.max) * self.scale)
    }

    /// Powers of two that a weight loses for every step of one down from the largest logit.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The weight of every logit.
    pub fn of_all(&self, logits: &[f32]) -> Vec<f32> {
        widest(EachWeight { weights: self, logits })
    }

    /// As `block_sums`, of what the cut keeps.
    pub fn block_sums_above(&self, logits: &[f32], cut: Cut) -> Vec<f64> {
        let from = Weights { floor: self.floor.max(cut.logit), ..*self };
        let above = Weights { floor: self.floor.max(cut.logit.next_up()), ..*self };
        // Ties are kept up to the cut's id, which lies anywhere in a block.
        let border = (cut.id as usize + 1).min(logits.len());
        let mut sums = widest(BlockSums { weights: &from, logits: &logits[..border] });
        let whole = border / SUM_BLOCK;
        let rest = &logits[border..];
        let (same_block, behind) = rest.split_at(rest.len().min((whole + 1) * SUM_BLOCK - border));
        let partial: f64 = widest(BlockSums { weights: &above, logits: same_block }).iter().sum();
        match sums.get_mut(whole) {
            Some(sum) => *sum += partial,
            None if same_block.is_empty() => {}
            None => sums.push(partial),
        }
        sums.extend(widest(BlockSums { weights: &above, logits: behind }));
        sums
    }

    /// The sum of the weights of every block of [`SUM_BLOCK`] logits.
    pub fn block_sums(&self, logits: &[f32]) -> Vec<f64> {
        widest(BlockSums { weights: self, logits })
    }
}

/// Where a nucleus ends: tokens with larger logits are kept, and of those with the same the ids up to this one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    logit: f32,
    id: u32,
}

impl Cut {
    /// Everything is kept.
    pub const NOTHING: Cut = Cut { logit: f32::NEG_INFINITY, id: u32::MAX };

    /// The last one that is kept.
    pub fn behind(last: Ranked) -> Cut {
        Cut { logit: last.logit(), id: last.id() }
    }

    #[inline(always)]
    pub fn keeps(&self, logit: f32, id: usize) -> bool {
        logit > self.logit || (logit == self.logit && id <= self.id as usize)
    }
}

/// The sum of `weights` where the logits reach `from`, and how many do.
pub fn mass_from(logits: &[f32], weights: &[f32], from: f32) -> (f64, usize) {
    widest(Mass { logits, weights, from })
}

struct Mass<'a> {
    logits: &'a [f32],
    weights: &'a [f32],
    from: f32,
}

impl Work for Mass<'_> {
    type Output = (f64, usize);

    #[inline(always)]
    fn run(self) -> (f64, usize) {
        let (mut sum, mut count) = (0.0, 0);
        let mut weighted = [0.0; SUM_BLOCK];
        for (logits, weights) in self.logits.chunks(SUM_BLOCK).zip(self.weights.chunks(SUM_BLOCK)) {
            let counted = &mut weighted[..logits.len()];
            for ((counted, logit), weight) in counted.iter_mut().zip(logits).zip(weights) {
                *counted = if *logit >= self.from { *weight } else { 0.0 };
            }
            sum += f64::from(sum_by_halves(counted));
            let mut reach = 0u32;
            for logit in logits {
                reach += u32::from(*logit >= self.from);
            }
            count += reach as usize;
        }
        (sum, count)
    }
}

/// The weight of every logit.
struct EachWeight<'a> {
    weights: &'a Weights,
    logits: &'a [f32],
}

impl Work for EachWeight<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let mut all = vec![0.0; self.logits.len()];
        for (weight, logit) in all.iter_mut().zip(self.logits) {
            *weight = self.weights.of(*logit);
        }
        all
    }
}

/// The sums of the weights of all blocks.
struct BlockSums<'a> {
    weights: &'a Weights,
    logits: &'a [f32],
}

impl Work for BlockSums<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Vec<f64> {
        let weights = *self.weights;
        let mut sums = Vec::with_capacity(self.logits.len().div_ceil(SUM_BLOCK));
        for block in self.logits.chunks(SUM_BLOCK) {
            sums.push(match weights.floor {
                f32::NEG_INFINITY => block_sum(block, |logit| weights.unfloored(logit)),
                _ => block_sum(block, |logit| weights.of(logit)),
            });
        }
        sums
    }
}

#[inline(always)]
fn block_sum(block: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
    let mut weights = [0.0; SUM_BLOCK];
    let weights = &mut weights[..block.len()];
    for (to, logit) in weights.iter_mut().zip(block) {
        *to = weight(*logit);
    }
    f64::from(sum_by_halves(weights))
}

/// Adds the second half to the first until one value is left: an order that any vectors keep.
#[inline(always)]
fn sum_by_halves(values: &mut [f32]) -> f32 {
    let mut len = values.len();
    while len > 1 {
        let half = len.div_ceil(2);
        let (first, second) = values[..len].split_at_mut(half);
        for (to, from) in first.iter_mut().zip(second) {
            *to += *from;
        }
        len = half;
    }
    values.first().copied().unwrap_or(0.0)
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

    #[test]
    fn the_largest_are_those_of_a_sort() {
        for len in [1usize, 63, 64, 65, 1000, 5000] {
            // Few distinct values, so that there are many ties.
            let logits: Vec<f32> =
                (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 27) as f32 - 9.0).collect();
            let maxima = Maxima::of(&logits).unwrap();
            let mut sorted: Vec<(u32, f32)> =
                logits.iter().enumerate().map(|(i, x)| (i as u32, *x)).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            assert_eq!(maxima.argmax(&logits), sorted[0].0);
            for count in [0, 1, 2, 20, 64, 500, len] {
                let mut largest = maxima.largest(&logits, count);
                assert!(largest.is_sorted_by_key(|ranked| ranked.id()));
                largest.sort_unstable();
                let pairs: Vec<(u32, f32)> =
                    largest.iter().map(|ranked| (ranked.id(), ranked.logit())).collect();
                assert_eq!(pairs, sorted[..count.min(len)], "{len} {count}");
            }
        }
    }

    #[test]
    fn unusable_logits_are_refused_wherever_they_are() {
        for at in [0, 15, 16, 70, 99] {
            for (value, expected) in
                [(f32::NAN, SamplerError::BadLogits), (f32::INFINITY, SamplerError::BadLogits)]
            {
                let mut logits = vec![0.5f32; 100];
                logits[at] = value;
                assert_eq!(Maxima::of(&logits).unwrap_err(), expected);
            }
        }
        assert_eq!(Maxima::of(&[f32::NEG_INFINITY; 70]).unwrap_err(), SamplerError::NothingLeft);
        assert_eq!(Maxima::of(&[]).unwrap_err(), SamplerError::Empty);
        assert_eq!(Maxima::of(&[f32::NEG_INFINITY, -1e30]).unwrap().max, -1e30);
    }
}
