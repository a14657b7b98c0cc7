//! A model in one process: one lane, its experts, one cursor. What `generate`, `evaluate` and the tests drive.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gaterail_kernels::Device;
use gaterail_kernels::ops::{KvForm, PAGE_POSITIONS};
use gaterail_proto::ShardSpec;

use super::batch::Batch;
use super::cursor::Cursor;
use super::lane::{Lane, LaneId};
use super::local::LocalExperts;
use super::seam::{ExpertLayer, StepError, walk};
use super::times::LaneTimes;
use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::kv::{NoPages, PageTable};
use crate::source::ModelSource;
use crate::spec::ModelSpec;
use crate::weights::cache::{CacheKey, CacheOutcome, PackedCache, Store};
use crate::weights::{
    LoadError, Loader, Loading, Precision, TrunkWeights, check_cover, check_tensors, inventory, load_shard,
};

/// A local step has no peer to wait for.
const STEP_DEADLINE: Duration = Duration::from_secs(3600);

/// How much a runner makes room for.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Rows of one step.
    pub rows_max: usize,
    /// Positions of KV over all sequences.
    pub positions: usize,
    /// The shards that together hold all experts; empty: one that holds all.
    pub shards: Vec<ShardSpec>,
    pub precision: Precision,
    /// What KV stores; `Precision::kv` is the usual choice.
    pub kv: KvForm,
}

/// A loaded model. Its experts are in this process, or behind another `ExpertLayer`.
pub struct Runner<E = LocalExperts> {
    spec: Arc<ModelSpec>,
    lanes: Vec<Lane>,
    /// One, and one for the second half of batches that are split.
    cursors: Vec<Cursor>,
    experts: E,
    /// Logits of a device that the host cannot read in place, or of two micro-batches.
    staging: Vec<f32>,
    /// Batches of so many rows are split between two cursors.
    overlap_from: Option<usize>,
}

impl Runner {
    /// Checks and loads a model folder or a GGUF file. `loading` is told of bytes as they are read.
    pub fn load(
        model: &Path,
        device: &Device,
        options: &RunnerOptions,
        loading: Loading<'_>,
    ) -> Result<Runner, ModelError> {
        let source = ModelSource::open(model)?;
        Runner::from_checkpoint(source.spec()?, &source.checkpoint()?, device, options, loading)
    }

    /// Checks and loads an open checkpoint.
    pub fn from_checkpoint(
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        device: &Device,
        options: &RunnerOptions,
        loading: Loading<'_>,
    ) -> Result<Runner, ModelError> {
        let loaded = Runner::with_cache(spec, checkpoint, device, options, None, loading);
        loaded.map(|(runner, _)| runner)
    }

    /// Checks and loads an open checkpoint; weights that have been packed before are read as they are kept. With the same
    /// bits in either case.
    pub fn with_cache(
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        device: &Device,
        options: &RunnerOptions,
        cache: Option<&PackedCache>,
        loading: Loading<'_>,
    ) -> Result<(Runner, CacheOutcome), ModelError> {
        let whole = [ShardSpec::whole(&inventory(&spec, None))];
        let shards = if options.shards.is_empty() { &whole[..] } else { &options.shards[..] };
        let experts = |spec: &ModelSpec, loader: &mut Loader<'_>| {
            check_cover(&inventory(spec, None), shards).map_err(LoadError::Shards)?;
            let shards = shards.iter().map(|shard| load_shard(spec, shard, loader)).collect();
            Ok(LocalExperts::new(spec, shards))
        };
        load(spec, (checkpoint, cache), device, options, loading, experts)
    }
}

/// The lane with whatever `experts` makes.
fn load<E>(
    spec: ModelSpec,
    (checkpoint, cache): (&Checkpoint, Option<&PackedCache>),
    device: &Device,
    options: &RunnerOptions,
    loading: Loading<'_>,
    experts: impl FnOnce(&ModelSpec, &mut Loader<'_>) -> Result<E, ModelError>,
) -> Result<(Runner<E>, CacheOutcome), ModelError> {
    check_tensors(&spec, checkpoint)?;
    let spec = Arc::new(spec);
    let mut loader = Loader::new(&spec, checkpoint, device, options.precision, loading);
    if let Some(cache) = cache {
        let key = CacheKey::new(&spec, checkpoint, options.precision, &options.shards);
        key.into_iter().for_each(|key| loader.keep_in(Store::open(cache.clone(), key)));
    }
    let trunk = Arc::new(TrunkWeights::load(&spec, &mut loader)?);
    let experts = experts(&spec, &mut loader)?;
    let (notes, pending) = loader.into_store().map(Store::finish).unwrap_or_default();
    let pages = options.positions.div_ceil(PAGE_POSITIONS);
    let lane = Lane::new(spec.clone(), trunk, device, options.kv, pages)?;
    let cursor = Cursor::new(LaneId(0), &lane, options.rows_max)?;
    let runner = Runner {
        spec,
        lanes: vec![lane],
        cursors: vec![cursor],
        experts,
        staging: Vec::new(),
        overlap_from: None,
    };
    Ok((runner, CacheOutcome { notes, pending }))
}

impl<E: ExpertLayer> Runner<E> {
    /// The same without the model's experts, which are where `experts` sends the rows. `options.shards` is not looked at.
    pub fn with_experts(
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        device: &Device,
        options: &RunnerOptions,
        cache: Option<&PackedCache>,
        loading: Loading<'_>,
        experts: E,
    ) -> Result<(Runner<E>, CacheOutcome), ModelError> {
        // One shard that holds nothing: its file in the cache is the lane's alone.
        let options = RunnerOptions { shards: vec![ShardSpec::default()], ..options.clone() };
        load(spec, (checkpoint, cache), device, &options, loading, |_, _| Ok(experts))
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The same model with its experts wrapped, as `Recorded::new` does.
    pub fn wrap_experts<W: ExpertLayer>(self, wrap: impl FnOnce(E) -> W) -> Runner<W> {
        let Runner { spec, lanes, cursors, experts, staging, overlap_from } = self;
        Runner { spec, lanes, cursors, experts: wrap(experts), staging, overlap_from }
    }

    pub fn experts(&mut self) -> &mut E {
        &mut self.experts
    }

    /// Lets rows whose logits nobody wants go through all of the last layer, too: for whoever looks at what layers do.
    pub fn keep_all(&mut self) {
        self.lanes[0].keep_all();
    }

    /// Pages of KV over all sequences.
    pub fn pages(&self) -> usize {
        self.lanes[0].kv.pool.total()
    }

    /// Rows of one step.
    pub fn rows_max(&self) -> usize {
        self.cursors[0].rows_max()
    }

    /// Gives a sequence pages for `positions` positions.
    pub fn grow(&mut self, table: &mut PageTable, positions: usize) -> Result<(), NoPages> {
        self.lanes[0].kv().pool.grow(table, positions)
    }

    pub fn release(&mut self, table: PageTable) {
        self.lanes[0].kv().pool.release(table);
    }

    /// One step; the logits `[wanted, V]`.
    pub fn step(&mut self, batch: &Batch) -> Result<Vec<f32>, StepError> {
        Ok(self.step_in_place(batch)?.to_vec())
    }

    /// One step; the logits `[wanted, V]` where they were computed, to be changed at will.
    pub fn step_in_place(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        let times = self.lanes[0].times().clone();
        let _clock = LaneTimes::clock(&times.step_ns);
        times.steps.fetch_add(1, Ordering::Relaxed);
        times.rows.fetch_add(batch.rows.len() as u64, Ordering::Relaxed);
        self.lanes[0].copy_pages(&batch.copies);
        if self.overlap_from.is_some_and(|rows| batch.rows.len() >= rows) {
            times.overlapped.fetch_add(1, Ordering::Relaxed);
            return self.step_in_halves(batch);
        }
        let cursors = &mut self.cursors[..1];
        cursors[0].begin(&self.lanes[0], batch)?;
        let deadline = Instant::now() + STEP_DEADLINE;
        walk(&mut self.lanes, cursors, &mut self.experts, deadline)?;
        cursors[0].logits_in_place(self.lanes[0].stream(), self.spec.vocab, &mut self.staging)
    }

    /// Splits batches of at least `rows_min` rows into two micro-batches that take turns, so that lane and experts compute at the
    /// same time. It pays where they are different machines or devices; each half reads its experts' weights anew.
    pub fn overlap_from(&mut self, rows_min: usize) -> Result<(), StepError> {
        let second = Cursor::new(LaneId(0), &self.lanes[0], self.rows_max().div_ceil(2))?;
        self.cursors.truncate(1);
        self.cursors.push(second);
        self.overlap_from = Some(rows_min.max(2));
        self.lanes[0].times().overlap_from.store(rows_min.max(2) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Where the lane's time goes.
    pub fn times(&self) -> Arc<LaneTimes> {
        self.lanes[0].times().clone()
    }

    fn step_in_halves(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        let lane = &self.lanes[0];
        for (cursor, half) in self.cursors.iter_mut().zip(batch.halves()) {
            cursor.begin(lane, &half)?;
        }
        let deadline = Instant::now() + STEP_DEADLINE;
        walk(&mut self.lanes, &mut self.cursors, &mut self.experts, deadline)?;
        let (stream, vocab) = (self.lanes[0].stream(), self.spec.vocab);
        let all = self.cursors.iter().map(|cursor| cursor.logits_len(vocab)).sum();
        if self.staging.len() < all {
            self.staging.resize(all, 0.0);
        }
        let mut left = &mut self.staging[..all];
        for cursor in &self.cursors {
            let (own, others) = left.split_at_mut(cursor.logits_len(vocab));
            cursor.logits_into(stream, own)?;
            left = others;
        }
        Ok(&mut self.staging[..all])
    }

    /// One step whose batches are micro-batches that take turns; the logits of each.
    pub fn step_in_turns(&mut self, batches: &[Batch]) -> Result<Vec<Vec<f32>>, StepError> {
        let mut cursors = Vec::new();
        for batch in batches {
            self.lanes[0].copy_pages(&batch.copies);
            let mut cursor = Cursor::new(LaneId(0), &self.lanes[0], batch.rows.len())?;
            cursor.begin(&self.lanes[0], batch)?;
            cursors.push(cursor);
        }
        let deadline = Instant::now() + STEP_DEADLINE;
        walk(&mut self.lanes, &mut cursors, &mut self.experts, deadline)?;
        let stream = self.lanes[0].stream();
        cursors.iter().map(|cursor| cursor.logits(stream, self.spec.vocab)).collect()
    }
}
