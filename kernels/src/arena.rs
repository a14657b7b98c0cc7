//! Large runs of memory that many packed matrices are cut from: two-megabyte pages need runs that are larger than one
//! expert, and decode reads them a third faster (notes/2026-11-20-w4a8.md).

use std::ops::Range;
use std::sync::Arc;

use crate::buffer::{AlignedVec, MAPPED_MIN};
use crate::bytes::Bytes;
use crate::packed::LINE;

/// Bytes of the first run, and of the largest; each is four times the one before, so that small models take little.
const SLAB_FIRST: usize = 256 << 10;
const SLAB_LARGEST: usize = 256 << 20;
const PAGE: usize = 4096;

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

impl Drop for Piece {
    /// Gives the whole pages of a piece that nobody needs any more back to the system: one piece that is in use must not keep the
    /// memory of a whole run.
    fn drop(&mut self) {
        let whole = self.range.start.next_multiple_of(PAGE)..self.range.end / PAGE * PAGE;
        // The last one frees all of it; runs begin on a page where they are mapped, and small ones are not worth it.
        if whole.is_empty() || self.slab.bytes < MAPPED_MIN || Arc::strong_count(&self.slab) == 1 {
            return;
        }
        // SAFETY: private memory of this process; the range belongs to this piece, whose last user is gone. It reads as zeros
        // from here on, and is not handed out again.
        unsafe {
            let start = self.slab.memory.as_ptr().add(whole.start);
            libc::madvise(start as *mut libc::c_void, whole.len(), libc::MADV_DONTNEED);
        }
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

    /// Pages of a piece that are in memory.
    fn resident(bytes: &[u8]) -> usize {
        let start = (bytes.as_ptr() as usize).next_multiple_of(PAGE);
        let pages = (bytes.as_ptr() as usize + bytes.len() - start) / PAGE;
        let mut seen = vec![0u8; pages];
        // SAFETY: the pages are mapped, and there is a byte for each.
        let found = unsafe { libc::mincore(start as *mut libc::c_void, pages * PAGE, seen.as_mut_ptr()) };
        assert_eq!(found, 0, "mincore");
        seen.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn what_nobody_needs_is_given_back_though_others_of_its_run_are_in_use() {
        const BYTES: usize = 1 << 20;
        let mut arena = Arena::default();
        // Of one run, which is used up before the next.
        let run: Vec<Bytes> = (0..64)
            .map(|_| {
                let mut piece = arena.piece(BYTES);
                piece.as_mut_slice().fill(7);
                piece.share()
            })
            .skip(25)
            .collect();
        let places: Vec<*const u8> = run.iter().map(|piece| piece.as_slice().as_ptr()).collect();
        let (kept, dropped): (Vec<_>, Vec<_>) = run.into_iter().enumerate().partition(|(at, _)| at % 8 == 0);
        let gone: Vec<usize> = dropped.iter().map(|(at, _)| *at).collect();
        // SAFETY: looked at with mincore alone; the run is there as long as a piece of it is.
        let look = |at: &usize| resident(unsafe { std::slice::from_raw_parts(places[*at], BYTES) });
        let before: usize = gone.iter().map(look).sum();
        drop(dropped);
        let after: usize = gone.iter().map(look).sum();
        assert!(before == gone.len() * BYTES / PAGE && after == 0, "{before} pages before, {after} after");
        assert!(kept.iter().all(|(_, piece)| piece.as_slice().iter().all(|&byte| byte == 7)));
    }

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
