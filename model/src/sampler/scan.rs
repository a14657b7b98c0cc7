//! The passes over all logits [V]: block maxima, sums of exponentials, the largest logits.
//!
//! All are written so that the compiler can use the vector registers that it finds, and give the same bits whichever
//! it uses: every lane and every block has its own sum, joined in a fixed order.

use super::params::SamplerError;

/// Logits of a block whose maximum is kept.
const BLOCK: usize = 64;
/// Logits whose exponentials are summed in f32 lanes before the sum goes on in f64.
pub const SUM_BLOCK: usize = 4096;
const LANES: usize = 16;

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
        let mut bad = [0u32; LANES];
        let blocks: Vec<f32> = logits.chunks(BLOCK).map(|block| block_max(block, &mut bad)).collect();
        if bad.iter().any(|lane| *lane != 0) {
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

    /// The `count` largest logits above -inf with their ids, largest first, of equal ones the lowest id first.
    ///
    /// At least `count` logits reach the `count`-th largest of the blocks' maxima, so that only those need sorting.
    pub fn largest(&self, logits: &[f32], count: usize) -> Vec<(u32, f32)> {
        let mut floor = f32::NEG_INFINITY;
        if (1..self.blocks.len()).contains(&count) {
            let mut maxima = self.blocks.clone();
            floor = *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
        }
        let mut keys = Vec::with_capacity(count.saturating_mul(2).min(logits.len()));
        for (block, max) in logits.chunks(BLOCK).zip(&self.blocks).enumerate().filter(|(_, (_, max))| **max >= floor).map(|(i, (block, max))| ((i, block), max)) {
            let (at, block) = block;
            debug_assert!(*max >= floor);
            for (i, logit) in block.iter().enumerate() {
                if *logit >= floor && *logit > f32::NEG_INFINITY {
                    keys.push(descending_key(*logit, (at * BLOCK + i) as u32));
                }
            }
        }
        if keys.len() > count {
            keys.select_nth_unstable(count.saturating_sub(1));
            keys.truncate(count);
        }
        keys.sort_unstable();
        keys.into_iter().map(|key| (key as u32, logits[key as u32 as usize])).collect()
    }
}

fn block_max(block: &[f32], bad: &mut [u32; LANES]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
            bad[i] |= u32::from(chunk[i].partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less));
        }
    }
    for (i, logit) in rest.iter().enumerate() {
        lanes[i] = if *logit > lanes[i] { *logit } else { lanes[i] };
        bad[i] |= u32::from(logit.partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less));
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// A key that sorts larger logits first and, of equal ones, lower ids first. -0 equals +0.
fn descending_key(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(id)
}

/// Which logits count, and how they become weights: `exp((logit - max) * scale)` where `logit >= floor`, else 0.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    pub max: f32,
    pub scale: f32,
    pub floor: f32,
}

impl Weights {
    /// The model's own distribution.
    pub fn raw(max: f32) -> Weights {
        Weights { max, scale: 1.0, floor: f32::NEG_INFINITY }
    }

    pub fn of(&self, logit: f32) -> f32 {
        let weight = exp((logit - self.max) * self.scale);
        if logit >= self.floor { weight } else { 0.0 }
    }

    /// The sum of the weights of every block of [`SUM_BLOCK`] logits.
    pub fn block_sums(&self, logits: &[f32]) -> Vec<f64> {
        logits.chunks(SUM_BLOCK).map(|block| self.block_sum(block)).collect()
    }

    fn block_sum(&self, block: &[f32]) -> f64 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += self.of(chunk[i]);
            }
        }
        for (i, logit) in rest.iter().enumerate() {
            lanes[i] += self.of(*logit);
        }
        lanes.into_iter().map(f64::from).sum()
    }
}

/// `e^x` for x <= 0, within 2 ulp, 0 below -87: a polynomial that the compiler can vectorize.
///
/// x = k ln 2 + r with |r| <= ln 2 / 2; `2^k` from the exponent bits, `e^r` by the minimax polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = clamped - k * LN2_HIGH - k * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x > -87.0 { p * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            if x > -87.0 {
                worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
            }
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!((exp(0.0), exp(-90.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn the_largest_are_those_of_a_sort() {
        for len in [1usize, 63, 64, 65, 1000, 5000] {
            // Few distinct values, so that there are many ties.
            let logits: Vec<f32> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 27) as f32 - 9.0).collect();
            let maxima = Maxima::of(&logits).unwrap();
            let mut sorted: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, x)| (i as u32, *x)).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            assert_eq!(maxima.argmax(&logits), sorted[0].0);
            for count in [0, 1, 2, 20, 64, 500, len] {
                assert_eq!(maxima.largest(&logits, count), sorted[..count.min(len)], "{len} {count}");
            }
        }
    }

    #[test]
    fn unusable_logits_are_refused_wherever_they_are() {
        for at in [0, 15, 16, 70, 99] {
            for (value, expected) in [(f32::NAN, SamplerError::BadLogits), (f32::INFINITY, SamplerError::BadLogits)] {
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
