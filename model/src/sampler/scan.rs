//! The passes over all logits [V]: block maxima, sums of exponentials, the largest logits.
//!
//! All are written so that the compiler can use vector registers of any width (`widest`), and give the same bits
//! whichever it uses: maxima are those of integers, and sums are halved from the ends of a block, element by element.
//! They are plain loops: what `collect` or `fold` is compiled to knows nothing of those registers, and takes twice as long.

use gaterail_kernels::widest::{Work, widest};

use super::params::SamplerError;

/// Logits of a block whose maximum is kept, and whose exponentials are summed in f32 before the sum goes on in f64.
pub const BLOCK: usize = 64;

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
        Maxima::with(blocks)
    }

    /// The maxima after the logits of `ids` have changed; fails as `of` does.
    pub fn after(
        mut self,
        logits: &[f32],
        ids: impl ExactSizeIterator<Item = u32>,
    ) -> Result<Maxima, SamplerError> {
        if ids.len() * 2 > self.blocks.len() {
            return Maxima::of(logits);
        }
        let mut stale = vec![false; self.blocks.len()];
        ids.for_each(|id| stale[id as usize / BLOCK] = true);
        if widest(StaleMaxima { logits, stale: &stale, maxima: &mut self.blocks }) {
            return Err(SamplerError::BadLogits);
        }
        Maxima::with(self.blocks)
    }

    fn with(blocks: Vec<f32>) -> Result<Maxima, SamplerError> {
        match blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max) {
            f32::NEG_INFINITY => Err(SamplerError::NothingLeft),
            max => Ok(Maxima { blocks, max }),
        }
    }

    /// As `of`, for logits that came through it already; there is at least one.
    pub fn of_usable(logits: &[f32]) -> Maxima {
        let (blocks, _) = widest(BlockMaxima(logits));
        let max = blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Maxima { blocks, max }
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
    pub fn new(logit: f32, id: u32) -> Ranked {
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
        let mut bounds = Bounds::NONE;
        let mut blocks = Vec::with_capacity(self.0.len().div_ceil(BLOCK));
        for block in self.0.chunks(BLOCK) {
            blocks.push(bounds.of_block(block));
        }
        (blocks, bounds.are_unusable())
    }
}

/// The maxima of the blocks that changed, and whether any of their logits is unusable.
struct StaleMaxima<'a> {
    logits: &'a [f32],
    stale: &'a [bool],
    maxima: &'a mut [f32],
}

impl Work for StaleMaxima<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut bounds = Bounds::NONE;
        for ((block, stale), max) in self.logits.chunks(BLOCK).zip(self.stale).zip(self.maxima) {
            if *stale {
                *max = bounds.of_block(block);
            }
        }
        bounds.are_unusable()
    }
}

/// Between what all logits lie that were looked at, as integers.
struct Bounds {
    largest: i32,
    smallest: i32,
}

impl Bounds {
    const NONE: Bounds = Bounds { largest: i32::MIN, smallest: i32::MAX };

    /// The maximum of a block.
    #[inline(always)]
    fn of_block(&mut self, block: &[f32]) -> f32 {
        let (mut high, mut low) = (i32::MIN, i32::MAX);
        for logit in block {
            let ordered = ordered(*logit);
            high = high.max(ordered);
            low = low.min(ordered);
        }
        self.largest = self.largest.max(high);
        self.smallest = self.smallest.min(low);
        from_ordered(high)
    }

    /// NaN lies beyond the infinities, on the side of its sign.
    #[inline(always)]
    fn are_unusable(&self) -> bool {
        self.largest >= ordered(f32::INFINITY) || self.smallest < ordered(f32::NEG_INFINITY)
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
    fn changed_logits_have_the_maxima_of_a_new_look() {
        let mut logits: Vec<f32> =
            (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32).collect();
        for changes in
            [vec![], vec![(0, 9e9)], vec![(3, -1.0), (999, 5e3), (3, 7.0)], vec![(500, f32::NEG_INFINITY)]]
        {
            let before = Maxima::of(&logits).unwrap();
            // The largest goes down, too.
            let largest = before.argmax(&logits);
            changes.iter().chain(&[(largest, -3.0)]).for_each(|(id, logit)| logits[*id as usize] = *logit);
            let ids: Vec<u32> = changes.iter().map(|(id, _)| *id).chain([largest]).collect();
            let (after, fresh) =
                (before.after(&logits, ids.into_iter()).unwrap(), Maxima::of(&logits).unwrap());
            assert_eq!((after.blocks, after.max), (fresh.blocks, fresh.max));
        }
        let before = Maxima::of(&logits).unwrap();
        logits[70] = f32::NAN;
        assert_eq!(before.after(&logits, [70].into_iter()).unwrap_err(), SamplerError::BadLogits);
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
