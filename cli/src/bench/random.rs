//! Random numbers that are a function of the seed alone: SplitMix64, and the distributions that a load is made of.

use std::f64::consts::TAU;

pub struct Random(u64);

impl Random {
    /// One stream of numbers for each purpose, so that none depends on how many another has drawn.
    pub fn new(seed: u64, purpose: u64) -> Random {
        let mut random = Random(seed ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.bits();
        random
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1): never 0, so that its logarithm is finite.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count.saturating_sub(1))
    }

    /// Mean 0, variance 1: Box and Muller's.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (TAU * self.unit()).cos()
    }

    /// Gamma with this shape and scale 1: Marsaglia and Tsang's; shape 1 is the exponential distribution.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.unit().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_variance(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        const N: usize = 200_000;
        let values: Vec<f64> = (0..N).map(|_| draw()).collect();
        let mean = values.iter().sum::<f64>() / N as f64;
        (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / N as f64)
    }

    /// Mean and variance as the textbook has them.
    #[test]
    fn distributions_have_their_moments() {
        let mut random = Random::new(7, 0);
        for (shape, name) in [(1.0, "exponential"), (0.25, "bursty"), (4.0, "even")] {
            let (mean, variance) = mean_and_variance(|| random.gamma(shape));
            assert!((mean / shape - 1.0).abs() < 0.02 && (variance / shape - 1.0).abs() < 0.05, "{name}");
        }
        let (mean, variance) = mean_and_variance(|| random.normal());
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02);
        let (mean, variance) = mean_and_variance(|| random.unit());
        assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002);
    }

    #[test]
    fn a_seed_gives_its_numbers_and_another_gives_others() {
        let draw = |seed, purpose| Random::new(seed, purpose).bits();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
    }
}
