//! Experts that one place holds, and what it must know of the model to compute them: a few numbers per layer, no tensor names
//! and no configuration. Both ends of an exchange use it.

use gaterail_kernels::ops::{
    self, Activation, ExpertRows, ExpertsArgs, ExpertsScratch, PartialSums, WeightOn,
};
use gaterail_kernels::{Buffer, KernelError, Stream};
use gaterail_proto::LayerId;

use crate::spec::ModelSpec;
use crate::weights::{ExpertShard, unit_length};

/// How a model's experts compute.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertMath {
    /// H
    pub hidden: usize,
    /// The length of a canonical unit along F.
    pub unit: usize,
    /// Of the fixed-point sums.
    pub fraction_bits: u32,
    /// By layer; `None` for dense ones.
    pub layers: Vec<Option<LayerMath>>,
}

/// One sparse layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerMath {
    /// E
    pub experts: usize,
    /// F
    pub width: usize,
    /// K
    pub top_k: usize,
    pub activation: Activation,
    pub weight_on: WeightOn,
}

/// Rows of one layer with their routing.
#[derive(Clone, Copy)]
pub struct RoutedRows<'a> {
    /// `[T, H]`
    pub x: ExpertRows<'a>,
    /// `[T, K]`; ids of experts that are held elsewhere are passed over.
    pub ids: &'a Buffer<u32>,
    /// `[T, K]`
    pub weights: &'a Buffer<f32>,
    /// K
    pub top_k: usize,
}

impl ExpertMath {
    pub fn of(spec: &ModelSpec) -> ExpertMath {
        let layer = |at: &crate::spec::LayerSpec| {
            at.mlp.sparse().map(|sparse| LayerMath {
                experts: sparse.experts,
                width: sparse.width,
                top_k: sparse.top_k,
                activation: sparse.activation,
                weight_on: sparse.weight_on,
            })
        };
        ExpertMath {
            hidden: spec.hidden,
            unit: unit_length(spec),
            fraction_bits: spec.fraction_bits,
            layers: spec.layers.iter().map(layer).collect(),
        }
    }

    /// The numbers of a sparse layer, if it is one.
    pub fn layer(&self, layer: LayerId) -> Option<&LayerMath> {
        self.layers.get(layer.0 as usize)?.as_ref()
    }

    /// Adds what `shard` contributes to the rows of a layer. Panics for a layer without experts.
    pub fn add(
        &self,
        shard: &ExpertShard,
        layer: LayerId,
        rows: &RoutedRows<'_>,
        stream: &Stream,
        scratch: &mut ExpertsScratch,
        sums: &mut PartialSums,
    ) -> Result<(), KernelError> {
        let at = self.layer(layer).unwrap_or_else(|| panic!("layer {} has no experts", layer.0));
        let args = ExpertsArgs {
            x: rows.x,
            ids: rows.ids,
            weights: rows.weights,
            top_k: rows.top_k,
            pieces: shard.pieces(layer),
            activation: at.activation,
            weight_on: at.weight_on,
            unit: self.unit,
            fraction_bits: self.fraction_bits,
        };
        ops::experts(stream, &args, scratch, sums)
    }
}
