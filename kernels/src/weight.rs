//! A weight matrix in whichever form a model runs it: as stored, with f32 activations; or packed, with int8 ones.

use crate::matrix::Matrix;
use crate::packed::Packed;

#[derive(Clone, Debug)]
pub enum Weight {
    /// ARITHMETIC.md, 2.
    Plain(Matrix),
    /// ARITHMETIC.md, 7 and 8.
    Packed(Packed),
}

impl Weight {
    pub fn rows(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.rows(),
            Weight::Packed(packed) => packed.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.cols(),
            Weight::Packed(packed) => packed.cols(),
        }
    }

    /// The bytes of the matrix as it is run.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.stored_bytes(),
            Weight::Packed(packed) => packed.stored_bytes(),
        }
    }

    pub fn packed(&self) -> Option<&Packed> {
        match self {
            Weight::Packed(packed) => Some(packed),
            Weight::Plain(_) => None,
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
