//! Experts on the CPU, by ARITHMETIC.md, 6: gate and up for the rows of an expert, activation, then down unit by unit
//! into fixed point.

use crate::cpu::lanes::{Lanes, by_isa};

/// Terms of one unit on their way into the sums of one row: `y[h] = dot(a, down[h])`, h a run of columns.
pub(crate) struct Terms<'a> {
    pub y: &'a [f32],
    /// Multiplies every term, if the gate scales the output.
    pub weight: Option<f32>,
    pub fraction_bits: u32,
}

by_isa! {
    /// Adds the terms in fixed point; sets `poisoned` where one is NaN, infinite or too large.
    fn add_terms(terms: Terms<'_>, sums: &mut [i64], poisoned: &mut bool) = accumulate
}

#[inline(always)]
fn accumulate<L: Lanes>(terms: Terms<'_>, sums: &mut [i64], poisoned: &mut bool) {
    let unit = (1u64 << terms.fraction_bits) as f64;
    let limit = (1u64 << (52 - terms.fraction_bits)) as f32;
    let mut bad = false;
    for (sum, &y) in sums.iter_mut().zip(terms.y) {
        let y = match terms.weight {
            Some(weight) => weight * y,
            None => y,
        };
        let fits = y.abs() < limit;
        bad |= !fits;
        let y = if fits { y } else { 0.0 };
        *sum += round_half_even(f64::from(y) * unit);
    }
    *poisoned |= bad;
}

/// Exact for |x| < 2^52: adding 1.5 * 2^52 leaves the integer in the low bits, rounded half to even.
#[inline(always)]
fn round_half_even(x: f64) -> i64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    // |x| = 2^52 - something would still fit: the sum stays below 2^53.
    ((x + MAGIC).to_bits() as i64).wrapping_sub(MAGIC.to_bits() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_to_even_and_exact() {
        for (x, expected) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.49, 3), (-7.51, -8)] {
            assert_eq!(round_half_even(x), expected, "{x}");
        }
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let x = ((state >> 11) as i64 - (1 << 52)) as f64 / 2f64.powi((state % 50) as i32);
            if x.abs() < 2f64.powi(51) {
                assert_eq!(round_half_even(x), x.round_ties_even() as i64, "{x}");
            }
        }
    }
}
