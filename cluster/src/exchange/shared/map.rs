//! The memory that two processes share: the one place of this crate with unsafe code.
//!
//! What lies in it may change at any time, to anything, for the other process may be hostile. So nothing here hands out a
//! plain reference into it: single numbers are read and written as atomics, runs of bytes are copied out before anybody
//! looks at them. It cannot shrink under us, for its file is sealed (`offer` sees to that).
#![allow(unsafe_code)]

use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A file mapped whole, to be read and written.
pub(super) struct Map(memmap2::MmapRaw);

impl Map {
    pub(super) fn of(file: &File, bytes: usize) -> std::io::Result<Map> {
        memmap2::MmapOptions::new().len(bytes).map_raw(file).map(Map)
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.0.len());
        assert!(fits, "{bytes} bytes at {offset} in a map of {}", self.0.len());
        // SAFETY: the offset lies within the mapping, as was just seen.
        unsafe { self.0.as_mut_ptr().add(offset) }
    }

    pub(super) fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "a u32 at {offset}");
        // SAFETY: within the mapping, aligned (the mapping starts at a page), alive as long as `self`; all of this process
        // reaches these bytes as this atomic only.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    pub(super) fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "a u64 at {offset}");
        // SAFETY: as for `u32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Copies bytes out of the memory.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: the source lies within the mapping; the target is ours alone, so that they do not overlap. Should the
        // other process write meanwhile, against the protocol, the copy is some mixture of bytes, and is checked as such:
        // whoever calls decides on the copy, never on the memory again (a counter is stored, an atomic operation, before
        // the bytes are looked at, and the compiler may not read them again behind it).
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), into.as_mut_ptr(), into.len()) }
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Copies bytes into the memory.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let into = self.at(offset, bytes.len());
        // SAFETY: the target lies within the mapping, of which no reference to plain bytes exists, so that the source is
        // elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), into, bytes.len()) }
    }
}
