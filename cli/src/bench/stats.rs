//! What many times say together, as numpy computes it: vLLM's results come from there.

/// In the unit of the values. Nothing was measured: there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub mean: f64,
    pub median: f64,
    /// Of the values themselves, not of an estimate.
    pub std: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Summary {
    pub fn of(mut values: Vec<f64>) -> Option<Summary> {
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let at = |percent| percentile(&values, percent);
        Some(Summary {
            mean,
            median: at(50.0),
            std: variance.sqrt(),
            p90: at(90.0),
            p95: at(95.0),
            p99: at(99.0),
        })
    }

    /// With the names of vLLM's fields.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("mean", self.mean),
            ("median", self.median),
            ("std", self.std),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
        ]
    }
}

/// Of sorted values, on the line between the two neighbours.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = sorted[place as usize];
    let above = sorted[(place as usize + 1).min(sorted.len() - 1)];
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 1, 2, 3, 4, 10 have mean 4, variance (9 + 4 + 1 + 0 + 36) / 5 = 10; place 3.6 is 4 + 0.6 * 6.
    #[test]
    fn a_summary_is_what_numpy_says() {
        let summary = Summary::of(vec![10.0, 1.0, 3.0, 2.0, 4.0]).expect("values");
        let near =
            |value: f64, expected: f64| assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        near(summary.mean, 4.0);
        near(summary.median, 3.0);
        near(summary.std, 10f64.sqrt());
        near(summary.p90, 7.6);
        near(summary.p95, 8.8);
        near(summary.p99, 9.76);
        assert_eq!(Summary::of(vec![2.5]).map(|one| (one.median, one.p99, one.std)), Some((2.5, 2.5, 0.0)));
        assert_eq!(Summary::of(vec![]), None);
    }
}
