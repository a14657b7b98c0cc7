//! What the experts' kernels need beside weights and sums; it grows with the batches that come.

use std::sync::Arc;

use super::{ExpertsOnDevice, TERMS_BYTES, TILE_COLUMNS};
use crate::buffer::Plain;
use crate::cuda::arguments::ExpertTile;
use crate::cuda::device::{CudaDevice, DeviceBuffer};
use crate::cuda::error::CudaError;
use crate::cuda::quantize::QuantizedBuffer;

/// Room for a call's plan, activated rows and terms: `experts.h`.
pub struct ExpertsScratch {
    pub(super) hidden: QuantizedBuffer,
    pub(super) pairs: DeviceBuffer<u32>,
    pub(super) slots: DeviceBuffer<i32>,
    pub(super) tiles: DeviceBuffer<ExpertTile>,
    pub(super) tile_count: DeviceBuffer<u32>,
    pub(super) terms: DeviceBuffer<i64>,
}

/// Elements of each buffer.
struct Needs {
    slots: usize,
    tiles: usize,
    hidden_codes: usize,
    hidden_groups: usize,
    terms: usize,
}

impl Needs {
    fn of(shard: &ExpertsOnDevice, rows: usize, top_k: usize) -> Needs {
        let slots = rows * top_k * shard.copies;
        let hidden_groups = slots * shard.hidden_groups();
        Needs {
            slots,
            tiles: shard.pieces.len() + slots,
            hidden_codes: hidden_groups * shard.down.0.group,
            hidden_groups,
            // As much as fewer rows in longer runs of columns would take, too.
            terms: (slots * shard.width.next_multiple_of(TILE_COLUMNS))
                .min(TERMS_BYTES / 8)
                .max(slots * TILE_COLUMNS),
        }
    }
}

impl ExpertsScratch {
    /// Nothing yet.
    pub fn new(device: &Arc<CudaDevice>) -> Result<ExpertsScratch, CudaError> {
        Ok(ExpertsScratch {
            hidden: QuantizedBuffer::new(device, 0, 0, 32)?,
            pairs: DeviceBuffer::zeros(device, 0)?,
            slots: DeviceBuffer::zeros(device, 0)?,
            tiles: DeviceBuffer::zeros(device, 0)?,
            tile_count: DeviceBuffer::zeros(device, 1)?,
            terms: DeviceBuffer::zeros(device, 0)?,
        })
    }

    pub(super) fn has_room(&self, shard: &ExpertsOnDevice, rows: usize, top_k: usize) -> bool {
        let needs = Needs::of(shard, rows, top_k);
        self.pairs.len() >= needs.slots
            && self.slots.len() >= needs.slots
            && self.tiles.len() >= needs.tiles
            && self.hidden.codes.len() >= needs.hidden_codes
            && self.hidden.scales.len() >= needs.hidden_groups
            && self.terms.len() >= needs.terms
    }

    /// Makes room for calls of `rows` rows and fewer. It waits for the device where something must grow, so that nothing
    /// queued loses what it works on; not while a graph is captured.
    pub fn make_room(&mut self, shard: &ExpertsOnDevice, rows: usize, top_k: usize) -> Result<(), CudaError> {
        let needs = Needs::of(shard, rows, top_k);
        grow(&mut self.pairs, needs.slots)?;
        grow(&mut self.slots, needs.slots)?;
        grow(&mut self.tiles, needs.tiles)?;
        grow(&mut self.hidden.codes, needs.hidden_codes)?;
        grow(&mut self.hidden.scales, needs.hidden_groups)?;
        grow(&mut self.hidden.sums, needs.hidden_groups)?;
        grow(&mut self.terms, needs.terms)
    }
}

fn grow<T: Plain>(buffer: &mut DeviceBuffer<T>, len: usize) -> Result<(), CudaError> {
    if buffer.len() < len {
        *buffer = DeviceBuffer::zeros(buffer.device(), len)?;
    }
    Ok(())
}
