//! Which experts are used, and how often two precisions agree on them.

use gaterail_model::walk::Choice;

/// Of one sparse layer.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// Its number in the model.
    pub layer: u32,
    /// How often each expert was chosen, `[E]`.
    pub chosen: Vec<u64>,
    pub rows: u64,
    /// Rows for which both models chose the same experts, in whatever order.
    pub same: u64,
}

impl Layer {
    /// The least and the most used expert's share, of the share that each would have if all had the same.
    pub fn spread(&self) -> (f64, f64) {
        let fair = self.chosen.iter().sum::<u64>() as f64 / self.chosen.len().max(1) as f64;
        let share = |count: Option<&u64>| count.copied().unwrap_or(0) as f64 / fair.max(f64::MIN_POSITIVE);
        (share(self.chosen.iter().min()), share(self.chosen.iter().max()))
    }

    pub fn agreement(&self) -> f64 {
        self.same as f64 / self.rows.max(1) as f64
    }
}

/// Of all sparse layers, in their order.
#[derive(Debug, Default)]
pub struct ExpertUse {
    pub layers: Vec<Layer>,
    /// E of each layer of the model, 0 where it is dense.
    experts: Vec<usize>,
}

impl ExpertUse {
    pub fn new(experts: Vec<usize>) -> ExpertUse {
        ExpertUse { layers: Vec::new(), experts }
    }

    /// One step of the model, and of the one beside it.
    pub fn add(&mut self, choices: &[Choice], beside: Option<&[Choice]>) {
        for (index, choice) in choices.iter().enumerate() {
            let layer = choice.layer.0;
            let at = self.layers.iter().position(|known| known.layer == layer).unwrap_or_else(|| {
                let chosen = vec![0; self.experts[layer as usize]];
                self.layers.push(Layer { layer, chosen, ..Layer::default() });
                self.layers.len() - 1
            });
            let known = &mut self.layers[at];
            choice.ids.iter().for_each(|&id| known.chosen[id as usize] += 1);
            known.rows += (choice.ids.len() / choice.top_k) as u64;
            if let Some(other) = beside.map(|beside| &beside[index]) {
                let pairs = choice.ids.chunks_exact(choice.top_k).zip(other.ids.chunks_exact(other.top_k));
                known.same += pairs.filter(|(one, two)| sorted(one) == sorted(two)).count() as u64;
            }
        }
    }
}

fn sorted(ids: &[u32]) -> Vec<u32> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use gaterail_model::walk::Choice;

    use super::ExpertUse;

    #[test]
    fn shares_and_agreement() {
        let choice = |layer, ids: &[u32]| Choice {
            layer: gaterail_proto::LayerId(layer),
            top_k: 2,
            ids: ids.to_vec(),
        };
        let mut used = ExpertUse::new(vec![0, 4]);
        used.add(&[choice(1, &[0, 1, 0, 2])], Some(&[choice(1, &[1, 0, 0, 3])]));
        used.add(&[choice(1, &[0, 2])], Some(&[choice(1, &[2, 0])]));
        let layer = &used.layers[0];
        assert_eq!(
            (layer.layer, layer.chosen.as_slice(), layer.rows, layer.same),
            (1, [3, 1, 2, 0].as_slice(), 3, 2)
        );
        // Six choices of four experts: one and a half would be fair.
        assert_eq!(layer.spread(), (0.0, 2.0));
    }
}
