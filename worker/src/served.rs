//! The model that a router serves, as Welcome tells it; checked, since a router is a stranger.

use std::path::PathBuf;
use std::sync::Arc;

use gaterail_kernels::Codes;
use gaterail_kernels::cuda::{ExpertForm, ExpertsOutline, Properties, check_experts};
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
/// Different forms of a layer's matrices, and what a form is called.
const FORMS_MAX: usize = 16;
const FORM_BYTES_MAX: usize = 64;

/// A model whose experts this worker may compute.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedModel {
    pub path: Option<PathBuf>,
    pub digest: String,
    pub precision: Precision,
    pub math: Arc<ExpertMath>,
    /// Without bytes, which only the router knows.
    pub inventory: ExpertInventory,
    /// Of the inventory's layers: in which forms the experts are run.
    pub outlines: Vec<ExpertsOutline>,
    /// In which GPUs compute them.
    pub for_cards: Option<Precision>,
}

impl ServedModel {
    /// The error is a sentence about the router's message.
    pub fn new(message: v1::Model) -> Result<ServedModel, String> {
        let v1::Model { path, digest, precision, hidden, unit, fraction_bits, layers, for_cards } = message;
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
        let (mut inventory, mut outlines) = (ExpertInventory::default(), Vec::new());
        for at in layers {
            if at.layer >= LAYERS_MAX || (at.layer as usize) < math.layers.len() {
                return Err(format!("layer {} out of order, or beyond all", at.layer));
            }
            math.layers.resize(at.layer as usize, None);
            let units = at.width.div_ceil(unit);
            let (layer, experts) = (LayerId(at.layer), at.experts);
            outlines.push(outline(&at, unit)?);
            math.layers.push(Some(layer_math(at)?));
            inventory.layers.push(LayerExperts { layer, experts, units, expert_bytes: 0 });
        }
        Ok(ServedModel {
            path: Some(PathBuf::from(path)).filter(|path| path.is_absolute()),
            digest,
            precision: precision_of(&precision)?,
            math: Arc::new(math),
            inventory,
            outlines,
            for_cards: if for_cards.is_empty() { None } else { Some(precision_of(&for_cards)?) },
        })
    }

    /// Whether a GPU has kernels for all experts; if not, what would work. Nothing is loaded for it.
    pub fn check_card(&self, card: &Properties) -> Result<(), String> {
        let checked = self.inventory.layers.iter().zip(&self.outlines).try_for_each(|(at, outline)| {
            let told = |error| format!("layer {}: {error}", at.layer.0);
            check_experts(outline, card.shared_bytes).map_err(told)
        });
        checked.map_err(|why| {
            let other = match self.for_cards {
                Some(Precision::Int4) => "serve them with --weights int4, or ",
                Some(Precision::Int8) => "serve them with --weights int8, or ",
                _ => "",
            };
            format!("it serves experts that this card cannot compute ({why}): {other}take a worker with --device cpu")
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

fn outline(at: &v1::LayerMath, unit: u32) -> Result<ExpertsOutline, String> {
    let forms = |forms: &[v1::ExpertForm]| -> Result<Vec<ExpertForm>, String> {
        if forms.len() > FORMS_MAX || forms.iter().any(|form| form.codes.len() > FORM_BYTES_MAX) {
            return Err(format!("layer {} with forms of experts that are none", at.layer));
        }
        Ok(forms.iter().map(form).collect())
    };
    Ok(ExpertsOutline {
        gate_up: forms(&at.gate_up)?,
        down: forms(&at.down)?,
        experts: at.experts as usize,
        unit: unit as usize,
    })
}

fn form(form: &v1::ExpertForm) -> ExpertForm {
    let codes = match form.codes.as_str() {
        "int4" => Codes::INT4,
        "mxfp4" => Codes::MXFP4,
        "int8" => Codes::Int8,
        other => return ExpertForm::Plain(other.to_string()),
    };
    match form.group {
        0 => ExpertForm::Plain(form.codes.clone()),
        group => ExpertForm::Packed { codes, group: group as usize },
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

    fn form(codes: &str, group: u32) -> v1::ExpertForm {
        v1::ExpertForm { codes: codes.to_string(), group }
    }

    pub fn message() -> v1::Model {
        let layer = |layer| v1::LayerMath {
            layer,
            experts: 8,
            width: 300,
            activation: "swiglu".to_string(),
            top_k: 2,
            gate_up: vec![form("int4", 64)],
            down: vec![form("int4", 64)],
            ..v1::LayerMath::default()
        };
        v1::Model {
            path: "/models/a".to_string(),
            digest: "00".to_string(),
            precision: "int4".to_string(),
            for_cards: "int4".to_string(),
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
    fn what_a_card_has_no_kernel_for_is_refused_with_what_would_work() {
        let card = Properties {
            ordinal: 0,
            name: String::new(),
            architecture: String::new(),
            multiprocessors: 1,
            shared_bytes: 99 << 10,
            memory_bytes: 0,
            cache_bytes: 0,
        };
        type Change = fn(&mut v1::Model);
        let refused = |change: Change| {
            let mut model = message();
            change(&mut model);
            ServedModel::new(model).unwrap().check_card(&card).err()
        };
        assert_eq!(refused(|_| ()), None);
        let plain: Change = |model| model.layers[1].down = vec![form("bf16 as stored", 0)];
        let why = refused(plain).expect("plain downs");
        assert!(why.contains("layer 3: the kernels have no form for experts in bf16 as stored"), "{why}");
        assert!(why.contains("--weights int4") && why.contains("--device cpu"), "{why}");
        let mixed: Change = |model| {
            model.layers[0].down.push(form("int4", 128));
            model.for_cards.clear();
        };
        let why = refused(mixed).expect("two forms");
        assert!(why.contains("4-bit codes in groups of 128") && !why.contains("--weights"), "{why}");
        // A code without a group is none, and what is not known is not computed.
        assert!(refused(|model| model.layers[0].down = vec![form("int4", 0)]).is_some());
        assert!(refused(|model| model.layers[0].gate_up = vec![form("int3", 64)]).is_some());
        assert!(refused(|model| model.layers[0].gate_up = vec![form("int8", 128)]).is_some());
    }

    #[test]
    fn a_model_that_cannot_be_is_refused() {
        type Change = fn(&mut v1::Model);
        let changes: [Change; 16] = [
            |model| model.for_cards = "int2".to_string(),
            |model| model.layers[0].down = vec![form("int4", 64); 17],
            |model| model.layers[0].gate_up[0].codes = "x".repeat(65),
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
