//! The maxima of the blocks of logits, by which all other passes know what they need not look at; ranks; the largest logits.

use gaterail_kernels::widest::{Work, widest};

use super::BLOCK;
use crate::sampler::params::SamplerError;

/// The maxima of the blocks of logits.
#[derive(Debug)]
pub struct Maxima {
    pub(super) blocks: Vec<f32>,
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

#[cfg(test)]
mod tests {
    use super::*;

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
