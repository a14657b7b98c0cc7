//! What counts of a model: its shape in the precision in which it would run, read from configuration and headers.

use std::collections::BTreeMap;

use gaterail_cluster::predict::{LayerShape, Shape};
use gaterail_kernels::ops::{KvForm, PAGE_POSITIONS};
use gaterail_model::ModelSource;
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::kv::page_bytes;
use gaterail_model::spec::{AttentionSpec, ModelSpec};
use gaterail_model::weights::{
    Precision, Role, Share, account, check_tensors, declared_by_role, resident_by_role, unit_length,
};
use gaterail_proto::{ExpertInventory, LayerExperts, LayerId};

use super::measure::{AttentionShape, Blank, Kind};
use crate::error::CliError;
use crate::inspect::has_weights;
use crate::source;
use crate::weights::{KvArg, WeightsArg};

pub struct Subject {
    pub name: String,
    pub architecture: String,
    pub hidden: usize,
    /// F of the widest sparse layer.
    pub width: usize,
    pub experts: Kind,
    pub trunk: Kind,
    /// All of the trunk, with what it takes to walk it.
    pub spec: ModelSpec,
    pub blank: Blank,
    pub attention: AttentionShape,
    pub kv: KvForm,
    pub shape: Shape,
    pub inventory: ExpertInventory,
    /// Weights that are not experts.
    pub trunk_bytes: u64,
    pub experts_bytes: u64,
    pub kv_bytes_per_position: u64,
    /// Whether bytes are what the configuration declares, for want of weights.
    pub estimated: bool,
    /// The same model in fewer bytes, by the flag that asks for it.
    pub smaller: Vec<(String, ExpertInventory)>,
}

impl Subject {
    pub fn open(model: &str, weights: WeightsArg, kv: KvArg) -> Result<Subject, CliError> {
        let source = ModelSource::open(&source::resolve(model)?)?;
        let spec = source.spec()?;
        let checkpoint = if has_weights(&source) { Some(source.checkpoint()?) } else { None };
        if let Some(checkpoint) = &checkpoint {
            check_tensors(&spec, checkpoint)?;
        }
        Subject::of(model, &spec, checkpoint.as_ref(), weights, kv)
    }

    pub fn of(
        name: &str,
        spec: &ModelSpec,
        checkpoint: Option<&Checkpoint>,
        weights: WeightsArg,
        kv: KvArg,
    ) -> Result<Subject, CliError> {
        let sparse = spec.layers.iter().filter_map(|layer| layer.mlp.sparse());
        let Some(width) = sparse.map(|sparse| sparse.width).max() else {
            return Err(CliError::Refused(format!(
                "{name} has no experts, so that there is nothing to spread; `gaterail inspect` shows what it is"
            )));
        };
        let precision = match checkpoint {
            Some(checkpoint) => weights.precision(spec, checkpoint, 0),
            None => weights.asked().unwrap_or(Precision::AsStored),
        };
        let by_role = |precision: Precision| match checkpoint {
            Some(checkpoint) => resident_by_role(spec, checkpoint, precision),
            None => declared_by_role(spec, precision),
        };
        let roles = by_role(precision);
        let shares = account(spec, checkpoint);
        let kind = |role: Role| Kind::of(stored(&shares, role), precision);
        let form = kv.form(weights);
        let experts_bytes = roles.get(&Role::Experts).copied().unwrap_or(0);
        let inventory = inventory(spec, experts_bytes);
        let smaller = (precision != Precision::Int4).then(|| {
            let bytes = by_role(Precision::Int4).get(&Role::Experts).copied().unwrap_or(0);
            ("--weights int4".to_string(), self::inventory(spec, bytes))
        });
        Ok(Subject {
            name: name.to_string(),
            architecture: spec.architecture.clone(),
            hidden: spec.hidden,
            width,
            experts: kind(Role::Experts),
            trunk: kind(Role::Attention),
            blank: Blank {
                projections: kind(Role::Attention),
                stored: Kind::of(stored(&shares, Role::Attention), Precision::AsStored),
                gate: Kind::of(stored(&shares, Role::Gate), Precision::AsStored),
                // Four bits are too few for a head.
                head: match precision {
                    Precision::Int4 => Kind::of(stored(&shares, Role::Head), Precision::Int8),
                    _ => kind(Role::Head),
                },
            },
            spec: spec.clone(),
            attention: attention(spec),
            kv: form,
            shape: shape(spec, &roles, &shares, &inventory, (kind(Role::Experts), form)),
            inventory,
            trunk_bytes: roles.values().sum::<u64>() - experts_bytes,
            experts_bytes,
            kv_bytes_per_position: page_bytes(spec, form) / PAGE_POSITIONS as u64,
            estimated: checkpoint.is_none(),
            smaller: smaller.filter(|(_, to)| bytes_of(to) < experts_bytes).into_iter().collect(),
        })
    }
}

/// In what most of a part is stored.
fn stored(shares: &BTreeMap<Role, Share>, role: Role) -> &'static str {
    let precisions = shares.get(&role).into_iter().flat_map(|share| &share.precisions);
    precisions.max_by_key(|(_, bytes)| **bytes).map_or("bf16", |(name, _)| name)
}

/// The experts of each layer, by their share of all parameters.
fn inventory(spec: &ModelSpec, bytes: u64) -> ExpertInventory {
    let unit = unit_length(spec);
    let sparse = || spec.layers.iter().enumerate().filter_map(|(at, layer)| Some((at, layer.mlp.sparse()?)));
    let all: u128 = sparse().map(|(_, sparse)| (sparse.experts * sparse.width) as u128).sum();
    let layers = sparse().map(|(layer, sparse)| LayerExperts {
        layer: LayerId(layer as u32),
        experts: sparse.experts as u32,
        units: sparse.width.div_ceil(unit) as u32,
        expert_bytes: (u128::from(bytes) * sparse.width as u128 / all.max(1)) as u64,
    });
    ExpertInventory { layers: layers.collect() }
}

fn bytes_of(inventory: &ExpertInventory) -> u64 {
    inventory.layers.iter().map(|layer| u64::from(layer.experts) * layer.expert_bytes).sum()
}

fn shape(
    spec: &ModelSpec,
    roles: &BTreeMap<Role, u64>,
    shares: &BTreeMap<Role, Share>,
    inventory: &ExpertInventory,
    (experts, kv): (Kind, KvForm),
) -> Shape {
    let bytes = |role: Role| roles.get(&role).copied().unwrap_or(0) as f64;
    let parameters = |role: Role| shares.get(&role).map_or(0.0, |share| share.active_parameters as f64);
    // What every row meets in every layer.
    let trunk = [Role::Attention, Role::SharedExperts, Role::DenseLayers];
    // A tied head may be the embedding itself, which is then counted there.
    let head_bytes = match bytes(Role::Head) {
        0.0 => bytes(Role::Embedding),
        own => own,
    };
    let sparse = spec.layers.iter().filter_map(|layer| layer.mlp.sparse());
    let gates = bytes(Role::Gate) / inventory.layers.len().max(1) as f64;
    let layers = sparse.zip(&inventory.layers).map(|(sparse, at)| LayerShape {
        hidden: spec.hidden as u32,
        experts: at.experts,
        top_k: sparse.top_k as u32,
        width: sparse.width as u32,
        units: at.units,
        expert_bytes: at.expert_bytes as f64,
        gate_bytes: gates,
        row_group: experts.group(),
    });
    let pairs = spec.layers.iter().map(|layer| attention_of(&layer.attention).operations());
    Shape {
        layers: layers.collect(),
        trunk_bytes: trunk.map(bytes).iter().sum(),
        trunk_operations_per_row: 2.0 * trunk.map(parameters).iter().sum::<f64>(),
        head_bytes,
        head_operations_per_row: 2.0 * (spec.vocab * spec.hidden) as f64,
        kv_bytes_per_position: page_bytes(spec, kv) as f64 / PAGE_POSITIONS as f64,
        attention_operations_per_position: pairs.sum(),
    }
}

/// Of the first layer: those of a model differ in their masks.
fn attention(spec: &ModelSpec) -> AttentionShape {
    let of = |layer: &gaterail_model::spec::LayerSpec| attention_of(&layer.attention);
    // A specification has at least one layer: one has experts.
    spec.layers.first().map(of).expect("a layer")
}

fn attention_of(attention: &AttentionSpec) -> AttentionShape {
    match attention {
        AttentionSpec::Grouped(a) => AttentionShape {
            heads: a.heads,
            kv_heads: a.kv_heads,
            key_width: a.head_dim,
            value_width: a.head_dim,
            latent: false,
        },
        AttentionSpec::Latent(a) => AttentionShape {
            heads: a.heads,
            kv_heads: 1,
            key_width: a.stored_dim(),
            value_width: a.kv_rank,
            latent: true,
        },
    }
}
