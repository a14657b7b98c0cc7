//! A weight matrix in whichever form a model runs it: as stored, with f32 activations; or packed, with int8 ones; on the
//! CPU or in a GPU's memory.

use std::sync::Arc;

use crate::cuda::{MatrixOnDevice, PackedOnDevice, WeightOnDevice};
use crate::device::Device;
use crate::error::KernelError;
use crate::matrix::Matrix;
use crate::packed::Packed;

#[derive(Clone, Debug)]
pub enum Weight {
    /// ARITHMETIC.md, 2.
    Plain(Matrix),
    /// ARITHMETIC.md, 7 and 8.
    Packed(Packed),
    /// Either, in a GPU's memory.
    Cuda(Arc<WeightOnDevice>),
}

impl Weight {
    /// The same weight where `device` computes: itself for the CPU, a copy in a GPU's memory. Panics for a weight that is
    /// in a GPU's memory already.
    pub fn on(&self, device: &Device) -> Result<Weight, KernelError> {
        let Device::Cuda(cuda) = device else { return Ok(self.clone()) };
        let weight = match self {
            Weight::Plain(matrix) => WeightOnDevice::Plain(MatrixOnDevice::upload(cuda, matrix)?),
            Weight::Packed(packed) => WeightOnDevice::Packed(PackedOnDevice::upload(cuda, packed)?),
            Weight::Cuda(weight) => panic!("{weight:?} to {device}"),
        };
        Ok(Weight::Cuda(Arc::new(weight)))
    }

    pub fn rows(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.rows(),
            Weight::Packed(packed) => packed.rows(),
            Weight::Cuda(weight) => weight.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.cols(),
            Weight::Packed(packed) => packed.cols(),
            Weight::Cuda(weight) => weight.cols(),
        }
    }

    /// The bytes of the matrix as it is run.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.stored_bytes(),
            Weight::Packed(packed) => packed.stored_bytes(),
            Weight::Cuda(weight) => weight.stored_bytes(),
        }
    }

    /// The matrix of a packed weight on the CPU.
    pub fn packed(&self) -> Option<&Packed> {
        match self {
            Weight::Packed(packed) => Some(packed),
            Weight::Plain(_) | Weight::Cuda(_) => None,
        }
    }

    /// What a GPU's kernels see. Panics for a weight on the CPU.
    pub(crate) fn cuda(&self) -> &WeightOnDevice {
        match self {
            Weight::Cuda(weight) => weight,
            Weight::Plain(_) | Weight::Packed(_) => panic!("a kernel of a GPU on a weight of the CPU"),
        }
    }
}

impl From<Matrix> for Weight {
    fn from(matrix: Matrix) -> Weight {
        Weight::Plain(matrix)
    }
}

impl From<Packed> for Weight {
    fn from(packed: Packed) -> Weight {
        Weight::Packed(packed)
    }
}
