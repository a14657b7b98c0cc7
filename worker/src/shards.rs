//! The experts that a worker holds, by epoch: what an old plan and a new one share is there once.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use gaterail_kernels::cuda::CudaDevice;
use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::{Device, KernelError};
use gaterail_model::weights::ExpertShard;
use gaterail_proto::{Epoch, ExpertSlice, RouterId, ShardSpec};

/// The pieces of one model in one precision, for all routers that serve it.
pub struct Shards {
    /// L
    layers: usize,
    /// Where the pieces are, if that is not this process' memory.
    gpu: Option<Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pieces: HashMap<ExpertSlice, ExpertPiece>,
    /// Bytes of the pieces.
    held: u64,
    epochs: BTreeMap<(RouterId, Epoch), Prepared>,
    /// What is being loaded: it stays, whatever is retired meanwhile.
    wanted: HashMap<RouterId, (Epoch, HashSet<ExpertSlice>)>,
}

/// What nobody wants any more. Freeing it takes long, so that nobody waits for it.
#[derive(Default)]
struct Unwanted {
    pieces: Vec<ExpertPiece>,
    shards: Vec<Arc<ExpertShard>>,
}

/// Why calls of an epoch cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum NotPrepared {
    /// What nobody wanted meanwhile, for instance.
    #[error("{0:?} is not here")]
    Missing(ExpertSlice),
    #[error("another epoch is wanted")]
    Unwanted,
    #[error(transparent)]
    Device(#[from] KernelError),
}

/// What one plan wants here.
struct Prepared {
    spec: ShardSpec,
    shard: Arc<ExpertShard>,
}

impl Shards {
    /// Nothing yet, for a model of so many layers.
    pub fn new(layers: usize) -> Shards {
        Shards { layers, gpu: None, state: Mutex::default() }
    }

    /// The same in the memory of the GPU that computes, if one does.
    pub fn on(gpu: Option<&Arc<CudaDevice>>, layers: usize) -> Shards {
        Shards { gpu: gpu.cloned().map(Device::Cuda), ..Shards::new(layers) }
    }

    /// A router wants `shard` for its next epoch, and nothing that it wanted before and does not serve. What no plan wants goes.
    pub fn want(&self, router: RouterId, epoch: Epoch, shard: &ShardSpec) {
        self.change(|state| {
            state.wanted.insert(router, (epoch, shard.slices.iter().copied().collect()));
        });
    }

    /// An epoch that was wanted will not be prepared.
    pub fn give_up(&self, router: RouterId, epoch: Epoch) {
        self.change(|state| state.wanted.retain(|owner, (wanted, _)| *owner != router || *wanted != epoch));
    }

    /// What has to be loaded before `shard` is here.
    pub fn missing(&self, shard: &ShardSpec) -> Vec<ExpertSlice> {
        let state = self.lock();
        shard.slices.iter().filter(|slice| !state.pieces.contains_key(slice)).copied().collect()
    }

    /// A slice that was loaded; returns it as it is held. Fails where the device has no room for it.
    pub fn keep(&self, slice: ExpertSlice, piece: ExpertPiece) -> Result<ExpertPiece, KernelError> {
        let piece = match &self.gpu {
            Some(device) => piece.on(device)?,
            None => piece,
        };
        let mut state = self.lock();
        // Another router may have brought it meanwhile; which of the two is freed, is freed without the lock.
        match state.pieces.entry(slice) {
            Entry::Occupied(there) => Ok(there.get().clone()),
            Entry::Vacant(free) => {
                free.insert(piece.clone());
                state.held += bytes(&piece);
                Ok(piece)
            }
        }
    }

    /// From here on calls of this epoch are answered, if it is still wanted.
    pub fn prepare(&self, router: RouterId, epoch: Epoch, spec: ShardSpec) -> Result<(), NotPrepared> {
        let state = self.lock();
        let piece = |slice: &ExpertSlice| {
            let piece = state.pieces.get(slice).ok_or(NotPrepared::Missing(*slice))?;
            Ok((slice.layer, piece.clone()))
        };
        let pieces: Vec<_> = spec.slices.iter().map(piece).collect::<Result<_, NotPrepared>>()?;
        drop(state);
        // A GPU's kernels may have to be compiled, and others' calls are answered meanwhile.
        let shard = match &self.gpu {
            Some(device) => ExpertShard::on(device, self.layers, pieces)?,
            None => ExpertShard::new(self.layers, pieces),
        };
        let prepared = Prepared { spec, shard: Arc::new(shard) };
        let mut state = self.lock();
        if state.wanted.get(&router).is_none_or(|(wanted, _)| *wanted != epoch) {
            drop(state);
            return Err(NotPrepared::Unwanted);
        }
        state.wanted.remove(&router);
        let before = state.epochs.insert((router, epoch), prepared);
        drop(state);
        drop(before);
        Ok(())
    }

    /// What is held for a router's epoch.
    pub fn of(&self, router: RouterId, epoch: Epoch) -> Option<Arc<ExpertShard>> {
        self.lock().epochs.get(&(router, epoch)).map(|prepared| prepared.shard.clone())
    }

    /// Forgets a router's epochs below `before`, and what no plan wants any more.
    pub fn retire(&self, router: RouterId, before: Epoch) {
        self.change_epochs(|owner, epoch| owner != router || epoch >= before, |_| ());
    }

    /// Forgets all epochs of a router.
    pub fn forget(&self, router: RouterId) {
        self.change_epochs(|owner, _| owner != router, |state| drop(state.wanted.remove(&router)));
    }

    /// Bytes of the weights that are held.
    pub fn held_bytes(&self) -> u64 {
        self.lock().held
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.change_epochs(|_, _| true, change);
    }

    /// Keeps some epochs, changes the rest, and lets go what nobody wants after that.
    fn change_epochs(&self, keep: impl Fn(RouterId, Epoch) -> bool, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let mut unwanted = Unwanted::default();
        state.epochs.retain(|(owner, epoch), prepared| {
            let kept = keep(*owner, *epoch);
            if !kept {
                unwanted.shards.push(prepared.shard.clone());
            }
            kept
        });
        change(&mut state);
        unwanted.pieces = state.take_unwanted();
        drop(state);
        unwanted.free();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn take_unwanted(&mut self) -> Vec<ExpertPiece> {
        let served = self.epochs.values().flat_map(|prepared| &prepared.spec.slices);
        let coming = self.wanted.values().flat_map(|(_, slices)| slices);
        let wanted: HashSet<ExpertSlice> = served.chain(coming).copied().collect();
        let unwanted = self.pieces.extract_if(|slice, _| !wanted.contains(slice));
        let unwanted: Vec<ExpertPiece> = unwanted.map(|(_, piece)| piece).collect();
        self.held -= unwanted.iter().map(bytes).sum::<u64>();
        unwanted
    }
}

impl Unwanted {
    /// On a thread of its own: the caller has heartbeats to send.
    fn free(self) {
        if self.pieces.is_empty() && self.shards.is_empty() {
            return;
        }
        // Without a thread it is freed here.
        let _ = std::thread::Builder::new().name("free-experts".into()).spawn(move || drop(self));
    }
}

fn bytes(piece: &ExpertPiece) -> u64 {
    [&piece.gate, &piece.up, &piece.down].iter().map(|weight| weight.stored_bytes() as u64).sum()
}

#[cfg(test)]
mod tests {
    use gaterail_kernels::{Matrix, Weight};
    use gaterail_proto::{ExpertId, LayerId, UnitRange};

    use super::*;

    const ROUTER: RouterId = RouterId(1);

    fn spec(experts: &[u32]) -> ShardSpec {
        let units = UnitRange { start: 0, end: 1 };
        let slice = |&expert| ExpertSlice { layer: LayerId(0), expert: ExpertId(expert), units };
        ShardSpec { slices: experts.iter().map(slice).collect() }
    }

    fn load(shards: &Shards, spec: &ShardSpec) {
        let weight = || -> Weight { Matrix::from_f32(&[0.5; 16], 4, 4).into() };
        for slice in shards.missing(spec) {
            let (gate, up, down) = (weight(), weight(), weight());
            let expert = slice.expert.0;
            let piece =
                ExpertPiece { expert, gate, up, down, gate_bias: None, up_bias: None, down_bias: None };
            shards.keep(slice, piece).unwrap();
        }
    }

    #[test]
    fn an_epoch_that_is_not_wanted_any_more_is_not_kept() {
        let shards = Shards::new(1);
        let (one, two) = (spec(&[0, 1]), spec(&[0, 1, 2]));
        shards.want(ROUTER, Epoch(1), &one);
        load(&shards, &one);
        shards.want(ROUTER, Epoch(2), &two);
        let late = shards.prepare(ROUTER, Epoch(1), one.clone());
        assert!(matches!(late, Err(NotPrepared::Unwanted)), "{late:?}");
        assert!(shards.of(ROUTER, Epoch(1)).is_none());
        load(&shards, &two);
        shards.prepare(ROUTER, Epoch(2), two).unwrap();
        assert!(shards.of(ROUTER, Epoch(2)).is_some());
        // A router that has gone left what it wanted behind.
        shards.want(ROUTER, Epoch(3), &one);
        shards.forget(ROUTER);
        assert!(matches!(shards.prepare(ROUTER, Epoch(3), one), Err(NotPrepared::Missing(_))));
    }

    #[test]
    fn what_is_being_loaded_stays_and_the_rest_goes() {
        let shards = Shards::new(1);
        let (one, two, other) = (spec(&[0, 1]), spec(&[1, 2]), spec(&[3]));
        shards.want(ROUTER, Epoch(1), &one);
        load(&shards, &one);
        shards.prepare(ROUTER, Epoch(1), one).unwrap();
        let piece = shards.held_bytes() / 2;
        // A plan that is given up for another one.
        shards.want(ROUTER, Epoch(2), &other);
        load(&shards, &other);
        assert_eq!(shards.held_bytes(), 3 * piece);
        shards.want(ROUTER, Epoch(3), &two);
        assert_eq!(shards.held_bytes(), 2 * piece);
        // What is served goes while it is loaded: what both have in common stays, and what has come.
        load(&shards, &two);
        shards.retire(ROUTER, Epoch(3));
        assert!(shards.of(ROUTER, Epoch(1)).is_none());
        assert_eq!((shards.held_bytes(), shards.missing(&two)), (2 * piece, Vec::new()));
        shards.prepare(ROUTER, Epoch(3), two).unwrap();
        shards.want(ROUTER, Epoch(4), &other);
        load(&shards, &other);
        shards.give_up(ROUTER, Epoch(4));
        assert_eq!(shards.held_bytes(), 2 * piece);
        shards.forget(ROUTER);
        assert_eq!(shards.held_bytes(), 0);
    }
}
