//! `quantize`: rows of f32 as i8 with a scale and a sum per group (`quantize.cu`; ARITHMETIC.md, 7).

use std::sync::Arc;

use super::arguments::{QuantizeArgs, QuantizedRows};
use super::compile::Source;
use super::device::{CudaDevice, CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::error::CudaError;

/// Quantised rows in a device's memory, and their shape.
#[derive(Clone, Copy)]
pub struct Quantized<'a> {
    pub codes: &'a DeviceBuffer<i8>,
    pub scales: &'a DeviceBuffer<f32>,
    pub sums: &'a DeviceBuffer<i32>,
    pub rows: usize,
    pub width: usize,
    pub group: usize,
}

impl Quantized<'_> {
    pub fn groups(&self) -> usize {
        self.width.div_ceil(self.group)
    }

    /// Panics where the buffers have no room for the shape.
    pub(super) fn argument(&self) -> QuantizedRows {
        let groups = self.rows * self.groups();
        let room =
            self.codes.len() >= groups * self.group && self.scales.len().min(self.sums.len()) >= groups;
        assert!(room, "{} quantised rows of {}: room", self.rows, self.width);
        QuantizedRows {
            codes: self.codes.at(0),
            scales: self.scales.at(0),
            sums: self.sums.at(0),
            groups: self.groups() as u64,
        }
    }
}

/// Room for quantised rows.
pub struct QuantizedBuffer {
    pub codes: DeviceBuffer<i8>,
    pub scales: DeviceBuffer<f32>,
    pub sums: DeviceBuffer<i32>,
}

impl QuantizedBuffer {
    /// Room for `rows` rows of `width` in groups of `group`.
    pub fn new(
        device: &Arc<CudaDevice>,
        rows: usize,
        width: usize,
        group: usize,
    ) -> Result<QuantizedBuffer, CudaError> {
        let groups = width.div_ceil(group);
        Ok(QuantizedBuffer {
            codes: DeviceBuffer::zeros(device, rows * groups * group)?,
            scales: DeviceBuffer::zeros(device, rows * groups)?,
            sums: DeviceBuffer::zeros(device, rows * groups)?,
        })
    }

    /// The front of it as rows of a shape, which must fit.
    pub fn rows(&self, rows: usize, width: usize, group: usize) -> Quantized<'_> {
        Quantized { codes: &self.codes, scales: &self.scales, sums: &self.sums, rows, width, group }
    }
}

/// The most rows that one launch takes: a grid's second side.
pub(super) const MOST_ROWS: usize = 65_535;

pub(super) const KERNEL: Kernel = Kernel { source: Source::Quantize, name: "quantize", form: None };

/// Quantises the rows of `x` into `out`.
pub fn quantize(queue: &CudaQueue, x: Strided<'_>, out: Quantized<'_>) {
    assert!(x.heads == 1 && (x.rows, x.width) == (out.rows, out.width), "quantize: x");
    assert!(x.rows <= MOST_ROWS, "quantize: rows");
    assert!(matches!(out.group, 32 | 64 | 128), "quantize: groups of {}", out.group);
    let to = out.argument();
    let args = QuantizeArgs {
        x: x.address(),
        codes: to.codes,
        scales: to.scales,
        sums: to.sums,
        x_stride: x.row_stride as u64,
        width: x.width as u32,
        group: out.group as u32,
    };
    // SAFETY: the shapes were checked above.
    unsafe { queue.launch(KERNEL, [out.groups().div_ceil(8), x.rows, 1], 256, 0, &args) };
}
