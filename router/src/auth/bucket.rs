//! So much a minute: a bucket that fills steadily and holds one minute's worth. Time comes from outside.

use std::time::{Duration, Instant};

const MINUTE: f64 = 60.0;

#[derive(Clone, Debug)]
pub struct Bucket {
    per_minute: f64,
    /// Below zero when more was used than was there.
    level: f64,
    at: Instant,
}

impl Bucket {
    /// Full at `now`.
    pub fn new(per_minute: u64, now: Instant) -> Bucket {
        let per_minute = per_minute.max(1) as f64;
        Bucket { per_minute, level: per_minute, at: now }
    }

    /// Takes `amount`, or says how long to wait until that can be. More than a minute's worth takes a full bucket, or
    /// nobody could ever have it.
    pub fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let needed = (amount as f64).min(self.per_minute);
        if self.level < needed {
            let wait = (needed - self.level) / self.per_minute * MINUTE;
            return Err(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX));
        }
        self.level -= amount as f64;
        Ok(())
    }

    /// Gives back what was not needed, or takes (`amount` below zero) what was used beyond it.
    pub fn give_back(&mut self, amount: f64, now: Instant) {
        self.fill(now);
        self.level = (self.level + amount).min(self.per_minute);
    }

    /// Another rate from now on; what was used stays used.
    pub fn set_rate(&mut self, per_minute: u64, now: Instant) {
        self.fill(now);
        let used = self.per_minute - self.level;
        self.per_minute = per_minute.max(1) as f64;
        self.level = self.per_minute - used;
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed / MINUTE * self.per_minute).min(self.per_minute);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_holds_what_it_says() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut bucket = Bucket::new(60, start);
        for _ in 0..60 {
            assert_eq!(bucket.take(1, start), Ok(()));
        }
        let wait = bucket.take(1, start).unwrap_err();
        assert!((wait.as_secs_f64() - 1.0).abs() < 1e-6, "{wait:?}");
        assert!(bucket.take(1, after(0.5)).is_err());
        assert_eq!(bucket.take(1, after(1.001)), Ok(()));
        assert_eq!(bucket.take(60, after(62.0)), Ok(()), "an idle minute fills it, and no more than it");
        assert!(bucket.take(1, after(62.0)).is_err());
        bucket.give_back(5.0, after(62.0));
        assert_eq!(bucket.take(5, after(62.0)), Ok(()));
        bucket.give_back(-30.0, after(62.0));
        let wait = bucket.take(1, after(62.0)).unwrap_err();
        assert!((wait.as_secs_f64() - 31.0).abs() < 1e-6, "{wait:?}");
    }

    #[test]
    fn more_than_a_minutes_worth_takes_all_of_it() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        assert_eq!(bucket.take(250, start), Ok(()));
        let wait = bucket.take(1, start).unwrap_err();
        assert!(wait > Duration::from_secs(90), "{wait:?}");
    }
}
