//! A histogram with fixed buckets; many threads record, nobody waits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last takes all above.
    counts: Vec<AtomicU64>,
    /// Bits of an f64.
    sum: AtomicU64,
}

/// A histogram as it was at one moment.
pub struct Picture {
    /// Upper bounds and how many values were at most that.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

impl Histogram {
    /// `bounds` ascend.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum: AtomicU64::new(0f64.to_bits()) }
    }

    pub fn record(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        let add = |bits: u64| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }

    pub fn picture(&self) -> Picture {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let mut total = 0;
        let mut at_most = |count: &u64| {
            total += count;
            total
        };
        let buckets = self.bounds.iter().copied().zip(counts.iter().map(&mut at_most)).collect();
        Picture { buckets, count: counts.iter().sum(), sum: f64::from_bits(self.sum.load(Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_their_buckets() {
        let histogram = Histogram::new(&[1.0, 2.0, 5.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 7.0] {
            histogram.record(value);
        }
        let picture = histogram.picture();
        assert_eq!(picture.buckets, [(1.0, 2), (2.0, 4), (5.0, 4)]);
        assert_eq!((picture.count, picture.sum), (5, 12.0));
    }
}
