//! What was hit lately: the engine's thread counts, control looks.

use std::time::{Duration, Instant};

use gaterail_cluster::placement::Popularity;
use gaterail_model::walk::Hits;
use gaterail_proto::ExpertInventory;
use serde::{Deserialize, Serialize};

/// Control looks this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What was counted weighs half as much after so much time in which rows came; quiet time does not count.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Below so many hits of an expert, on average, nothing is said of what is hot.
const HITS_MIN: f64 = 16.0;
/// Experts that are named.
const HOTTEST_MAX: usize = 4;

/// What was hit lately.
pub(super) struct Heat {
    before: Vec<u64>,
    /// In the order of the inventory's slices.
    lately: Vec<f64>,
    at: Instant,
}

/// Which experts rows go to, lately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeatStatus {
    /// Hits of the hottest expert of a layer over the layer's mean, on average over layers; 1 where all are hit alike.
    pub hottest: f64,
    /// Those furthest above their layer's mean.
    pub experts: Vec<HotExpert>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotExpert {
    pub layer: u32,
    pub expert: u32,
    /// Its hits over the mean of its layer.
    pub times_mean: f64,
}

impl Heat {
    pub fn new(now: Instant) -> Heat {
        Heat { before: Vec::new(), lately: Vec::new(), at: now }
    }

    /// Takes in what was hit since the last look. `true` where there is more to say than before.
    pub fn look(&mut self, hits: &Hits, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at);
        if since < LOOK_EVERY {
            return false;
        }
        self.at = now;
        let totals = hits.totals();
        self.before.resize(totals.len(), 0);
        self.lately.resize(totals.len(), 0.0);
        if totals == self.before {
            return false;
        }
        // A look that comes late is not long time in which rows came.
        let served = since.min(2 * LOOK_EVERY).as_secs_f64();
        let kept = 0.5f64.powf(served / HALF_LIFE.as_secs_f64());
        for (lately, (now, before)) in self.lately.iter_mut().zip(totals.iter().zip(&self.before)) {
            *lately = *lately * kept + (now - before) as f64;
        }
        self.before = totals;
        self.is_known()
    }

    fn is_known(&self) -> bool {
        let sum: f64 = self.lately.iter().sum();
        !self.lately.is_empty() && sum >= HITS_MIN * self.lately.len() as f64
    }

    /// For placement.
    pub fn popularity(&self) -> Popularity {
        Popularity(self.lately.clone())
    }

    /// `None` where not enough rows came.
    pub fn status(&self, inventory: &ExpertInventory) -> Option<HeatStatus> {
        let mut left = &self.lately[..];
        let (mut sum, mut layers, mut experts) = (0.0, 0.0, Vec::new());
        for at in inventory.layers.iter().filter(|_| self.is_known()) {
            let (hits, rest) = left.split_at_checked(at.experts as usize)?;
            left = rest;
            let mean = hits.iter().sum::<f64>() / hits.len().max(1) as f64;
            let hottest = (0..at.experts).max_by(|a, b| hits[*a as usize].total_cmp(&hits[*b as usize]));
            // A layer that few rows reach, as the last one, says nothing yet.
            let Some(expert) = hottest.filter(|_| mean >= HITS_MIN) else { continue };
            let times_mean = hits[expert as usize] / mean;
            experts.push(HotExpert { layer: at.layer.0, expert, times_mean });
            sum += times_mean;
            layers += 1.0;
        }
        experts.sort_by(|a, b| b.times_mean.total_cmp(&a.times_mean));
        experts.truncate(HOTTEST_MAX);
        (layers > 0.0).then(|| HeatStatus { hottest: sum / layers, experts })
    }
}

#[cfg(test)]
mod tests {
    use gaterail_kernels::ops::{Activation, WeightOn};
    use gaterail_model::walk::{ExpertMath, LayerMath};
    use gaterail_proto::{LayerExperts, LayerId};

    use super::*;

    fn math() -> ExpertMath {
        let layer = LayerMath {
            experts: 4,
            width: 128,
            top_k: 2,
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
        };
        let layers = vec![None, Some(layer), None, Some(layer)];
        ExpertMath { hidden: 64, unit: 128, fraction_bits: 24, layers }
    }

    fn inventory() -> ExpertInventory {
        let layer = |layer| LayerExperts { layer: LayerId(layer), experts: 4, units: 1, expert_bytes: 1 };
        ExpertInventory { layers: vec![layer(1), layer(3)] }
    }

    #[test]
    fn hits_are_counted_where_they_belong_and_fade() {
        let (hits, start) = (Hits::new(&math()), Instant::now());
        let mut heat = Heat::new(start);
        hits.count(LayerId(3), 1, &[0, 1, 2, 3, 9]);
        // Layers without experts, and those that are not there.
        hits.count(LayerId(0), 1, &[0]);
        hits.count(LayerId(7), 1, &[0]);
        assert!(!heat.look(&hits, start + LOOK_EVERY), "too few to say anything");
        assert_eq!(heat.popularity().0, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(heat.status(&inventory()), None);
        (0..40).for_each(|_| hits.count(LayerId(1), 1, &[1, 2, 1, 1]));
        assert!(!heat.look(&hits, start + LOOK_EVERY * 3 / 2), "too early");
        assert!(heat.look(&hits, start + 2 * LOOK_EVERY));
        let status = heat.status(&inventory()).expect("enough");
        assert_eq!((status.experts[0].layer, status.experts[0].expert), (1, 1));
        assert!((status.experts[0].times_mean - 3.0).abs() < 1e-9, "{status:?}");
        // The other layer was asked for one hit an expert.
        assert!(status.experts.len() == 1 && (status.hottest - 3.0).abs() < 1e-9, "{status:?}");
        let before = heat.popularity().0[1];
        // Quiet time changes nothing, however long.
        assert!(!heat.look(&hits, start + 100 * HALF_LIFE));
        assert_eq!(heat.popularity().0[1], before);
        for second in 0..HALF_LIFE.as_secs() as u32 {
            hits.count(LayerId(3), 1, &[0]);
            heat.look(&hits, start + 101 * HALF_LIFE + second * LOOK_EVERY);
        }
        let after = heat.popularity().0[1] / before;
        assert!((0.48..0.52).contains(&after), "{after}");
    }
}
