//! How often rows went to each expert, and how many different ones a layer's rows met: counted by the thread that steps, without a
//! lock, an allocation or an atomic addition; anybody may look.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gaterail_proto::LayerId;
use serde::{Deserialize, Serialize};

use super::held::ExpertMath;

/// Hits since the start. One thread counts.
#[derive(Debug, Default)]
pub struct Hits {
    /// By layer: where its experts begin; as many numbers as there are layers, and one.
    starts: Vec<usize>,
    /// In the order of the inventory's slices.
    experts: Box<[Expert]>,
    /// By layer.
    layers: Box<[Layer]>,
}

#[derive(Debug, Default)]
struct Expert {
    hits: AtomicU64,
    /// The last call of its layer that it was hit in.
    call: AtomicU64,
}

#[derive(Debug, Default)]
struct Layer {
    calls: AtomicU64,
    rows: AtomicU64,
    touched: AtomicU64,
}

/// What went to the experts of one layer since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerHits {
    pub layer: u32,
    /// How often the layer had rows, and how many in all.
    pub calls: u64,
    pub rows: u64,
    /// Different experts of each call, summed up: what was read.
    pub touched: u64,
    /// By expert.
    pub hits: Vec<u64>,
}

impl Hits {
    pub fn new(math: &ExpertMath) -> Hits {
        let mut starts = vec![0];
        for layer in &math.layers {
            let experts = layer.as_ref().map_or(0, |layer| layer.experts);
            starts.push(starts[starts.len() - 1] + experts);
        }
        Hits {
            experts: (0..starts[starts.len() - 1]).map(|_| Expert::default()).collect(),
            layers: math.layers.iter().map(|_| Layer::default()).collect(),
            starts,
        }
    }

    /// So many rows of a layer go to these experts.
    pub fn count(&self, layer: LayerId, rows: usize, ids: &[u32]) {
        let at = layer.0 as usize;
        let Some(&[start, end]) = self.starts.get(at..at + 2) else { return };
        let (experts, layer) = (&self.experts[start..end], &self.layers[at]);
        let add = |to: &AtomicU64, more: u64| to.store(to.load(Relaxed) + more, Relaxed);
        add(&layer.calls, 1);
        add(&layer.rows, rows as u64);
        let (call, mut touched) = (layer.calls.load(Relaxed), 0);
        for expert in ids.iter().filter_map(|&id| experts.get(id as usize)) {
            add(&expert.hits, 1);
            touched += u64::from(expert.call.load(Relaxed) != call);
            expert.call.store(call, Relaxed);
        }
        add(&layer.touched, touched);
    }

    /// Of all experts, in the order of the inventory's slices.
    pub fn totals(&self) -> Vec<u64> {
        self.experts.iter().map(|expert| expert.hits.load(Relaxed)).collect()
    }

    /// Of the layers that have experts.
    pub fn layers(&self) -> Vec<LayerHits> {
        let one = |(at, layer): (usize, &Layer)| {
            let experts = &self.experts[self.starts[at]..self.starts[at + 1]];
            let hits: Vec<u64> = experts.iter().map(|expert| expert.hits.load(Relaxed)).collect();
            (!hits.is_empty()).then(|| LayerHits {
                layer: at as u32,
                calls: layer.calls.load(Relaxed),
                rows: layer.rows.load(Relaxed),
                touched: layer.touched.load(Relaxed),
                hits,
            })
        };
        self.layers.iter().enumerate().filter_map(one).collect()
    }
}

impl LayerHits {
    /// What came since an earlier look at the same layer.
    pub fn since(&self, before: &LayerHits) -> LayerHits {
        let less = |now: u64, before: u64| now.saturating_sub(before);
        let each = self.hits.iter().enumerate();
        LayerHits {
            layer: self.layer,
            calls: less(self.calls, before.calls),
            rows: less(self.rows, before.rows),
            touched: less(self.touched, before.touched),
            hits: each.map(|(at, &now)| less(now, before.hits.get(at).copied().unwrap_or(0))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use gaterail_kernels::ops::{Activation, WeightOn};

    use super::super::LayerMath;
    use super::*;

    #[test]
    fn an_expert_that_many_rows_of_a_call_hit_is_touched_once() {
        let layer = LayerMath {
            experts: 4,
            width: 128,
            top_k: 2,
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
        };
        let layers = vec![None, Some(layer), None, Some(layer)];
        let hits = Hits::new(&ExpertMath { hidden: 64, unit: 128, fraction_bits: 24, layers });
        hits.count(LayerId(3), 3, &[0, 1, 1, 0, 0, 1]);
        let before = hits.layers();
        hits.count(LayerId(3), 2, &[1, 2, 1, 3]);
        // Layers without experts, layers and experts that are not there.
        hits.count(LayerId(0), 1, &[0]);
        hits.count(LayerId(7), 1, &[0]);
        hits.count(LayerId(1), 1, &[9, 2]);
        let one = |layer, calls, rows, touched, hits: [u64; 4]| LayerHits {
            layer,
            calls,
            rows,
            touched,
            hits: hits.to_vec(),
        };
        assert_eq!(hits.layers(), [one(1, 1, 1, 1, [0, 0, 1, 0]), one(3, 2, 5, 5, [3, 5, 1, 1])]);
        assert_eq!(hits.layers()[1].since(&before[1]), one(3, 1, 2, 3, [0, 2, 1, 1]));
        assert_eq!(hits.totals(), [0, 0, 1, 0, 3, 5, 1, 1]);
    }
}
