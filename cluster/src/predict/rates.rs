//! How fast things are, as measured.

use gaterail_proto::WorkerId;
use serde::Serialize;

/// A place that computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Compute {
    /// What it reads when it is alone on its host.
    pub read_bytes_per_second: f64,
    pub operations_per_second: f64,
    /// Passes before and after each product that cost the same for any size: threads that wait for each other, say.
    pub call_seconds: f64,
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkerRate {
    pub worker: WorkerId,
    pub compute: Compute,
    /// Index into `Rates::hosts`.
    pub host: usize,
    pub hop: Hop,
}

/// The way to a worker, or back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Hop {
    /// Of a small frame, one way.
    pub seconds: f64,
    pub bytes_per_second: f64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// While the workers rest.
    pub router: Compute,
    pub workers: Vec<WorkerRate>,
    /// By host: bytes a second that all on it read together.
    pub hosts: Vec<f64>,
}

/// When each of several is done that read at once from one memory: alone each reads `alone` bytes a second, together they
/// read `together` at most, and who is done leaves its part to the others.
pub fn shared_finish(bytes: &[f64], alone: &[f64], together: f64) -> Vec<f64> {
    let mut left = bytes.to_vec();
    let mut finish = vec![0.0; bytes.len()];
    let mut now = 0.0;
    loop {
        let open: Vec<usize> = (0..left.len()).filter(|&at| left[at] > 0.0).collect();
        if open.is_empty() {
            return finish;
        }
        let all: f64 = open.iter().map(|&at| alone[at]).sum();
        let slowed = (together / all).min(1.0);
        let rate = |at: usize| alone[at] * slowed;
        let next = open.iter().copied().min_by(|&a, &b| (left[a] / rate(a)).total_cmp(&(left[b] / rate(b))));
        let Some(next) = next else { return finish };
        let passed = left[next] / rate(next);
        now += passed;
        for at in open {
            left[at] -= rate(at) * passed;
            // What rounding leaves of those who are done at the same time is nothing.
            if at == next || left[at] <= bytes[at] * 1e-12 {
                (left[at], finish[at]) = (0.0, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shared_finish;

    #[test]
    fn who_is_done_leaves_its_part_to_the_others() {
        // Both at 15; after a second one is done, and the other has 15 left at 20.
        assert_eq!(shared_finish(&[30.0, 15.0], &[20.0, 20.0], 30.0), [1.75, 1.0]);
        // Nobody is slowed where there is enough for all.
        assert_eq!(shared_finish(&[30.0, 15.0], &[20.0, 20.0], 40.0), [1.5, 0.75]);
        assert_eq!(shared_finish(&[30.0, 30.0], &[20.0, 20.0], 30.0), [2.0, 2.0]);
        assert_eq!(shared_finish(&[0.0, 10.0], &[20.0, 20.0], 30.0), [0.0, 0.5]);
        assert_eq!(shared_finish(&[], &[], 30.0), [0.0; 0]);
    }
}
