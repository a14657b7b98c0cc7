//! What this machine's kernels reach, measured on weights of a model's shape that say nothing: products, experts, attention,
//! and hops between two processes. Takes a few seconds.
//!
//! | file | |
//! |---|---|
//! | [`kind`] | weights in some form |
//! | [`products`] | projections: what trunk and head are made of |
//! | [`experts`], [`ready`] | a layer's experts, of one process and of several at once |
//! | [`walk`], [`blank`] | steps of a model of the same shape, but for their experts |
//! | [`attention`] | attention over KV |
//! | [`hop`] | frames between two processes that share a core |

mod attention;
mod blank;
mod experts;
pub mod hop;
mod kind;
mod products;
mod ready;
mod walk;

use std::time::{Duration, Instant};

pub use attention::{AttentionShape, attention};
pub use blank::Blank;
pub use experts::{experts, together, weights};
use gaterail_cluster::predict::{Compute, FEW_ROWS};
pub use kind::Kind;
pub use products::products;
pub use ready::{Member, members};
pub use walk::walked;

/// Weights that are gone through, so that they come from memory and not from a cache.
const COLD_BYTES: usize = 160 << 20;
/// Rows that meet a weight where they are many.
const MANY_ROWS: usize = 64;
/// Each figure is measured for so long, and so many times at least; work that takes long is done twice.
const AT_LEAST: (Duration, usize) = (Duration::from_millis(40), 5);
/// And again so often, the others between: who uses the machine for half a second spoils one of them.
const TURNS: usize = 3;
const LONG: Duration = Duration::from_millis(400);

/// Calls `work` again and again. Out: its seconds as they usually are.
fn usual_seconds(mut work: impl FnMut()) -> f64 {
    let [seconds] = usual(|| {
        let begun = Instant::now();
        work();
        [begun.elapsed().as_secs_f64()]
    });
    seconds
}

/// The same for work that tells what each part of it took.
fn usual<const PARTS: usize>(mut work: impl FnMut() -> [f64; PARTS]) -> [f64; PARTS] {
    let started = Instant::now();
    work();
    let mut found: [Vec<f64>; PARTS] = [const { Vec::new() }; PARTS];
    let enough = |count: usize| match started.elapsed() {
        time if time < AT_LEAST.0 => false,
        time => count >= if time > LONG { 1 } else { AT_LEAST.1 },
    };
    while !enough(found[0].len()) {
        found.iter_mut().zip(work()).for_each(|(found, seconds)| found.push(seconds));
    }
    found.map(middle)
}

/// The one in the middle; of two in the middle the smaller one.
fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[(seconds.len() - 1) / 2]
}

/// From the seconds that `bytes` of weights take which meet so many rows. `operations` are those of one row.
fn compute(bytes: f64, operations: f64, mut seconds: impl FnMut(usize) -> f64) -> Compute {
    let mut few: [Vec<f64>; FEW_ROWS.len()] = Default::default();
    let mut many = Vec::new();
    for _ in 0..TURNS {
        few.iter_mut().zip(FEW_ROWS).for_each(|(few, rows)| few.push(seconds(rows as usize)));
        many.push(seconds(MANY_ROWS));
    }
    let (few, many) = (few.map(middle), middle(many));
    let (last, most) = (FEW_ROWS[FEW_ROWS.len() - 1], few[FEW_ROWS.len() - 1]);
    // What each row beyond those costs; never more than all of them together do.
    let beyond = operations * (MANY_ROWS as f64 - last) / (many - most).max(many / MANY_ROWS as f64);
    let mut rates = [0.0; FEW_ROWS.len()];
    for (rate, (rows, seconds)) in rates.iter_mut().zip(FEW_ROWS.into_iter().zip(few)) {
        *rate = operations * rows / seconds;
    }
    Compute {
        read_bytes_per_second: bytes / few[0],
        operations_per_second: beyond,
        few_rows: Some(rates),
        call_seconds: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_gives_back_what_was_measured() {
        // Bound by memory up to four rows, then a millisecond a row and a millisecond for all.
        let seconds = |rows: usize| if rows <= 4 { 5e-3 } else { (rows + 1) as f64 * 1e-3 };
        let compute = compute(5e6, 1e6, seconds);
        assert!((compute.read_bytes_per_second / 1e9 - 1.0).abs() < 1e-9);
        for rows in [1, 2, 4, 8, 16, 64, 512] {
            let back = compute.seconds(1e6 * rows as f64, rows as f64);
            assert!((back / seconds(rows) - 1.0).abs() < 1e-9, "{rows}: {back}");
        }
    }
}
