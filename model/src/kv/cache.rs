//! The buffers of the KV cache on one device.

use gaterail_kernels::ops::{KvBuffer, KvForm, PAGE_POSITIONS, PageCopy, kv_copy};
use gaterail_kernels::{Device, KernelError, Stream};

use super::PagePool;
use crate::spec::{AttentionSpec, ModelSpec};

/// The caches of one layer.
pub struct LayerKv {
    /// `[pages, kv_heads, PAGE_POSITIONS, key_width]`
    pub keys: KvBuffer,
    /// `[pages, kv_heads, PAGE_POSITIONS, value_width]`; latent attention finds its values in the keys.
    pub values: Option<KvBuffer>,
}

/// All layers' caches and the pages that are free.
pub struct KvCache {
    pub pool: PagePool,
    layers: Vec<LayerKv>,
}

/// Bytes of one page over all layers.
pub fn page_bytes(spec: &ModelSpec, form: KvForm) -> u64 {
    (spec.kv_values_per_position() * PAGE_POSITIONS * form.bytes()) as u64
}

impl KvCache {
    /// Room for `pages` pages.
    pub fn new(
        spec: &ModelSpec,
        device: &Device,
        form: KvForm,
        pages: usize,
    ) -> Result<KvCache, KernelError> {
        let pool = PagePool::new(pages);
        let rows = pool.total() * PAGE_POSITIONS;
        let layer = |attention: &AttentionSpec| {
            Ok(match attention {
                AttentionSpec::Grouped(grouped) => {
                    let width = grouped.kv_heads * grouped.head_dim;
                    let values = Some(KvBuffer::zeros(device, form, rows * width)?);
                    LayerKv { keys: KvBuffer::zeros(device, form, rows * width)?, values }
                }
                AttentionSpec::Latent(latent) => {
                    LayerKv { keys: KvBuffer::zeros(device, form, rows * latent.stored_dim())?, values: None }
                }
            })
        };
        let layers = spec.layers.iter().map(|at| layer(&at.attention)).collect::<Result<_, KernelError>>()?;
        Ok(KvCache { pool, layers })
    }

    /// Copies a page of every layer.
    pub fn copy_page(&mut self, stream: &Stream, copy: PageCopy) {
        let pages = self.pool.total();
        for LayerKv { keys, values } in &mut self.layers {
            kv_copy(stream, copy, pages, keys);
            values.iter_mut().for_each(|values| kv_copy(stream, copy, pages, values));
        }
    }

    pub fn layer(&mut self, layer: usize) -> &mut LayerKv {
        &mut self.layers[layer]
    }
}
