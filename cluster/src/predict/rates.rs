//! How fast things are, as measured.

use gaterail_proto::WorkerId;
use serde::Serialize;

use super::shape::Step;

/// A place that computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Compute {
    /// What it reads when it is alone on its host.
    pub read_bytes_per_second: f64,
    /// Where many rows meet every weight.
    pub operations_per_second: f64,
    /// Where only 1, 2, 4 and 8 do; without it as many as where there are many.
    pub few_rows: Option<[f64; 4]>,
    /// What a layer costs for any size: threads that wait for each other, say.
    pub call_seconds: f64,
}

impl Compute {
    /// Seconds that `operations` take where each weight meets `rows` rows, without those of reading the weights.
    pub fn seconds(&self, operations: f64, rows: f64) -> f64 {
        let Some(few) = self.few_rows.filter(|_| rows > 0.0) else {
            return operations / self.operations_per_second;
        };
        operations / rows * self.per_weight(&few, rows)
    }

    /// Seconds of one operation for each of `rows` rows: along straight lines between what was measured.
    fn per_weight(&self, few: &[f64; 4], rows: f64) -> f64 {
        let at = |index: usize| FEW_ROWS[index] / few[index];
        let last = FEW_ROWS.len() - 1;
        if rows <= FEW_ROWS[0] {
            return at(0);
        }
        match FEW_ROWS.iter().position(|&measured| rows <= measured) {
            Some(up) => {
                let (low, high) = (FEW_ROWS[up - 1], FEW_ROWS[up]);
                at(up - 1) + (at(up) - at(up - 1)) * (rows - low) / (high - low)
            }
            None => at(last) + (rows - FEW_ROWS[last]) / self.operations_per_second,
        }
    }
}

/// The rows of `Compute::few_rows`.
pub const FEW_ROWS: [f64; 4] = [1.0, 2.0, 4.0, 8.0];

/// A worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerRate {
    pub worker: WorkerId,
    pub compute: Compute,
    /// What was measured of whole experts and of parts of them; without any, `compute` and what the host reads say it.
    pub cuts: Vec<Cut>,
    /// Index into `Rates::hosts`.
    pub host: usize,
    pub hop: Hop,
}

/// Experts of which a worker holds a part: small matrices reach less than large ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cut {
    /// 1 is whole ones.
    pub part: f64,
    /// While the host's other workers rest, and while they compute the same.
    pub alone: Compute,
    pub beside: Compute,
}

impl WorkerRate {
    /// The cut that is nearest.
    pub fn cut(&self, part: f64) -> Option<&Cut> {
        let off = |cut: &Cut| (cut.part / part).ln().abs();
        self.cuts.iter().min_by(|a, b| off(a).total_cmp(&off(b)))
    }
}

/// A step of the trunk as it was walked, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Walked {
    pub step: Step,
    /// Attention and dense layers, norms and all.
    pub trunk: f64,
    pub gate: f64,
    /// Embedding and head.
    pub ends: f64,
    /// Tokens out of logits.
    pub sampling: f64,
}

/// The way to a worker, or back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Hop {
    /// Of a small frame, one way.
    pub seconds: f64,
    pub bytes_per_second: f64,
    /// Sums on their way home, written, read and added up.
    pub home_bytes_per_second: f64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// The trunk, while the workers rest.
    pub router: Compute,
    /// Attention over KV: bytes of KV, and operations of its products.
    pub attention: Compute,
    /// Steps of the trunk that were walked: what they say counts more than the two above.
    pub walked: Vec<Walked>,
    /// The experts where the router's process computes them.
    pub own: Compute,
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
    use super::{Compute, shared_finish};

    #[test]
    fn few_rows_cost_what_was_measured_and_more_rows_the_rate_of_many() {
        let many = Compute {
            read_bytes_per_second: 1.0,
            operations_per_second: 10.0,
            few_rows: None,
            call_seconds: 0.0,
        };
        assert_eq!(many.seconds(40.0, 4.0), 4.0);
        let few = Compute { few_rows: Some([2.0, 4.0, 4.0, 8.0]), ..many };
        // A weight takes 0.5 s for one row and for two, 1 s for four and for eight, 0.1 s for each more.
        for (rows, each) in
            [(0.5, 0.5), (1.0, 0.5), (2.0, 0.5), (3.0, 0.75), (4.0, 1.0), (8.0, 1.0), (18.0, 2.0)]
        {
            assert!((few.seconds(rows * 6.0, rows) - 6.0 * each).abs() < 1e-12, "{rows}");
        }
    }

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
