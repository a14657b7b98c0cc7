//! A loaded model, and what a step of it has to read and to compute.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gaterail_kernels::Device;
use gaterail_model::spec::AttentionSpec;
use gaterail_model::walk::{Choice, LocalExperts, Recorded, Runner, RunnerOptions};
use gaterail_model::weights::{Precision, Role, account, resident_by_role};
use gaterail_model::{ModelError, ModelSource};

pub struct Model {
    pub runner: Runner<Recorded<LocalExperts>>,
    /// KV positions that there is room for.
    pub positions: usize,
    pub position_bytes: usize,
    /// Bytes of weights as they are run.
    weights: BTreeMap<Role, u64>,
    /// Weights that a row meets, by number.
    parameters: BTreeMap<Role, u64>,
}

impl Model {
    /// With room for `positions`, or for what `kv_max` bytes hold.
    pub fn load(
        path: &Path,
        device: &Device,
        precision: Precision,
        rows_max: usize,
        positions: usize,
        kv_max: usize,
    ) -> Result<Model, ModelError> {
        let source = ModelSource::open(path)?;
        let (spec, checkpoint) = (source.spec()?, source.checkpoint()?);
        let weights = resident_by_role(&spec, &checkpoint, precision);
        let shares = account(&spec, Some(&checkpoint)).into_iter();
        let parameters = shares.map(|(role, share)| (role, share.active_parameters)).collect();
        let position_bytes = spec.kv_values_per_position() * precision.kv().bytes();
        let positions = positions.min(kv_max / position_bytes);
        let options =
            RunnerOptions { rows_max, positions, shards: Vec::new(), precision, kv: precision.kv() };
        let runner = Runner::load(path, device, &options, &mut |_| {})?.wrap_experts(Recorded::new);
        Ok(Model { runner, positions, position_bytes, weights, parameters })
    }

    pub fn weight_bytes(&self) -> u64 {
        self.weights.values().sum()
    }

    /// Weights that a step reads at least: all but the experts once, and of those the ones that its rows chose.
    pub fn step_bytes(&self, choices: &[Choice]) -> f64 {
        let spec = self.runner.spec();
        let bytes = |(role, bytes): (&Role, &u64)| match (role, spec.sparse()) {
            (Role::Experts, Some(sparse)) => *bytes as f64 * touched(choices) / sparse.experts as f64,
            // A row for every token; a tied head reads all of it.
            (Role::Embedding, _) if !spec.tied_embeddings || self.weights.contains_key(&Role::Head) => 0.0,
            _ => *bytes as f64,
        };
        self.weights.iter().map(bytes).sum()
    }

    /// Integer multiplications and additions of projections and experts in a prompt of which the last row's logits are wanted, head and
    /// attention's dots left out. Behind the last layer's keys and values only that row goes on; layers are taken as alike.
    pub fn prefill_operations(&self, rows: usize) -> f64 {
        let products = [Role::Attention, Role::Experts, Role::SharedExperts, Role::DenseLayers];
        let row = products.iter().filter_map(|role| self.parameters.get(role)).sum::<u64>() as f64;
        let spec = self.runner.spec();
        let stored: usize = spec.layers.last().map_or(0, |layer| match &layer.attention {
            AttentionSpec::Grouped(grouped) => 2 * grouped.kv_heads * grouped.head_dim,
            AttentionSpec::Latent(latent) => latent.stored_dim(),
        });
        let stays_out = row / spec.layers.len() as f64 - (spec.hidden * stored) as f64;
        2.0 * (rows as f64 * row - (rows - 1) as f64 * stays_out)
    }
}

/// Different experts that a layer's rows chose, on average over the layers.
pub fn touched(choices: &[Choice]) -> f64 {
    let different = |choice: &Choice| choice.ids.iter().collect::<BTreeSet<_>>().len();
    choices.iter().map(different).sum::<usize>() as f64 / choices.len().max(1) as f64
}
