//! Shared pieces of the benches: medians with their spread.
#![forbid(unsafe_code)]

/// The results of several rounds.
pub struct Spread {
    pub median: f64,
    pub smallest: f64,
    pub largest: f64,
}

impl Spread {
    /// Measures `rounds` times, after one round that is not counted.
    pub fn of(rounds: usize, mut measure: impl FnMut() -> f64) -> Spread {
        measure();
        let mut values: Vec<f64> = (0..rounds.max(1)).map(|_| measure()).collect();
        values.sort_by(f64::total_cmp);
        Spread { median: values[values.len() / 2], smallest: values[0], largest: values[values.len() - 1] }
    }
}

/// One line of a table.
pub fn row(what: &str, unit: &str, spread: &Spread, note: &str) -> String {
    let Spread { median, smallest, largest } = spread;
    format!("{what:32}{median:10.1} {unit:9} ({smallest:.1} to {largest:.1})  {note}")
}
