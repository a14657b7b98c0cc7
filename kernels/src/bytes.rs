//! Immutable bytes that many views share: a mapped checkpoint, or memory of our own.

use std::ops::Range;
use std::sync::Arc;

use crate::buffer::{AlignedVec, Plain};

/// A shared, immutable run of bytes; cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All the bytes of `owner`.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Bytes {
        let range = 0..(*owner).as_ref().len();
        Bytes { owner, range }
    }

    /// A copy of `values`, aligned for any element.
    pub fn copied<T: Plain>(values: &[T]) -> Bytes {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut own = AlignedVec::<u8>::zeros(bytes.len());
        own.as_mut_slice().copy_from_slice(bytes);
        Bytes::new(Arc::new(own))
    }

    /// The sub-run `range`; panics when it does not fit.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice {range:?} of {} bytes",
            self.len()
        );
        let start = self.range.start;
        Bytes { owner: self.owner.clone(), range: start + range.start..start + range.end }
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    pub fn as_slice(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// The bytes as elements; `None` if they are not aligned or not a whole number of elements.
    pub fn as_elements<T: Plain>(&self) -> Option<&[T]> {
        bytemuck::try_cast_slice(self.as_slice()).ok()
    }

    /// These bytes if they are aligned for `T`, else an aligned copy of them.
    pub fn aligned_for<T: Plain>(&self) -> Bytes {
        if (self.as_slice().as_ptr() as usize).is_multiple_of(align_of::<T>()) {
            self.clone()
        } else {
            Bytes::copied(self.as_slice())
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}
