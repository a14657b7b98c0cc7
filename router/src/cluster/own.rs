//! The experts that the router's own process holds (`--local-experts`): to the roster it is a worker like any other, but it
//! loads here and the engine computes them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use gaterail_cluster::membership::{Event, Machine, WorkerAbout};
use gaterail_cluster::placement::run_bytes;
use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::{CpuOptions, Device};
use gaterail_model::weights::cache::PackedCache;
use gaterail_model::weights::{ExpertShard, LoadFrom, load_slices};
use gaterail_proto::{Epoch, ExpertInventory, ExpertSlice, LayerId, RouterId, ShardSpec, WorkerId};
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

/// Control is told this often how far the loading is.
const TELL_EVERY: Duration = Duration::from_millis(100);

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
        let about =
            WorkerAbout { id, name: "router".into(), machine: own.machine, host, packed: Arc::default() };
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
        let (inputs, worker) = (self.inputs.clone(), self.about.id);
        let progress = Progress { worker, epoch, inputs: inputs.clone(), told: None };
        let work = move || {
            let mut bytes = 0;
            let loaded = load(&served, cache.as_ref(), (&pieces, &mut bytes), shard, &cancelled, progress);
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
        let kept = self.epochs.split_off(&before);
        let shards = std::mem::replace(&mut self.epochs, kept);
        let wanted: HashSet<ExpertSlice> =
            self.epochs.values().flat_map(|(spec, _)| &spec.slices).copied().collect();
        if self.loading.as_ref().is_none_or(|(_, cancelled)| cancelled.load(Ordering::Relaxed)) {
            let unwanted = |slice: &ExpertSlice, _: &mut ExpertPiece| !wanted.contains(slice);
            let pieces: Vec<_> = self.pieces.lock().extract_if(unwanted).collect();
            return free((shards, pieces));
        }
        free(shards);
    }

    /// An epoch is not being loaded any more; a later one may be.
    pub fn loaded(&mut self, epoch: Epoch) {
        self.loading.take_if(|(loading, _)| *loading == epoch);
    }

    pub fn held_bytes(&self) -> u64 {
        self.pieces.lock().values().map(bytes_of).sum()
    }
}

/// How far the loading is, told now and then.
struct Progress {
    worker: WorkerId,
    epoch: Epoch,
    inputs: mpsc::WeakSender<Input>,
    told: Option<Instant>,
}

impl Progress {
    /// Never waits: what control cannot take is told again soon.
    fn tell(&mut self, bytes: u64, total: u64) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now < told + TELL_EVERY) {
            return;
        }
        self.told = Some(now);
        let event = Event::Loading { worker: self.worker, epoch: self.epoch, bytes, total };
        self.inputs
            .upgrade()
            .into_iter()
            .for_each(|inputs| drop(inputs.try_send(Input::Event(event.clone()))));
    }
}

/// What is not wanted any more, freed on a thread of its own: it takes long, and nobody should wait for it.
pub(super) fn free(unwanted: impl Send + 'static) {
    // Without a thread it is freed here.
    let _ = std::thread::Builder::new().name("free-experts".into()).spawn(move || drop(unwanted));
}

fn slice_bytes(inventory: &ExpertInventory, slice: &ExpertSlice) -> u64 {
    let layer = inventory.layers.iter().find(|at| at.layer == slice.layer);
    layer.map_or(0, |at| run_bytes(at.expert_bytes, at.units, slice.units))
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
    mut progress: Progress,
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
        let total = missing.iter().map(|slice| slice_bytes(&served.inventory, slice)).sum();
        let mut each = |slice, piece| {
            *loaded_bytes += bytes_of(&piece);
            pieces.lock().insert(slice, piece);
            progress.tell(*loaded_bytes, total);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_is_told_now_and_then_and_waits_for_nobody() {
        let (inputs, mut received) = mpsc::channel(1);
        let (worker, epoch) = (WorkerId(1), Epoch(2));
        let mut progress = Progress { worker, epoch, inputs: inputs.downgrade(), told: None };
        progress.tell(10, 30);
        // Too early, and then nobody reads.
        progress.tell(20, 30);
        std::thread::sleep(TELL_EVERY);
        progress.tell(30, 30);
        let Ok(Input::Event(told)) = received.try_recv() else { panic!("nothing was told") };
        assert_eq!(told, Event::Loading { worker, epoch, bytes: 10, total: 30 });
        assert!(received.try_recv().is_err());
    }
}
