//! The experts that this router's model has, as workers are told of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gaterail_cluster::exchange::body_bytes_max;
use gaterail_kernels::Codes;
use gaterail_kernels::cuda::{ExpertForm, ExpertsOutline};
use gaterail_kernels::ops::{Activation, WeightOn};
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::spec::ModelSpec;
use gaterail_model::walk::ExpertMath;
use gaterail_model::weights::{
    Precision, Role, expert_outlines, inventory, precision_for_cards, resident_by_role,
};
use gaterail_proto::ExpertInventory;
use gaterail_proto::grpc::v1;

/// Every card that kernels run on has as much shared memory for a block.
const CARD_SHARED_BYTES: usize = 99 << 10;

/// A model whose experts workers compute.
#[derive(Clone)]
pub struct ServedExperts {
    pub(super) spec: Arc<ModelSpec>,
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) precision: Precision,
    /// What Welcome says.
    pub(super) message: v1::Model,
    pub(super) inventory: ExpertInventory,
    pub(super) body_bytes_max: u64,
}

impl ServedExperts {
    /// The experts of an open, checked model. `path` is where workers may find it, too; `rows_max` are the rows of a step.
    pub fn new(
        path: &Path,
        spec: Arc<ModelSpec>,
        checkpoint: Arc<Checkpoint>,
        precision: Precision,
        rows_max: usize,
    ) -> ServedExperts {
        let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
        let math = ExpertMath::of(&spec);
        let message = v1::Model {
            path: path.to_str().unwrap_or_default().to_string(),
            digest: checkpoint.digest(&spec),
            precision: precision_name(precision).to_string(),
            hidden: math.hidden as u32,
            unit: math.unit as u32,
            fraction_bits: math.fraction_bits,
            layers: layers(&math, &expert_outlines(&spec, &checkpoint, precision)),
            for_cards: precision_for_cards(&spec, &checkpoint, CARD_SHARED_BYTES)
                .map_or("", precision_name)
                .to_string(),
        };
        let top_k = math.layers.iter().flatten().map(|at| at.top_k).max().unwrap_or(0);
        ServedExperts {
            message,
            inventory: resident_inventory(&spec, &checkpoint, precision),
            body_bytes_max: body_bytes_max(rows_max, math.hidden, top_k),
            spec,
            checkpoint,
            precision,
        }
    }

    /// The experts with their bytes as they are run.
    pub fn inventory(&self) -> &ExpertInventory {
        &self.inventory
    }

    /// The largest body of a frame.
    pub fn body_bytes_max(&self) -> u64 {
        self.body_bytes_max
    }
}

/// A precision as it is written on the wire.
pub fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::AsStored => "stored",
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
        Precision::Int4 => "int4",
    }
}

fn layers(math: &ExpertMath, outlines: &BTreeMap<usize, ExpertsOutline>) -> Vec<v1::LayerMath> {
    let sparse = math.layers.iter().enumerate().filter_map(|(layer, at)| Some((layer, at.as_ref()?)));
    sparse
        .map(|(layer, at)| {
            let (activation, limit, alpha) = match at.activation {
                Activation::SwiGlu => ("swiglu", 0.0, 0.0),
                Activation::ClampedSwiGlu { alpha, limit } => ("clamped_swiglu", limit, alpha),
            };
            let forms = |of: fn(&ExpertsOutline) -> &Vec<ExpertForm>| {
                outlines.get(&layer).into_iter().flat_map(of).map(form).collect()
            };
            v1::LayerMath {
                gate_up: forms(|at| &at.gate_up),
                down: forms(|at| &at.down),
                layer: layer as u32,
                experts: at.experts as u32,
                width: at.width as u32,
                activation: activation.to_string(),
                limit,
                alpha,
                weight_on_input: at.weight_on == WeightOn::Input,
                top_k: at.top_k as u32,
            }
        })
        .collect()
}

fn form(form: &ExpertForm) -> v1::ExpertForm {
    let (codes, group) = match form {
        ExpertForm::Plain(elements) => (elements.as_str(), 0),
        ExpertForm::Packed { codes: Codes::INT4, group } => ("int4", *group),
        ExpertForm::Packed { codes: Codes::MXFP4, group } => ("mxfp4", *group),
        ExpertForm::Packed { codes: Codes::Int8, group } => ("int8", *group),
        ExpertForm::Packed { codes: Codes::Int4 { .. }, group } => ("another table", *group),
    };
    v1::ExpertForm { codes: codes.to_string(), group: group as u32 }
}

/// The inventory with bytes as the experts are run, which may be fewer or more than are stored.
fn resident_inventory(spec: &ModelSpec, checkpoint: &Checkpoint, precision: Precision) -> ExpertInventory {
    let mut inventory = inventory(spec, Some(checkpoint));
    let stored: u128 =
        inventory.layers.iter().map(|at| u128::from(at.expert_bytes) * u128::from(at.experts)).sum();
    let resident = resident_by_role(spec, checkpoint, precision).get(&Role::Experts).copied().unwrap_or(0);
    for at in &mut inventory.layers {
        let bytes = u128::from(at.expert_bytes) * u128::from(resident) / stored.max(1);
        at.expert_bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    }
    inventory
}
