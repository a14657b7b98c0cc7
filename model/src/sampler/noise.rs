//! The random numbers of a position. In: seed, position and which. Out: a number between 0 and 1, always the same one.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) maps a counter
//! and a key to four words without any state, so that a replayed, preempted or guessed position draws the same.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words for a counter and a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let (high0, low0) = multiply(MULTIPLIERS[0], counter[0]);
        let (high1, low1) = multiply(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The number of a position and a draw: uniform in the open interval (0, 1), 52 bits; with one more, 1 would be reached by rounding.
pub fn uniform(seed: u64, position: u64, draw: u32) -> f64 {
    let [a, b, _, _] =
        philox4x32([position as u32, (position >> 32) as u32, draw, 0], [seed as u32, (seed >> 32) as u32]);
    open_unit(u64::from(a) << 32 | u64::from(b))
}

/// The upper 52 bits of `word` and a half, as a share of 2^52: exact, and neither 0 nor 1.
fn open_unit(word: u64) -> f64 {
    ((word >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        let table = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in table {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn the_interval_is_open() {
        assert_eq!((open_unit(0), open_unit(u64::MAX)), (f64::EPSILON / 2.0, 1.0 - f64::EPSILON / 2.0));
    }

    #[test]
    fn seed_position_and_draw_all_matter() {
        let all = [uniform(1, 2, 0), uniform(2, 1, 0), uniform(1, 2 + (1 << 32), 0), uniform(1, 2, 1)];
        assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])) && all[0] == uniform(1, 2, 0));
        let mean = (0..100_000).map(|position| uniform(11, position, 0)).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.003, "{mean}");
    }
}
