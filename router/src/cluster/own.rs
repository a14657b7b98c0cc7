//! The experts that the router's own process holds (`--local-experts`): to the roster it is a worker like any other, but it
//! loads here and the engine computes them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use gaterail_cluster::membership::{Machine, WorkerAbout};
use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::{CpuOptions, Device};
use gaterail_model::weights::cache::PackedCache;
use gaterail_model::weights::{ExpertShard, LoadFrom, load_slices};
use gaterail_proto::{Epoch, ExpertSlice, LayerId, RouterId, ShardSpec, WorkerId};
use tokio::sync::mpsc;

use super::control::Input;
use super::served::ServedExperts;

/// What the router's process may hold of its model's experts.
#[derive(Clone)]
pub struct OwnExperts {
    /// Its device as it was measured, and the memory that experts may take.
    pub machine: Machine,
    /// Where packed experts are kept.
    pub cache: Option<PackedCache>,
}

/// What it holds.
pub(super) struct Own {
    pub about: WorkerAbout,
    served: ServedExperts,
    cache: Option<PackedCache>,
    pieces: Arc<Pieces>,
    epochs: BTreeMap<Epoch, (ShardSpec, Arc<ExpertShard>)>,
    /// What is being loaded, and whether nobody wants it any more.
    loading: Option<(Epoch, Arc<AtomicBool>)>,
    inputs: mpsc::WeakSender<Input>,
}

/// A shard that was loaded.
pub(super) struct OwnPrepared {
    pub epoch: Epoch,
    pub loaded: Result<(ShardSpec, Arc<ExpertShard>), String>,
    /// Of what was not there before.
    pub bytes: u64,
}

#[derive(Default)]
struct Pieces(Mutex<HashMap<ExpertSlice, ExpertPiece>>);

impl Pieces {
    fn lock(&self) -> MutexGuard<'_, HashMap<ExpertSlice, ExpertPiece>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Own {
    pub fn new(
        router: RouterId,
        own: OwnExperts,
        served: ServedExperts,
        inputs: mpsc::WeakSender<Input>,
    ) -> Own {
        let id = WorkerId(router.0);
        let host = gaterail_cluster::host().unwrap_or_default();
        let about = WorkerAbout { id, name: "router".into(), machine: own.machine, host };
        let (pieces, epochs) = (Arc::default(), BTreeMap::new());
        Own { about, served, cache: own.cache, pieces, epochs, loading: None, inputs }
    }

    /// Loads what is missing, on a thread of its own; `Input::Own` says how it went.
    pub fn prepare(&mut self, epoch: Epoch, shard: ShardSpec) {
        let cancelled = Arc::new(AtomicBool::new(false));
        if let Some((_, before)) = self.loading.replace((epoch, cancelled.clone())) {
            before.store(true, Ordering::Relaxed);
        }
        let (served, cache, pieces) = (self.served.clone(), self.cache.clone(), self.pieces.clone());
        let inputs = self.inputs.clone();
        let work = move || {
            let mut bytes = 0;
            let loaded = load(&served, cache.as_ref(), (&pieces, &mut bytes), shard, &cancelled);
            if cancelled.load(Ordering::Relaxed) {
                return;
            }
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.blocking_send(Input::Own(OwnPrepared { epoch, loaded, bytes }));
            }
        };
        let spawned = std::thread::Builder::new().name("load-experts".into()).spawn(work);
        if let Err(error) = spawned
            && let Some(inputs) = self.inputs.upgrade()
        {
            let loaded = Err(format!("no thread to load: {error}"));
            let _ = inputs.try_send(Input::Own(OwnPrepared { epoch, loaded, bytes: 0 }));
        }
    }

    pub fn keep(&mut self, epoch: Epoch, loaded: (ShardSpec, Arc<ExpertShard>)) {
        self.epochs.insert(epoch, loaded);
    }

    /// What is held for an epoch.
    pub fn of(&self, epoch: Epoch) -> Option<Arc<ExpertShard>> {
        self.epochs.get(&epoch).map(|(_, shard)| shard.clone())
    }

    /// Epochs below `before` are over. What is being loaded stays.
    pub fn retire(&mut self, before: Epoch) {
        self.epochs.retain(|epoch, _| *epoch >= before);
        let wanted: HashSet<ExpertSlice> =
            self.epochs.values().flat_map(|(spec, _)| &spec.slices).copied().collect();
        if self.loading.as_ref().is_none_or(|(_, cancelled)| cancelled.load(Ordering::Relaxed)) {
            self.pieces.lock().retain(|slice, _| wanted.contains(slice));
        }
    }

    /// An epoch is not being loaded any more; a later one may be.
    pub fn loaded(&mut self, epoch: Epoch) {
        self.loading.take_if(|(loading, _)| *loading == epoch);
    }

    pub fn held_bytes(&self) -> u64 {
        self.pieces.lock().values().map(bytes_of).sum()
    }
}

fn bytes_of(piece: &ExpertPiece) -> u64 {
    [&piece.gate, &piece.up, &piece.down].map(|weight| weight.stored_bytes() as u64).iter().sum()
}

fn load(
    served: &ServedExperts,
    cache: Option<&PackedCache>,
    (pieces, loaded_bytes): (&Pieces, &mut u64),
    shard: ShardSpec,
    cancelled: &AtomicBool,
) -> Result<(ShardSpec, Arc<ExpertShard>), String> {
    let missing: Vec<ExpertSlice> = {
        let held = pieces.lock();
        shard.slices.iter().filter(|slice| !held.contains_key(slice)).copied().collect()
    };
    if !missing.is_empty() {
        let device = Device::cpu(CpuOptions { pin: false, ..CpuOptions::default() });
        let device = device.map_err(|error| error.to_string())?;
        let from = LoadFrom {
            spec: &served.spec,
            checkpoint: &served.checkpoint,
            device: &device,
            precision: served.precision,
            cache,
        };
        let mut each = |slice, piece| {
            *loaded_bytes += bytes_of(&piece);
            pieces.lock().insert(slice, piece);
            !cancelled.load(Ordering::Relaxed)
        };
        let outcome =
            load_slices(from, &missing, &mut |_| {}, &mut each).map_err(|error| error.to_string())?;
        if let Some(pending) = outcome.pending {
            // Without it they are packed again with the next start.
            let write = move || drop(pending.write(&mut |_| {}));
            let _ = std::thread::Builder::new().name("packed-cache".into()).spawn(write);
        }
    }
    let held = pieces.lock();
    let piece = |slice: &ExpertSlice| -> Result<(LayerId, ExpertPiece), String> {
        let piece = held.get(slice).ok_or("what was loaded was dropped before all of it was there")?;
        Ok((slice.layer, piece.clone()))
    };
    let all: Vec<_> = shard.slices.iter().map(piece).collect::<Result<_, _>>()?;
    let layers = served.spec.layers.len();
    Ok((shard, Arc::new(ExpertShard::new(layers, all))))
}
