//! A lane: one device with the dense weights and its own KV pages.

use std::sync::Arc;

use gaterail_kernels::ops::{KvForm, PageCopy};
use gaterail_kernels::{Device, KernelError, Stream};

use super::times::LaneTimes;
use crate::kv::KvCache;
use crate::spec::ModelSpec;
use crate::weights::TrunkWeights;

/// Index of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneId(pub usize);

/// Where a share of the requests computes everything but their experts.
pub struct Lane {
    pub(super) spec: Arc<ModelSpec>,
    pub(super) weights: Arc<TrunkWeights>,
    pub(super) kv: KvCache,
    stream: Stream,
    times: Arc<LaneTimes>,
    /// Whether rows whose logits nobody wants go through all of the last layer, too.
    pub(super) keeps_all: bool,
}

impl Lane {
    /// A lane on `device` with room for `pages` KV pages of that form.
    pub fn new(
        spec: Arc<ModelSpec>,
        weights: Arc<TrunkWeights>,
        device: &Device,
        form: KvForm,
        pages: usize,
    ) -> Result<Lane, KernelError> {
        let kv = KvCache::new(&spec, device, form, pages)?;
        Ok(Lane { spec, weights, kv, stream: Stream::new(device), times: Arc::default(), keeps_all: false })
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Where its time goes.
    pub fn times(&self) -> &Arc<LaneTimes> {
        &self.times
    }

    /// Lets rows whose logits nobody wants go through all of the last layer, too: for whoever looks at what layers do.
    pub fn keep_all(&mut self) {
        self.keeps_all = true;
    }

    /// Copies pages of KV, one after the other.
    pub fn copy_pages(&mut self, copies: &[PageCopy]) {
        copies.iter().for_each(|copy| self.kv.copy_page(&self.stream, *copy));
    }

    pub fn kv(&mut self) -> &mut KvCache {
        &mut self.kv
    }
}
