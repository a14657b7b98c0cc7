//! Where weights come from: this machine's copy of the checkpoint, if it is the router's; else the router.

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::{Arena, CpuOptions, Device};
use gaterail_model::ModelSource;
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::spec::ModelSpec;
use gaterail_model::walk::ExpertMath;
use gaterail_model::weights::cache::{self, CacheOutcome, PackedCache};
use gaterail_model::weights::{LoadFrom, check_tensors, load_slices_onto, packed_slices};
use gaterail_proto::{ExpertSlice, ShardSpec};

use crate::fetch::{FromRouter, Pieces};
use crate::options::WorkerOptions;
use crate::served::ServedModel;

/// What is done with each piece: it comes back as it is held; `None` ends the loading.
pub type Each<'a> = &'a mut dyn FnMut(ExpertSlice, ExpertPiece) -> Option<ExpertPiece>;

/// A model's weights. Opened with the first shard.
pub struct Source {
    checkpoint: OnceLock<Option<Opened>>,
    arena: Mutex<Arena>,
}

struct Opened {
    spec: ModelSpec,
    checkpoint: Checkpoint,
}

/// How experts came, in the words of `Prepared`.
pub struct Loaded {
    pub source: &'static str,
    pub outcome: CacheOutcome,
}

impl Default for Source {
    fn default() -> Source {
        Source { checkpoint: OnceLock::new(), arena: Mutex::default() }
    }
}

impl Source {
    /// Whether weights come from a checkpoint of this machine, whose digest is the router's.
    pub fn reads_checkpoint(&self, served: &ServedModel, options: &WorkerOptions) -> bool {
        self.checkpoint.get_or_init(|| open(served, options)).is_some()
    }

    /// What lies packed on this machine; nothing where weights come from the router. May read a checkpoint.
    pub fn packed(&self, served: &ServedModel, options: &WorkerOptions) -> ShardSpec {
        let cache = options.packed_cache.as_ref().filter(|cache| has_files(cache));
        let opened = cache
            .and_then(|cache| Some((cache, self.checkpoint.get_or_init(|| open(served, options)).as_ref()?)));
        let device = Device::cpu(CpuOptions { pin: false, threads: 1, ..CpuOptions::default() });
        let (Some((cache, opened)), Ok(device)) = (opened, device) else { return ShardSpec::default() };
        let mut slices = packed_slices(LoadFrom {
            spec: &opened.spec,
            checkpoint: &opened.checkpoint,
            device: &device,
            precision: served.precision,
            cache: Some(cache),
        });
        // The layers behind the last sparse one do not travel.
        slices.retain(|slice| served.math.layer(slice.layer).is_some());
        ShardSpec { slices }
    }

    /// Loads slices of the model's inventory, one by one. Takes as long as it takes; the error is a sentence.
    pub fn load(
        &self,
        served: &ServedModel,
        slices: &[ExpertSlice],
        options: &WorkerOptions,
        router: &FromRouter,
        each: Each<'_>,
    ) -> Result<Loaded, String> {
        let device = Device::cpu(CpuOptions { pin: false, ..CpuOptions::default() });
        let device = device.map_err(|error| error.to_string())?;
        let opened = self.checkpoint.get_or_init(|| open(served, options));
        let Some(opened) = opened else {
            self.fetch(served, (slices, options.memory_bytes), &device, router, each)?;
            return Ok(Loaded { source: "router", outcome: CacheOutcome::default() });
        };
        let from = LoadFrom {
            spec: &opened.spec,
            checkpoint: &opened.checkpoint,
            device: &device,
            precision: served.precision,
            cache: options.packed_cache.as_ref(),
        };
        let outcome = load_slices_onto(from, slices, &mut |_| {}, each).map_err(|error| error.to_string())?;
        Ok(Loaded { source: "checkpoint", outcome })
    }

    fn fetch(
        &self,
        served: &ServedModel,
        (slices, bytes_max): (&[ExpertSlice], u64),
        device: &Device,
        router: &FromRouter,
        each: Each<'_>,
    ) -> Result<(), String> {
        let mut arena = self.arena.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shard = ShardSpec { slices: slices.to_vec() };
        let mut pieces = Pieces::new(served, (slices, bytes_max), device, &mut arena, each);
        router.runtime.block_on(router.fetch(&shard, &mut pieces))
    }
}

/// Whether a checkpoint is worth looking at.
fn has_files(cache: &PackedCache) -> bool {
    cache::list(&cache.folder).is_ok_and(|files| !files.is_empty())
}

/// The router's checkpoint on this machine. Why a copy is not used is for the operator; there is another way.
fn open(served: &ServedModel, options: &WorkerOptions) -> Option<Opened> {
    if !options.read_checkpoints {
        return None;
    }
    let paths = options.models.iter().chain(&served.path);
    paths.into_iter().find_map(|path| match open_at(path, served) {
        Ok(opened) => Some(opened),
        Err(why) => {
            (options.note)(&format!("{}: not read here: {why}", path.display()));
            None
        }
    })
}

fn open_at(path: &Path, served: &ServedModel) -> Result<Opened, String> {
    let opened = || -> Result<Opened, Box<dyn std::error::Error>> {
        let source = ModelSource::open(path)?;
        let opened = Opened { spec: source.spec()?, checkpoint: source.checkpoint()? };
        check_tensors(&opened.spec, &opened.checkpoint)?;
        Ok(opened)
    };
    let opened = opened().map_err(|error| error.to_string())?;
    let Opened { spec, checkpoint } = &opened;
    if checkpoint.digest(spec) != served.digest {
        return Err("another checkpoint than the router's".to_string());
    }
    // The layers behind the last sparse one do not travel.
    let mut math = ExpertMath::of(spec);
    math.layers.truncate(served.math.layers.len());
    if math != *served.math {
        return Err("the router computes it in another way".to_string());
    }
    Ok(opened)
}
