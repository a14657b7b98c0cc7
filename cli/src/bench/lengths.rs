//! How long prompts and answers are: a constant or a distribution, in tokens.

use std::str::FromStr;

use super::random::Random;

/// Longest length that can be drawn or asked for.
const LENGTH_MAX: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    Constant(u32),
    /// Both ends included.
    Uniform(u32, u32),
    /// Mean and standard deviation.
    Normal(f64, f64),
    /// Median, and the standard deviation of the logarithm.
    LogNormal(f64, f64),
}

impl Lengths {
    pub fn draw(self, random: &mut Random) -> u32 {
        let rounded = |value: f64| value.round().clamp(1.0, f64::from(LENGTH_MAX)) as u32;
        match self {
            Lengths::Constant(length) => length,
            Lengths::Uniform(low, high) => low + random.below((high - low) as usize + 1) as u32,
            Lengths::Normal(mean, deviation) => rounded(mean + deviation * random.normal()),
            Lengths::LogNormal(median, sigma) => rounded(median * (sigma * random.normal()).exp()),
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Lengths, String> {
        const FORMS: &str =
            "128, uniform:64:256, normal:128:32 (mean, deviation) or lognormal:128:0.5 (median, sigma)";
        let wrong = || format!("`{text}` is no length: {FORMS}");
        let length = |part: &str| part.parse().ok().filter(|length| (1..=LENGTH_MAX).contains(length));
        let number =
            |part: &str| part.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
        let mean = |part: &str| number(part).filter(|mean| (1.0..=f64::from(LENGTH_MAX)).contains(mean));
        let parts: Vec<&str> = text.split(':').collect();
        let lengths = match parts[..] {
            [constant] | ["constant", constant] => length(constant).map(Lengths::Constant),
            ["uniform", low, high] => length(low)
                .zip(length(high))
                .filter(|(low, high)| low <= high)
                .map(|(low, high)| Lengths::Uniform(low, high)),
            ["normal", m, deviation] => {
                mean(m).zip(number(deviation)).map(|(mean, deviation)| Lengths::Normal(mean, deviation))
            }
            ["lognormal", median, sigma] => {
                mean(median).zip(number(sigma)).map(|(median, sigma)| Lengths::LogNormal(median, sigma))
            }
            _ => None,
        };
        lengths.ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_drawn() {
        let mut random = Random::new(1, 1);
        let mut all = |text: &str| -> Vec<u32> {
            let lengths: Lengths = text.parse().expect("a length");
            (0..20_000).map(|_| lengths.draw(&mut random)).collect()
        };
        assert!(all("128").iter().all(|length| *length == 128));
        let uniform = all("uniform:3:6");
        for length in 3..=6 {
            let share = uniform.iter().filter(|drawn| **drawn == length).count() as f64 / 20_000.0;
            assert!((share - 0.25).abs() < 0.02, "{length}: {share}");
        }
        assert!(uniform.iter().all(|length| (3..=6).contains(length)));
        let normal = all("normal:100:10");
        let mean = normal.iter().sum::<u32>() as f64 / 20_000.0;
        assert!((mean - 100.0).abs() < 0.5, "{mean}");
        let mut lognormal = all("lognormal:100:0.5");
        lognormal.sort_unstable();
        // Median 100; the quantile of one sigma is 100 e^0.5.
        assert!((f64::from(lognormal[10_000]) - 100.0).abs() < 2.0);
        assert!((f64::from(lognormal[16_827]) - 164.9).abs() < 6.0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in
            ["", "0", "-3", "uniform:5:4", "uniform:5", "normal:x:1", "normal:10:NaN", "zipf:3", "2000000"]
        {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}
