//! Weights in a device's memory: packed ones as `packed.rs` lays them out, plain ones as stored where that is f32, f16 or
//! bf16, and else as the f32 values they stand for (ARITHMETIC.md, 1).

use std::fmt;
use std::sync::Arc;

use super::arguments::{PackedPart, PlainMatrix};
use super::device::{CudaDevice, DeviceBuffer};
use super::error::CudaError;
use crate::buffer::Plain;
use crate::matrix::{ElementType, Matrix};
use crate::packed::{Packed, PackedFormat, Scales};

/// A weight of either form.
pub enum WeightOnDevice {
    Plain(MatrixOnDevice),
    Packed(PackedOnDevice),
}

impl WeightOnDevice {
    pub fn rows(&self) -> usize {
        match self {
            WeightOnDevice::Plain(matrix) => matrix.rows,
            WeightOnDevice::Packed(packed) => packed.rows,
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            WeightOnDevice::Plain(matrix) => matrix.cols,
            WeightOnDevice::Packed(packed) => packed.cols,
        }
    }

    pub fn packed(&self) -> Option<&PackedOnDevice> {
        match self {
            WeightOnDevice::Plain(_) => None,
            WeightOnDevice::Packed(packed) => Some(packed),
        }
    }

    pub fn stored_bytes(&self) -> usize {
        match self {
            WeightOnDevice::Plain(matrix) => matrix.bytes.len(),
            WeightOnDevice::Packed(packed) => packed.stored_bytes(),
        }
    }
}

impl fmt::Debug for WeightOnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self {
            WeightOnDevice::Plain(matrix) => format!("{:?}", matrix.kind),
            WeightOnDevice::Packed(packed) => format!("{:?}", packed.format),
        };
        write!(f, "WeightOnDevice({} x {}, {form})", self.rows(), self.cols())
    }
}

/// A packed matrix, or a part of one, in a device's memory: the bytes of its panels.
pub struct PackedOnDevice {
    bytes: DeviceBuffer<u8>,
    format: PackedFormat,
    rows: usize,
    cols: usize,
}

impl PackedOnDevice {
    /// Brings a packed matrix over. A part of one comes alone: its own panels and groups.
    pub fn upload(device: &Arc<CudaDevice>, packed: &Packed) -> Result<PackedOnDevice, CudaError> {
        let mut bytes = Vec::with_capacity(packed.stored_bytes());
        (0..packed.panels()).for_each(|panel| bytes.extend_from_slice(packed.panel(panel)));
        let bytes = DeviceBuffer::copied(device, &bytes)?;
        Ok(PackedOnDevice { bytes, format: packed.format(), rows: packed.rows(), cols: packed.cols() })
    }

    /// Brings its bytes back: panel after panel, as they lie in a matrix of its own.
    pub fn download(&self) -> Result<Vec<u8>, CudaError> {
        self.bytes.to_vec()
    }

    pub fn format(&self) -> PackedFormat {
        self.format
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.format.group)
    }

    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn part(&self) -> PackedPart {
        PackedPart {
            records: self.bytes.at(0),
            panel_bytes: (self.groups() * self.format.record()) as u64,
            record: self.format.record() as u32,
            codes_at: self.format.codes_at() as u32,
            wide_scales: u32::from(self.format.scales == Scales::F32),
            offsets: u32::from(self.format.offsets),
        }
    }
}

/// A plain matrix `[rows, cols]`, row-major and without gaps.
pub struct MatrixOnDevice {
    bytes: DeviceBuffer<u8>,
    kind: ElementType,
    rows: usize,
    cols: usize,
}

impl MatrixOnDevice {
    /// Brings a matrix over, or a part of one.
    pub fn upload(device: &Arc<CudaDevice>, matrix: &Matrix) -> Result<MatrixOnDevice, CudaError> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let kind = matrix.plain().unwrap_or(ElementType::F32);
        let bytes = match kind {
            ElementType::F16 | ElementType::Bf16 => elements::<u16>(matrix),
            ElementType::F32 => {
                let mut values = vec![0.0f32; rows * cols];
                let filled = values.chunks_exact_mut(cols.max(1)).enumerate();
                filled.for_each(|(row, out)| matrix.dequantize_row(row, out));
                bytemuck::cast_slice(&values).to_vec()
            }
        };
        Ok(MatrixOnDevice { bytes: DeviceBuffer::copied(device, &bytes)?, kind, rows, cols })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn argument(&self) -> PlainMatrix {
        let kind = match self.kind {
            ElementType::F32 => 0,
            ElementType::F16 => 1,
            ElementType::Bf16 => 2,
        };
        PlainMatrix { elements: self.bytes.at(0), kind, cols: self.cols as u32 }
    }
}

/// The elements of a plain matrix, row after row.
fn elements<T: Plain>(matrix: &Matrix) -> Vec<u8> {
    let (all, first, stride) = matrix.plain_elements::<T>();
    let row = |row: usize| &all[first + row * stride..][..matrix.cols()];
    let mut bytes = Vec::with_capacity(matrix.stored_bytes());
    (0..matrix.rows()).for_each(|index| bytes.extend_from_slice(bytemuck::cast_slice(row(index))));
    bytes
}
