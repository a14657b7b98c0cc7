//! The loader's way to packed weights that are kept in a file: what a matrix is called there, and in which form it counts.
//!
//! The form follows from the tables alone, so that nothing of a matrix that is kept is read from the checkpoint.

use gaterail_kernels::{Codes, GGUF_GROUP, MXFP4_GROUP, Matrix, PackedFormat, Weight, ops};

use super::cache::{Place, Store};
use super::expected::{Expected, Form, Slot, stored_form};
use super::experts::stored_bytes;
use super::int4;
use super::load::Loader;
use super::precision::{Precision, Step, Use};
use crate::checkpoint::{Checkpoint, StoredType};
use crate::config::Quantization;

/// The packed forms that a matrix may be run in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Forms {
    One(PackedFormat),
    /// Scales as wide as the exponents need.
    Mxfp4,
    /// Scales as stored, offsets as zero points need them.
    Int4 {
        group: usize,
    },
}

impl Forms {
    fn has(self, format: PackedFormat) -> bool {
        match self {
            Forms::One(one) => format == one,
            Forms::Mxfp4 => {
                let PackedFormat { codes, scales: _, offsets, group } = format;
                codes == Codes::MXFP4 && !offsets && group == MXFP4_GROUP
            }
            Forms::Int4 { group } => format.codes == Codes::INT4 && format.group == group,
        }
    }

    /// The codes of all of them, and the size of their groups.
    pub(super) fn codes(self) -> (Codes, usize) {
        match self {
            Forms::One(one) => (one.codes, one.group),
            Forms::Mxfp4 => (Codes::MXFP4, MXFP4_GROUP),
            Forms::Int4 { group } => (Codes::INT4, group),
        }
    }
}

/// In which forms `Loader::run_as` would pack a matrix; `None` where it would not.
pub(super) fn forms(
    row: &Expected,
    usage: Use,
    (checkpoint, quantization): (&Checkpoint, Quantization),
    precision: Precision,
) -> Option<Forms> {
    if usage == Use::AsStored || matches!(precision, Precision::F32 | Precision::Bf16) {
        return None;
    }
    let own = match (precision, usage) {
        (Precision::AsStored, _) => None,
        (Precision::Int8, _) | (_, Use::Head) => Some(Forms::One(PackedFormat::INT8)),
        _ => Some(Forms::One(PackedFormat::INT4)),
    };
    let blocks = |format| Some(Forms::One(PackedFormat { group: GGUF_GROUP, ..format }));
    match checkpoint.tensor(&row.name).map(|tensor| tensor.stored) {
        Some(StoredType::Q4_0) => blocks(PackedFormat::INT4),
        Some(StoredType::Q8_0) => blocks(PackedFormat::INT8),
        Some(_) => own,
        None => match stored_form(quantization, row.form) {
            Quantization::Int4(stored) => Some(Forms::Int4 { group: int4::our_group(stored, row.shape[1]) }),
            _ if row.form == Form::Stack => Some(Forms::Mxfp4),
            _ => None,
        },
    }
}

impl Loader<'_> {
    /// Takes packed weights from a store, and gives it those that have to be packed.
    pub(crate) fn keep_in(&mut self, store: Store) {
        self.store = Some(store);
    }

    /// The matrices at these places are held as these weights.
    pub(super) fn settle(&mut self, at: &[(Place, &Weight)]) {
        if let Some(store) = &mut self.store {
            store.settle(at);
        }
    }

    /// The store, with all that was packed.
    pub(crate) fn into_store(self) -> Option<Store> {
        self.store
    }

    /// The whole matrix of a slot.
    pub(super) fn whole_place(&self, slot: Slot) -> Place {
        let Expected { name, shape, .. } = self.expected(slot);
        Place { name: name.clone(), first_row: 0, rows: shape[0], first_col: 0, cols: shape[1] }
    }

    /// The matrix at `place`, if the store has it packed as this slot would be.
    pub(super) fn recall(&mut self, slot: Slot, place: &Place, usage: Use) -> Option<Weight> {
        self.store.as_ref()?;
        let row = self.expected(slot).clone();
        let forms = forms(&row, usage, (self.checkpoint, self.quantization), self.precision)?;
        let store = self.store.as_mut()?;
        let packed = store.recall(place, |format| forms.has(format), self.device, &mut self.arena)?;
        let bytes = self.stored_share(&row, place);
        (self.loading)(bytes);
        Some(packed.into())
    }

    /// A matrix in the precision asked for.
    pub(super) fn run_as(&mut self, place: &Place, matrix: Matrix, usage: Use) -> Weight {
        match self.precision.step(&matrix, usage) {
            Step::Keep => matrix.into(),
            Step::ToBf16 => matrix.to_bf16().into(),
            Step::Pack(packing) => {
                let packed = ops::pack(self.device, &matrix, packing, &mut self.arena);
                if let Some(store) = &mut self.store {
                    store.keep(place.clone(), &packed);
                }
                packed.into()
            }
        }
    }

    /// The bytes that a part of a tensor would have been read from.
    fn stored_share(&self, row: &Expected, place: &Place) -> u64 {
        let elements: u128 = row.shape.iter().map(|&n| n as u128).product();
        let part = place.rows as u128 * place.cols as u128;
        (u128::from(stored_bytes(self.checkpoint, &row.name)) * part / elements.max(1)) as u64
    }
}
