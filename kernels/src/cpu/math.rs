//! Functions of one f32, by ARITHMETIC.md, 3. Plain operations with a fixed order: the compiler may run sixteen at once.

const LOG2E: f32 = std::f32::consts::LOG2_E;
/// The high part of ln 2 has 9 trailing zero bits, so that n * LN2_HI is exact for |n| < 2^9.
const LN2_HI: f32 = 0.693_145_75;
const LN2_LO: f32 = 1.428_606_8e-6;
/// Adding and subtracting it rounds to an integer, half to even.
const ROUND: f32 = 12_582_912.0;
const OVERFLOW: f32 = 88.722_84;
const UNDERFLOW: f32 = -104.0;

/// e^x; at most 1.5 ulp off.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x > UNDERFLOW { x } else { UNDERFLOW };
    let clamped = if clamped < OVERFLOW { clamped } else { OVERFLOW };
    let shifted = clamped * LOG2E + ROUND;
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.0f32 / 5040.0;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    // n lies in [-151, 128], so both halves make normal powers of two. Its integer stands in the low bits of the shifted value; a
    // conversion, which in Rust saturates, would be done one by one.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let value = (p * power_of_two(half)) * power_of_two(n - half);
    let value = if x > OVERFLOW { f32::INFINITY } else { value };
    let value = if x < UNDERFLOW { 0.0 } else { value };
    if x.is_nan() { x } else { value }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x * sigmoid(x), with one division.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln2_parts_are_exact() {
        assert_eq!(LN2_HI.to_bits() & 0x1ff, 0);
        let sum = LN2_HI as f64 + LN2_LO as f64;
        assert!((sum - std::f64::consts::LN_2).abs() < 1e-12, "{sum}");
    }

    #[test]
    fn exp_is_within_one_and_a_half_ulp() {
        let mut worst = 0.0f64;
        let mut bits = 0u32;
        // Every 257th float between -104 and 88.7, both signs; below -87.3 results are subnormal.
        while f32::from_bits(bits) < 104.0 {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x < OVERFLOW && x > UNDERFLOW {
                    let exact = (x as f64).exp();
                    let got = exp(x);
                    let ulp =
                        f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                    worst = worst.max((f64::from(got) - exact).abs() / ulp);
                }
            }
            bits += 257;
        }
        assert!(worst < 1.5, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(88.72).is_finite());
        assert!(exp(f32::NAN).is_nan());
        let tiny = exp(-100.0);
        assert!(tiny > 0.0 && (f64::from(tiny) - (-100f64).exp()).abs() < 2e-45, "{tiny}");
    }
}
