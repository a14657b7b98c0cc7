//! Large runs of memory that many packed matrices are cut from: two-megabyte pages need runs that are larger than one
//! expert, and decode reads them a third faster (notes/2026-11-20-w4a8.md).

use std::ops::Range;
use std::sync::Arc;

use crate::buffer::AlignedVec;
use crate::bytes::Bytes;
use crate::packed::LINE;

/// Bytes of the first run, and of the largest; each is four times the one before, so that small models take little.
const SLAB_FIRST: usize = 256 << 10;
const SLAB_LARGEST: usize = 256 << 20;

/// Cuts pieces off the current run, and takes a new one when it is used up.
#[derive(Default)]
pub struct Arena {
    slab: Option<Arc<Slab>>,
    used: usize,
}

/// A run of memory, which outlives the arena as long as a piece of it is in use.
struct Slab {
    /// Kept for its pointer: pieces are reached through that alone.
    memory: AlignedVec<u8>,
    bytes: usize,
}

// SAFETY: a piece is written only through the exclusive `Piece`, before its bytes are shared; pieces do not overlap.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

/// A piece of zeroed memory that is being filled.
pub(crate) struct Piece {
    slab: Arc<Slab>,
    range: Range<usize>,
}

impl Arena {
    /// `bytes` zeroed bytes that begin on a cache line.
    pub(crate) fn piece(&mut self, bytes: usize) -> Piece {
        let fits = |slab: &&Arc<Slab>| self.used + bytes <= slab.bytes;
        let slab = match self.slab.as_ref().filter(fits) {
            Some(slab) => slab.clone(),
            None => {
                let next = self.slab.as_ref().map_or(SLAB_FIRST, |slab| (slab.bytes * 4).min(SLAB_LARGEST));
                let size = bytes.max(next);
                self.used = 0;
                self.slab.insert(Arc::new(Slab { memory: AlignedVec::zeros(size), bytes: size })).clone()
            }
        };
        let range = self.used..self.used + bytes;
        self.used = range.end.next_multiple_of(LINE);
        Piece { slab, range }
    }
}

impl Piece {
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range belongs to this piece alone until `share` gives it up.
        unsafe {
            let start = self.slab.memory.as_ptr().add(self.range.start);
            std::slice::from_raw_parts_mut(start, self.range.len())
        }
    }

    /// The filled piece, for good.
    pub fn share(self) -> Bytes {
        Bytes::new(Arc::new(Shared(self)))
    }
}

/// A piece that is only read from here on.
struct Shared(Piece);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: nobody writes to a shared piece.
        unsafe {
            let start = self.0.slab.memory.as_ptr().add(self.0.range.start);
            std::slice::from_raw_parts(start, self.0.range.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_overlap_and_outlive_their_arena() {
        let mut arena = Arena::default();
        let pieces: Vec<Bytes> = [1usize, 64, 1000, SLAB_FIRST, 3, 77, 5 * SLAB_FIRST, 9]
            .iter()
            .enumerate()
            .map(|(i, &bytes)| {
                let mut piece = arena.piece(bytes);
                assert!(
                    piece.as_mut_slice().iter().take(4096).all(|&byte| byte == 0),
                    "piece {i} is not fresh"
                );
                let end = bytes.min(4096);
                piece.as_mut_slice()[..end].fill(i as u8 + 1);
                piece.share()
            })
            .collect();
        drop(arena);
        for (i, piece) in pieces.iter().enumerate() {
            let slice = piece.as_slice();
            assert!((slice.as_ptr() as usize).is_multiple_of(LINE), "piece {i} begins on a line");
            assert!(slice.iter().take(4096).all(|&byte| byte == i as u8 + 1), "piece {i} was written over");
        }
    }
}
