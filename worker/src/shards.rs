//! The experts that a worker holds, by epoch: what an old plan and a new one share is there once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use gaterail_kernels::ops::ExpertPiece;
use gaterail_model::weights::ExpertShard;
use gaterail_proto::{Epoch, ExpertSlice, RouterId, ShardSpec};

/// The pieces of one model in one precision, for all routers that serve it.
pub struct Shards {
    /// L
    layers: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pieces: HashMap<ExpertSlice, ExpertPiece>,
    epochs: BTreeMap<(RouterId, Epoch), Prepared>,
}

/// What one plan wants here.
struct Prepared {
    spec: ShardSpec,
    shard: Arc<ExpertShard>,
}

impl Shards {
    /// Nothing yet, for a model of so many layers.
    pub fn new(layers: usize) -> Shards {
        Shards { layers, state: Mutex::default() }
    }

    /// What has to be loaded before `shard` is here.
    pub fn missing(&self, shard: &ShardSpec) -> Vec<ExpertSlice> {
        let state = self.lock();
        shard.slices.iter().filter(|slice| !state.pieces.contains_key(slice)).copied().collect()
    }

    /// A slice that was loaded.
    pub fn keep(&self, slice: ExpertSlice, piece: ExpertPiece) {
        self.lock().pieces.insert(slice, piece);
    }

    /// From here on calls of this epoch are answered. Fails where a slice is missing.
    pub fn prepare(&self, router: RouterId, epoch: Epoch, spec: ShardSpec) -> Result<(), ExpertSlice> {
        let mut state = self.lock();
        let piece = |slice: &ExpertSlice| {
            let piece = state.pieces.get(slice).ok_or(*slice)?;
            Ok((slice.layer, piece.clone()))
        };
        let pieces: Vec<_> = spec.slices.iter().map(piece).collect::<Result<_, ExpertSlice>>()?;
        let shard = Arc::new(ExpertShard::new(self.layers, pieces));
        state.epochs.insert((router, epoch), Prepared { spec, shard });
        Ok(())
    }

    /// What is held for a router's epoch.
    pub fn of(&self, router: RouterId, epoch: Epoch) -> Option<Arc<ExpertShard>> {
        self.lock().epochs.get(&(router, epoch)).map(|prepared| prepared.shard.clone())
    }

    /// Forgets a router's epochs below `before`, and what no plan wants any more.
    pub fn retire(&self, router: RouterId, before: Epoch) {
        let mut state = self.lock();
        state.epochs.retain(|(owner, epoch), _| *owner != router || *epoch >= before);
        state.drop_unwanted();
    }

    /// Forgets all epochs of a router.
    pub fn forget(&self, router: RouterId) {
        let mut state = self.lock();
        state.epochs.retain(|(owner, _), _| *owner != router);
        state.drop_unwanted();
    }

    /// Bytes of the weights that are held.
    pub fn held_bytes(&self) -> u64 {
        let weights = |piece: &ExpertPiece| {
            [&piece.gate, &piece.up, &piece.down]
                .iter()
                .map(|weight| weight.stored_bytes() as u64)
                .sum::<u64>()
        };
        self.lock().pieces.values().map(weights).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn drop_unwanted(&mut self) {
        let wanted: HashSet<ExpertSlice> =
            self.epochs.values().flat_map(|prepared| &prepared.spec.slices).copied().collect();
        self.pieces.retain(|slice, _| wanted.contains(slice));
    }
}
