//! A shard's pieces of one layer in a device's memory.

use std::sync::Arc;

use super::forms::{self, not_packed};
use super::{ExpertsScratch, PLAN, Path, SUM, TERMS_BYTES, TILE_COLUMNS};
use crate::cuda::arguments::ExpertPiece as Entry;
use crate::cuda::compile::{Form, Source};
use crate::cuda::device::{CudaDevice, DeviceBuffer};
use crate::cuda::driver::Kernel;
use crate::cuda::error::CudaError;
use crate::cuda::quantize::{self, Quantized};
use crate::cuda::weight::{PackedOnDevice, WeightOnDevice};
use crate::ops::ExpertPiece;
use crate::packed::PackedFormat;
use crate::weight::Weight;

/// Pieces of experts with packed weights.
///
/// Gate and up of all pieces have one kind of codes and one group, and so have all down; scales and offsets are each
/// matrix' own. Pieces of other kinds make another shard, whose terms add up in the same sums.
pub struct ExpertsOnDevice {
    pub(super) pieces: DeviceBuffer<Entry>,
    /// What the pieces point to; other shards may point there, too.
    matrices: Vec<Arc<WeightOnDevice>>,
    biases: Vec<DeviceBuffer<f32>>,
    /// H
    pub(super) width: usize,
    /// The longest piece along F.
    pub(super) widest: usize,
    /// One more than the highest id of a piece.
    pub(super) experts: usize,
    /// The most pieces of one expert.
    pub(super) copies: usize,
    pub(super) inner: (PackedFormat, Form),
    pub(super) down: (PackedFormat, Form),
}

impl ExpertsOnDevice {
    /// Brings pieces over; matrices that are there already are shared. Panics if there are none, or if one's shapes do not
    /// fit each other.
    pub fn upload(device: &Arc<CudaDevice>, pieces: &[ExpertPiece]) -> Result<ExpertsOnDevice, CudaError> {
        let first = pieces.first().expect("a shard has pieces");
        let width = first.gate.cols();
        let (inner, down) = (format(&first.gate)?, format(&first.down)?);
        let highest = pieces.iter().map(|piece| piece.expert as usize).max().unwrap_or(0);
        forms::check_count(highest + 1, device.properties().shared_bytes)?;
        let mut order: Vec<&ExpertPiece> = pieces.iter().collect();
        order.sort_by_key(|piece| piece.expert);
        let copies = order.chunk_by(|a, b| a.expert == b.expert).map(<[_]>::len).max().unwrap_or(0);
        let mut shard = ExpertsOnDevice {
            pieces: DeviceBuffer::zeros(device, 0)?,
            matrices: Vec::new(),
            biases: Vec::new(),
            width,
            widest: order.iter().map(|piece| piece.gate.rows()).max().unwrap_or(0),
            experts: highest + 1,
            copies,
            inner: (inner, Form::of(inner)?),
            down: (down, Form::of(down)?),
        };
        let entries: Vec<Entry> =
            order.iter().map(|piece| shard.put(device, piece)).collect::<Result<_, _>>()?;
        shard.pieces = DeviceBuffer::copied(device, &entries)?;
        Ok(shard)
    }

    /// Brings a piece over; its entry in the table.
    fn put(&mut self, device: &Arc<CudaDevice>, piece: &ExpertPiece) -> Result<Entry, CudaError> {
        assert!(piece.fits(self.width), "experts: a piece's shape");
        let (inner, down) = (self.inner.0, self.down.0);
        let mut part = |weight: &Weight, like: PackedFormat| {
            let format = format(weight)?;
            if (format.codes, format.group) != (like.codes, like.group) {
                return Err(forms::unlike(&like.into(), &format.into()));
            }
            let there = match weight {
                Weight::Cuda(there) => there.clone(),
                weight => Arc::new(WeightOnDevice::Packed(PackedOnDevice::upload(device, packed(weight)?)?)),
            };
            let part = on_device(&there)?.part();
            self.matrices.push(there);
            Ok(part)
        };
        let (gate, up) = (part(&piece.gate, inner)?, part(&piece.up, inner)?);
        let down = part(&piece.down, down)?;
        let mut bias = |bias: &Option<Vec<f32>>| {
            let Some(bias) = bias else { return Ok::<_, CudaError>(0) };
            self.biases.push(DeviceBuffer::copied(device, bias)?);
            Ok(self.biases[self.biases.len() - 1].at(0))
        };
        Ok(Entry {
            gate,
            up,
            down,
            gate_bias: bias(&piece.gate_bias)?,
            up_bias: bias(&piece.up_bias)?,
            down_bias: bias(&piece.down_bias)?,
            expert: piece.expert,
            width: piece.gate.rows() as u32,
        })
    }

    /// H
    pub fn width(&self) -> usize {
        self.width
    }

    /// The group in which the shard wants its rows.
    pub fn group(&self) -> usize {
        self.inner.0.group
    }

    /// The bytes of all matrices.
    pub fn stored_bytes(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.stored_bytes()).sum()
    }

    pub(super) fn hidden_groups(&self) -> usize {
        self.widest.div_ceil(self.down.0.group)
    }

    /// The activated rows of `slots` slots.
    pub(super) fn hidden_rows<'a>(&self, scratch: &'a ExpertsScratch, slots: usize) -> Quantized<'a> {
        let group = self.down.0.group;
        scratch.hidden.rows(slots, self.hidden_groups() * group, group)
    }

    /// The columns of `terms` in one run.
    pub(super) fn term_columns(&self, slots: usize) -> usize {
        let fit = TERMS_BYTES / 8 / slots.max(1) / TILE_COLUMNS * TILE_COLUMNS;
        fit.clamp(TILE_COLUMNS, self.width.next_multiple_of(TILE_COLUMNS))
    }

    /// All kernels that the shard may launch, for `CudaDevice::prepare`.
    pub fn kernels(&self) -> Vec<Kernel> {
        let mut kernels = vec![quantize::KERNEL, PLAN, SUM];
        for path in [Path::Dot, Path::Eight, Path::ThirtyTwo, Path::Tiles] {
            let gate_up = Some(self.inner.1);
            kernels.push(Kernel { source: Source::ExpertsGateUp, name: path.gate_up(), form: gate_up });
            let down = Some(self.down.1);
            kernels.push(Kernel { source: Source::ExpertsDown, name: path.down(), form: down });
        }
        kernels
    }
}

/// How a matrix is packed, wherever it is.
fn format(weight: &Weight) -> Result<PackedFormat, CudaError> {
    match weight {
        Weight::Cuda(there) => Ok(on_device(there)?.format()),
        weight => Ok(packed(weight)?.format()),
    }
}

fn packed(weight: &Weight) -> Result<&crate::packed::Packed, CudaError> {
    weight.packed().ok_or_else(not_packed)
}

fn on_device(weight: &WeightOnDevice) -> Result<&PackedOnDevice, CudaError> {
    match weight {
        WeightOnDevice::Packed(packed) => Ok(packed),
        WeightOnDevice::Plain(_) => Err(not_packed()),
    }
}
