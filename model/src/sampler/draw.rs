//! Temperature, min-p, top-k, top-p, and the draw by inverse transform.
//!
//! Whatever is kept, the draw runs through it in the order of the ids. Nothing is sorted, and where top-p cuts is never
//! looked for: a token is drawn from all, and whether it lies in the nucleus is the weight of those that rank before it.
//! One that does not is drawn again, with the position's next random number, from those before it. That is the
//! distribution of the nucleus, for the nucleus is among them (rejection from a larger set), in 1 + ln(1 / top_p)
//! passes or fewer in the mean.
//!
//! Of tokens tied at the border of top-k the lowest ids stay, so that there are never more than k; vLLM keeps all of the
//! tied ones.

use super::params::SamplingParams;
use super::scan::{BLOCK, Before, Maxima, Ranked, Weights};

/// A block's sum of fewer weights is never larger, for their order is fixed and rounding is monotone. Only the block in
/// which the last token lies is summed in two parts: six roundings of f32.
pub const MARGIN: f64 = 1e-5;

/// Draws a token from the adjusted `logits` [V]; `noise` gives the position's random numbers in (0, 1), one after the other.
pub fn draw(logits: &[f32], maxima: &Maxima, params: &SamplingParams, noise: impl Fn(u32) -> f64) -> u32 {
    let floor = match params.min_p {
        0.0 => f32::NEG_INFINITY,
        // exp((floor - max) / temperature) = min_p
        min_p => maxima.max + min_p.ln() * params.temperature,
    };
    let weights = Weights::new(maxima.max, params.temperature, floor);
    if !(1..logits.len()).contains(&(params.top_k as usize)) {
        return Pool { logits, maxima, weights }.draw(params.top_p, noise);
    }
    // In the order of the ids, so that what ranks first here does so there.
    let kept = maxima.largest(logits, params.top_k as usize);
    let logits: Vec<f32> = kept.iter().map(|ranked| ranked.logit()).collect();
    let maxima = Maxima::of_usable(&logits);
    kept[Pool { logits: &logits, maxima: &maxima, weights }.draw(params.top_p, noise) as usize].id()
}

/// What is drawn from.
struct Pool<'a> {
    logits: &'a [f32],
    maxima: &'a Maxima,
    weights: Weights,
}

impl Pool<'_> {
    fn draw(&self, top_p: f32, noise: impl Fn(u32) -> f64) -> u32 {
        let first = self.maxima.argmax(self.logits);
        let mut sums = self.weights.sums(self.logits, self.maxima);
        let mut mass: f64 = sums.iter().sum();
        let nucleus = mass * f64::from(top_p);
        let mut end = None;
        // Every token that is drawn ranks before the last one, so that this ends with the first at the latest.
        for draw in 0.. {
            let drawn = self.at(mass * noise(draw), &sums, end);
            if top_p >= 1.0 || drawn.id() == first {
                return drawn.id();
            }
            // What is left out is known long before all is summed. The margin is more than rounding can move a sum.
            let before = Before { end: drawn, sums: &sums, enough: mass - nucleus + mass * MARGIN };
            let Some(fewer) = self.weights.sums_before(self.logits, self.maxima, before) else {
                return drawn.id();
            };
            sums = fewer;
            mass = sums.iter().sum();
            if mass < nucleus {
                return drawn.id();
            }
            end = Some(drawn);
        }
        first
    }

    /// The token before `end` where the weights, summed in the order of the ids, pass `target`.
    fn at(&self, target: f64, sums: &[f64], end: Option<Ranked>) -> Ranked {
        let mut sum = 0.0;
        // Rounding may leave the target behind the end: then it is the last one that has a weight.
        let mut found = (0, 0.0);
        for (block, weight) in sums.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            found = (block, sum);
            sum += weight;
            if sum > target {
                break;
            }
        }
        let (start, mut sum) = (found.0 * BLOCK, found.1);
        let mut last = Ranked::new(self.maxima.max, self.maxima.argmax(self.logits));
        for (i, logit) in self.logits.iter().enumerate().skip(start).take(BLOCK) {
            let ranked = Ranked::new(*logit, i as u32);
            let weight = f64::from(self.weights.of(*logit));
            if weight > 0.0 && end.is_none_or(|end| ranked < end) {
                last = ranked;
                sum += weight;
                if sum > target {
                    break;
                }
            }
        }
        last
    }
}
