//! A ring of bytes with one writer and one reader. Each counts the bytes it has moved since the beginning; the writer's
//! count is what says that bytes are there.
//!
//! Own counts are kept here and only ever stored in the memory; of the memory only the other's count is believed, and that
//! only as far as it can be true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;

use super::super::frame::FrameError;
use super::layout::RingPlace;
use super::map::Map;

/// The end that writes.
pub(super) struct RingWriter {
    map: Arc<Map>,
    place: RingPlace,
    written: u64,
    /// Up to here the reader knows.
    published: u64,
    /// Up to here the reader was seen to have read.
    read: u64,
}

/// The end that reads.
pub(super) struct RingReader {
    map: Arc<Map>,
    place: RingPlace,
    taken: u64,
    /// Up to here the writer knows.
    released: u64,
    /// Up to here the writer was seen to have written.
    written: u64,
}

impl RingWriter {
    pub(super) fn new(map: &Arc<Map>, place: RingPlace) -> RingWriter {
        RingWriter { map: map.clone(), place, written: 0, published: 0, read: 0 }
    }

    /// Whether `bytes` can be put. Looks at the reader's count only if what is known of it does not do.
    pub(super) fn has_room(&mut self, bytes: usize) -> Result<bool, FrameError> {
        if self.room() < bytes as u64 {
            let read = self.map.u64(self.place.tail).load(Ordering::SeqCst);
            // It may not go back, nor beyond what was published.
            if read.wrapping_sub(self.read) > self.published.wrapping_sub(self.read) {
                return Err(FrameError::Counter { ours: self.published, theirs: read });
            }
            self.read = read;
        }
        Ok(self.room() >= bytes as u64)
    }

    fn room(&self) -> u64 {
        self.place.bytes as u64 - self.written.wrapping_sub(self.read)
    }

    /// Bytes that the reader does not know of.
    pub(super) fn unpublished(&self) -> usize {
        self.written.wrapping_sub(self.published) as usize
    }

    /// Puts bytes behind those that were put before; there must be room.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() as u64 <= self.room(), "nothing unread is overwritten");
        let (first, rest) = split(self.place, self.written, bytes.len());
        self.map.write(first, &bytes[..bytes.len() - rest]);
        self.map.write(self.place.data, &bytes[bytes.len() - rest..]);
        self.skip(bytes.len());
    }

    /// Leaves `bytes` as they are.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.written = self.written.wrapping_add(bytes as u64);
    }

    /// Lets the reader know, and wakes it where it sleeps.
    pub(super) fn publish(&mut self) {
        self.reveal();
        self.wake_reader();
    }

    /// Lets the reader know, if it looks; whoever reveals wakes it in the end.
    pub(super) fn reveal(&mut self) {
        self.published = self.written;
        self.map.u64(self.place.head).store(self.written, Ordering::SeqCst);
    }

    pub(super) fn wake_reader(&self) {
        wake(self.map.u32(self.place.reader_sleeps));
    }

    /// Where the writer says that it sleeps.
    pub(super) fn sleeps(&self) -> usize {
        self.place.writer_sleeps
    }
}

impl RingReader {
    pub(super) fn new(map: &Arc<Map>, place: RingPlace) -> RingReader {
        RingReader { map: map.clone(), place, taken: 0, released: 0, written: 0 }
    }

    /// How many bytes can be taken. Looks at the writer's count only if what is known of it does not do.
    pub(super) fn available(&mut self, wanted: usize) -> Result<usize, FrameError> {
        let known = self.written.wrapping_sub(self.taken);
        if known < wanted as u64 {
            let written = self.map.u64(self.place.head).load(Ordering::SeqCst);
            let there = written.wrapping_sub(self.taken);
            // It may not go back, nor be further ahead than the ring is long.
            if there < known || there > (self.place.bytes - self.unreleased()) as u64 {
                return Err(FrameError::Counter { ours: self.taken, theirs: written });
            }
            self.written = written;
        }
        Ok(self.written.wrapping_sub(self.taken) as usize)
    }

    /// Takes the next bytes; they must be available.
    pub(super) fn take(&mut self, into: &mut [u8]) {
        let known = self.written.wrapping_sub(self.taken);
        assert!(into.len() as u64 <= known, "what is not there is not taken");
        let (first, rest) = split(self.place, self.taken, into.len());
        let (head, tail) = into.split_at_mut(into.len() - rest);
        self.map.read(first, head);
        self.map.read(self.place.data, tail);
        self.pass(into.len());
    }

    /// Passes over bytes that are available.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.taken = self.taken.wrapping_add(bytes as u64);
    }

    /// Bytes that the writer does not know to be free.
    pub(super) fn unreleased(&self) -> usize {
        self.taken.wrapping_sub(self.released) as usize
    }

    /// Lets the writer have the room of what was taken, and wakes it where it sleeps.
    pub(super) fn release(&mut self) {
        self.released = self.taken;
        self.map.u64(self.place.tail).store(self.taken, Ordering::SeqCst);
        self.wake_writer();
    }

    pub(super) fn wake_writer(&self) {
        wake(self.map.u32(self.place.writer_sleeps));
    }

    /// Where the reader says that it sleeps.
    pub(super) fn sleeps(&self) -> usize {
        self.place.reader_sleeps
    }
}

/// Where `bytes` bytes from `count` on begin, and how many of them lie behind the seam, at the ring's start.
fn split(place: RingPlace, count: u64, bytes: usize) -> (usize, usize) {
    let start = count as usize & (place.bytes - 1);
    (place.data + start, (start + bytes).saturating_sub(place.bytes))
}

/// Wakes who announced that it sleeps. The counter was stored before this looks, and the sleeper looks at the counter after
/// it has announced itself: one of the two sees the other.
fn wake(sleeps: &AtomicU32) {
    if sleeps.load(Ordering::SeqCst) != 0 {
        sleeps.store(0, Ordering::SeqCst);
        // It fails only for an address that is none.
        let _ = futex::wake(sleeps, futex::Flags::empty(), 1);
    }
}
