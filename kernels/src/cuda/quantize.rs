//! `quantize`: rows of f32 as i8 with a scale and a sum per group (`quantize.cu`; ARITHMETIC.md, 7).

use std::sync::Arc;

use super::arguments::{QuantizeArgs, QuantizedRows};
use super::compile::Source;
use super::device::{CudaDevice, CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::error::CudaError;

/// Room for quantised rows, and what was last written to it.
pub struct QuantizedBuffer {
    pub codes: DeviceBuffer<i8>,
    pub scales: DeviceBuffer<f32>,
    pub sums: DeviceBuffer<i32>,
    width: usize,
    group: usize,
    rows: usize,
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
            width,
            group,
            rows: 0,
        })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn group(&self) -> usize {
        self.group
    }

    pub fn groups(&self) -> usize {
        self.width.div_ceil(self.group)
    }

    pub(super) fn argument(&self) -> QuantizedRows {
        let groups = self.groups() as u64;
        QuantizedRows { codes: self.codes.at(0), scales: self.scales.at(0), sums: self.sums.at(0), groups }
    }
}

/// The most rows that one launch takes: a grid's second side.
pub(super) const MOST_ROWS: usize = 65_535;

pub(super) const KERNEL: Kernel = Kernel { source: Source::Quantize, name: "quantize", form: None };

/// Quantises the rows of `x` into `out`.
pub fn quantize(queue: &CudaQueue, x: Strided<'_>, out: &mut QuantizedBuffer) {
    assert!(x.heads == 1 && x.width == out.width, "quantize: x");
    assert!(x.rows * out.groups() <= out.scales.len() && x.rows <= MOST_ROWS, "quantize: rows");
    assert!(matches!(out.group, 32 | 64 | 128), "quantize: groups of {}", out.group);
    out.rows = x.rows;
    let args = QuantizeArgs {
        x: x.address(),
        codes: out.codes.at(0),
        scales: out.scales.at(0),
        sums: out.sums.at(0),
        x_stride: x.row_stride as u64,
        width: x.width as u32,
        group: out.group as u32,
    };
    // SAFETY: the shapes were checked above.
    unsafe { queue.launch(KERNEL, [out.groups().div_ceil(8), x.rows, 1], 256, 0, &args) };
}
