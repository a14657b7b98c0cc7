//! What experts a model has, and which parts of them one place holds.

use serde::{Deserialize, Serialize};

use crate::ids::{ExpertId, LayerId};

/// The experts of one sparse layer. A unit is the canonical piece of an expert along F (ARITHMETIC.md, 6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerExperts {
    pub layer: LayerId,
    /// E
    pub experts: u32,
    /// Units of each expert.
    pub units: u32,
    /// Stored bytes of one whole expert.
    pub expert_bytes: u64,
}

/// The experts of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertInventory {
    pub layers: Vec<LayerExperts>,
}

/// Units `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UnitRange {
    pub start: u32,
    pub end: u32,
}

/// A run of units of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertSlice {
    pub layer: LayerId,
    pub expert: ExpertId,
    pub units: UnitRange,
}

/// What one place holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSpec {
    pub slices: Vec<ExpertSlice>,
}

impl ExpertInventory {
    /// Every expert, whole.
    pub fn slices(&self) -> impl Iterator<Item = ExpertSlice> + '_ {
        self.layers.iter().flat_map(|at| {
            let units = UnitRange { start: 0, end: at.units };
            (0..at.experts).map(move |expert| ExpertSlice {
                layer: at.layer,
                expert: ExpertId(expert),
                units,
            })
        })
    }
}

impl ShardSpec {
    /// All experts of all layers.
    pub fn whole(inventory: &ExpertInventory) -> ShardSpec {
        ShardSpec { slices: inventory.slices().collect() }
    }
}
