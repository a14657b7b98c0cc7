//! A packed matrix that is to be written: on the host, or in a card's memory, where its bytes are fetched when their turn has come.
//! Neither is kept for it alone: what has gone from a card by then is not written.

use std::sync::{Arc, Weak};

use gaterail_kernels::cuda::{PackedOnDevice, WeightOnDevice};
use gaterail_kernels::ops::BLOCK_PANELS;
use gaterail_kernels::{Packed, PackedFormat, Weight};

use super::CacheError;

#[derive(Clone, Debug)]
pub enum Matrix {
    Here(Packed),
    OnCard { format: PackedFormat, bytes: usize, weight: Weak<WeightOnDevice> },
}

impl Matrix {
    /// A packed weight that a card holds; `None` for any other.
    pub fn on_card(weight: &Weight) -> Option<Matrix> {
        let Weight::Cuda(weight) = weight else { return None };
        let there = weight.packed()?;
        Some(Matrix::OnCard {
            format: there.format(),
            bytes: there.stored_bytes(),
            weight: Arc::downgrade(weight),
        })
    }

    pub fn format(&self) -> PackedFormat {
        match self {
            Matrix::Here(packed) => packed.format(),
            Matrix::OnCard { format, .. } => *format,
        }
    }

    pub fn stored_bytes(&self) -> usize {
        match self {
            Matrix::Here(packed) => packed.stored_bytes(),
            Matrix::OnCard { bytes, .. } => *bytes,
        }
    }

    /// Hands over block after block of 128 rows.
    pub fn blocks(&self, each: impl FnMut(&[u8]) -> Result<(), CacheError>) -> Result<(), CacheError> {
        match self {
            Matrix::Here(packed) => {
                let panels = packed.panels();
                let block = |first| packed.panel_run(first..(first + BLOCK_PANELS).min(panels));
                (0..panels).step_by(BLOCK_PANELS).map(block).try_for_each(each)
            }
            Matrix::OnCard { format, weight, .. } => {
                let gone = || CacheError("a card does not hold them any more".to_string());
                let weight = weight.upgrade().ok_or_else(gone)?;
                let there = weight.packed().ok_or_else(gone)?;
                let panel = there.groups() * format.record();
                let bytes = fetched(there)?;
                // Others may want the room before all of it is written.
                drop(weight);
                bytes.chunks(BLOCK_PANELS * panel).try_for_each(each)
            }
        }
    }
}

fn fetched(there: &PackedOnDevice) -> Result<Vec<u8>, CacheError> {
    there.download().map_err(|error| CacheError(format!("cannot be read from the card: {error}")))
}
