//! Shards as messages, and back: what comes is checked against what the model has.

use std::collections::HashMap;

use crate::grpc::v1;
use crate::{ExpertId, ExpertInventory, ExpertSlice, LayerExperts, LayerId, ShardSpec, UnitRange};

impl ShardSpec {
    /// Layer by layer, in the shard's order.
    pub fn to_message(&self) -> Vec<v1::Slices> {
        let layers = self.slices.chunk_by(|a, b| a.layer == b.layer);
        layers
            .map(|slices| v1::Slices {
                layer: slices[0].layer.0,
                slices: slices.iter().flat_map(|at| [at.expert.0, at.units.start, at.units.end]).collect(),
            })
            .collect()
    }

    /// The shard that a message lists: units of the inventory's experts, none of them twice. The error is a sentence.
    pub fn from_message(message: &[v1::Slices], inventory: &ExpertInventory) -> Result<ShardSpec, String> {
        let layers: HashMap<u32, &LayerExperts> =
            inventory.layers.iter().map(|at| (at.layer.0, at)).collect();
        let mut slices = Vec::new();
        for run in message {
            let layer = run.layer;
            let at = layers.get(&layer).ok_or_else(|| format!("layer {layer} has no experts"))?;
            if !run.slices.len().is_multiple_of(3) {
                return Err(format!("{} numbers for slices of layer {layer}", run.slices.len()));
            }
            for slice in run.slices.chunks_exact(3) {
                let (expert, units) = (slice[0], UnitRange { start: slice[1], end: slice[2] });
                if expert >= at.experts {
                    return Err(format!("expert {expert} of layer {layer}, which has {}", at.experts));
                }
                if units.start >= units.end || units.end > at.units {
                    let UnitRange { start, end } = units;
                    return Err(format!(
                        "units {start}..{end} of expert {expert} of layer {layer}, which has {}",
                        at.units
                    ));
                }
                slices.push(ExpertSlice { layer: LayerId(layer), expert: ExpertId(expert), units });
            }
        }
        check_disjoint(&slices)?;
        Ok(ShardSpec { slices })
    }
}

fn check_disjoint(slices: &[ExpertSlice]) -> Result<(), String> {
    let mut sorted: Vec<&ExpertSlice> = slices.iter().collect();
    sorted.sort_unstable_by_key(|at| (at.layer, at.expert, at.units.start));
    let overlap = sorted.windows(2).find(|pair| {
        (pair[0].layer, pair[0].expert) == (pair[1].layer, pair[1].expert)
            && pair[1].units.start < pair[0].units.end
    });
    overlap.map_or(Ok(()), |pair| {
        let ExpertSlice { layer, expert, units } = pair[1];
        Err(format!("unit {} of expert {} of layer {} twice", units.start, expert.0, layer.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> ExpertInventory {
        let at = |layer| LayerExperts { layer: LayerId(layer), experts: 3, units: 4, expert_bytes: 0 };
        ExpertInventory { layers: vec![at(1), at(5)] }
    }

    #[test]
    fn a_shard_comes_back_as_it_went() {
        let whole = ShardSpec::whole(&inventory());
        let message = whole.to_message();
        assert_eq!(message.iter().map(|at| at.layer).collect::<Vec<_>>(), [1, 5]);
        assert_eq!(ShardSpec::from_message(&message, &inventory()), Ok(whole));
        assert_eq!(ShardSpec::from_message(&[], &inventory()), Ok(ShardSpec::default()));
    }

    #[test]
    fn what_the_model_does_not_have_is_refused() {
        for (layer, slices, says) in [
            (0, vec![0, 0, 1], "layer 0 has no experts"),
            (1, vec![0, 0], "2 numbers"),
            (1, vec![3, 0, 1], "expert 3 of layer 1"),
            (1, vec![0, 2, 2], "units 2..2"),
            (1, vec![0, 0, 5], "units 0..5"),
            (1, vec![0, 3, 1], "units 3..1"),
            (5, vec![2, 0, 3, 2, 2, 4], "unit 2 of expert 2 of layer 5 twice"),
        ] {
            let message = [v1::Slices { layer, slices }];
            let error = ShardSpec::from_message(&message, &inventory()).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }
}
