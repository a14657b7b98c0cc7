//! The model that a router serves, as Welcome tells it; checked, since a router is a stranger.

use std::path::PathBuf;
use std::sync::Arc;

use gaterail_kernels::ops::{Activation, UNIT_MIN, WeightOn};
use gaterail_kernels::wire::PieceShape;
use gaterail_model::walk::{ExpertMath, LayerMath};
use gaterail_model::weights::Precision;
use gaterail_proto::grpc::v1;
use gaterail_proto::{ExpertInventory, ExpertSlice, LayerExperts, LayerId};

/// No model has more, and sizes made of these can be counted.
const HIDDEN_MAX: u32 = 1 << 20;
const WIDTH_MAX: u32 = 1 << 24;
const UNIT_MAX: u32 = 1 << 20;
const EXPERTS_MAX: u32 = 1 << 16;
const TOP_K_MAX: u32 = 1 << 10;
const LAYERS_MAX: u32 = 1 << 12;
const FRACTION_BITS_MAX: u32 = 48;
const TEXT_BYTES_MAX: usize = 4096;

/// A model whose experts this worker may compute.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedModel {
    pub path: Option<PathBuf>,
    pub digest: String,
    pub precision: Precision,
    pub math: Arc<ExpertMath>,
    /// Without bytes, which only the router knows.
    pub inventory: ExpertInventory,
}

impl ServedModel {
    /// The error is a sentence about the router's message.
    pub fn new(message: v1::Model) -> Result<ServedModel, String> {
        let v1::Model { path, digest, precision, hidden, unit, fraction_bits, layers } = message;
        if path.len() > TEXT_BYTES_MAX || digest.len() > TEXT_BYTES_MAX {
            return Err("a model's path or digest is too long".to_string());
        }
        let in_range = |n: u32, max: u32| (1..=max).contains(&n);
        if !in_range(hidden, HIDDEN_MAX)
            || !in_range(unit, UNIT_MAX)
            || !(unit as usize).is_multiple_of(UNIT_MIN)
            || fraction_bits > FRACTION_BITS_MAX
        {
            return Err(format!("a model of width {hidden}, units of {unit}, {fraction_bits} fraction bits"));
        }
        let mut math =
            ExpertMath { hidden: hidden as usize, unit: unit as usize, fraction_bits, layers: Vec::new() };
        let mut inventory = ExpertInventory::default();
        for at in layers {
            if at.layer >= LAYERS_MAX || (at.layer as usize) < math.layers.len() {
                return Err(format!("layer {} out of order, or beyond all", at.layer));
            }
            math.layers.resize(at.layer as usize, None);
            let units = at.width.div_ceil(unit);
            let (layer, experts) = (LayerId(at.layer), at.experts);
            math.layers.push(Some(layer_math(at)?));
            inventory.layers.push(LayerExperts { layer, experts, units, expert_bytes: 0 });
        }
        Ok(ServedModel {
            path: Some(PathBuf::from(path)).filter(|path| path.is_absolute()),
            digest,
            precision: precision_of(&precision)?,
            math: Arc::new(math),
            inventory,
        })
    }

    /// What the piece of a slice of the inventory has to be.
    pub fn shape(&self, slice: &ExpertSlice) -> PieceShape {
        let ExpertMath { hidden, unit, .. } = *self.math;
        let width = self.math.layer(slice.layer).map_or(0, |at| at.width);
        let end = (slice.units.end as usize * unit).min(width);
        let start = slice.units.start as usize * unit;
        PieceShape { expert: slice.expert.0, hidden, run: end - start, first: start == 0, unit }
    }
}

fn layer_math(at: v1::LayerMath) -> Result<LayerMath, String> {
    let in_range = |n: u32, max: u32| (1..=max).contains(&n);
    if !in_range(at.experts, EXPERTS_MAX) || !in_range(at.width, WIDTH_MAX) || !in_range(at.top_k, TOP_K_MAX)
    {
        let v1::LayerMath { layer, experts, width, top_k, .. } = at;
        return Err(format!("layer {layer} with {experts} experts of width {width}, {top_k} a token"));
    }
    let activation = match at.activation.as_str() {
        "swiglu" => Activation::SwiGlu,
        "clamped_swiglu" => Activation::ClampedSwiGlu { alpha: at.alpha, limit: at.limit },
        _ => return Err(format!("layer {} with an activation that is not known here", at.layer)),
    };
    Ok(LayerMath {
        experts: at.experts as usize,
        width: at.width as usize,
        top_k: at.top_k as usize,
        activation,
        weight_on: if at.weight_on_input { WeightOn::Input } else { WeightOn::Output },
    })
}

fn precision_of(name: &str) -> Result<Precision, String> {
    match name {
        "stored" => Ok(Precision::AsStored),
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        "int8" => Ok(Precision::Int8),
        "int4" => Ok(Precision::Int4),
        _ => Err("a precision that is not known here".to_string()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn message() -> v1::Model {
        let layer = |layer| v1::LayerMath {
            layer,
            experts: 8,
            width: 300,
            activation: "swiglu".to_string(),
            top_k: 2,
            ..v1::LayerMath::default()
        };
        v1::Model {
            path: "/models/a".to_string(),
            digest: "00".to_string(),
            precision: "int4".to_string(),
            hidden: 64,
            unit: 128,
            fraction_bits: 24,
            layers: vec![layer(1), layer(3)],
        }
    }

    #[test]
    fn a_model_is_read() {
        let served = ServedModel::new(message()).unwrap();
        assert_eq!(
            served.math.layers.iter().map(Option::is_some).collect::<Vec<_>>(),
            [false, true, false, true]
        );
        assert_eq!(served.inventory.layers.iter().map(|at| at.units).collect::<Vec<_>>(), [3, 3]);
        let slice = served.inventory.slices().next().unwrap();
        assert_eq!(served.shape(&slice).run, 300);
        // No file of ours is named by a relative path.
        let nowhere = ServedModel::new(v1::Model { path: "a".to_string(), ..message() }).unwrap();
        assert_eq!(nowhere.path, None);
    }

    #[test]
    fn a_model_that_cannot_be_is_refused() {
        type Change = fn(&mut v1::Model);
        let changes: [Change; 13] = [
            |model| model.hidden = 0,
            |model| model.hidden = u32::MAX,
            |model| model.unit = 0,
            |model| model.unit = 100,
            |model| model.fraction_bits = 64,
            |model| model.precision = "int2".to_string(),
            |model| model.digest = "x".repeat(5000),
            |model| model.layers[1].layer = 1,
            |model| model.layers[1].layer = u32::MAX,
            |model| model.layers[0].experts = 0,
            |model| model.layers[0].width = u32::MAX,
            |model| model.layers[0].top_k = 0,
            |model| model.layers[0].activation = "relu".to_string(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut model = message();
            change(&mut model);
            assert!(ServedModel::new(model).is_err(), "change {index}");
        }
    }
}
