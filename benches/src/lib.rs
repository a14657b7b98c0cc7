//! Shared pieces of the benches: medians with their spread.
#![forbid(unsafe_code)]

use gaterail_kernels::Bytes;

/// The results of several rounds.
pub struct Spread {
    pub median: f64,
    pub smallest: f64,
    pub largest: f64,
    /// Quartiles.
    pub lower: f64,
    pub upper: f64,
}

impl Spread {
    /// Measures `rounds` times, after one round that is not counted.
    pub fn of(rounds: usize, mut measure: impl FnMut() -> f64) -> Spread {
        measure();
        Spread::new((0..rounds.max(1)).map(|_| measure()).collect())
    }

    /// Of at least one value.
    pub fn new(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |share: usize| values[(values.len() - 1) * share / 4];
        let median = values[values.len() / 2];
        Spread { median, smallest: at(0), largest: at(4), lower: at(1), upper: at(3) }
    }
}

/// One line of a table.
pub fn row(what: &str, unit: &str, spread: &Spread, note: &str) -> String {
    let Spread { median, smallest, largest, .. } = spread;
    format!("{what:32}{median:10.1} {unit:9} ({smallest:.1} to {largest:.1})  {note}")
}

/// Any bytes are a packed matrix; speed does not depend on what they say, but for NaN scales, which f16 may hold.
pub fn random_bytes(len: usize) -> Bytes {
    let mut state = 1u64;
    let words: Vec<u64> = (0..len.div_ceil(8))
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // No exponent of all ones in any f16 or f32 that these bits may be read as.
            state & 0xbbff_bbff_bbff_bbff
        })
        .collect();
    Bytes::copied(&words).slice(0..len)
}
