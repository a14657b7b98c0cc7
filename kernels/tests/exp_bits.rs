//! The bits of `exp`, which kernels and their plain twins share: a change of both would show nowhere else.

use gaterail_kernels::exp;

const POINTS: u32 = 65536;

/// FNV-1a over the bits of each result.
fn hash(points: impl Iterator<Item = f32>) -> u64 {
    points.filter(|x| !x.is_nan()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, x| {
        (hash ^ u64::from(exp(x).to_bits())).wrapping_mul(0x100_0000_01b3)
    })
}

/// The values were computed with numpy by ARITHMETIC.md, 3: products in f64, where they are exact, and sums rounded to odd
/// before they are rounded to f32, as a fused multiply-add does; 20 000 such were checked against fractions.
#[test]
fn exp_has_the_bits_that_were_computed_elsewhere() {
    // All that is not 0 or infinite, evenly, and patterns of bits all over f32.
    let line = (0..POINTS).map(|i| i as f32 * 0.003 - 106.0);
    let patterns = (0..POINTS).map(|i| f32::from_bits(i.wrapping_mul(65521)));
    assert_eq!(hash(line), 0xe30c_9799_eee7_6ed5);
    assert_eq!(hash(patterns), 0x64fb_3902_4637_49b6);
}
