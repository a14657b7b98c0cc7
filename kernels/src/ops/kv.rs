//! What KV stores, `kv_write` that fills it, and `kv_copy` that copies a page of it.
//!
//! A cache is `[pages, kv_heads, PAGE_POSITIONS, width]`, f32 or f16 (ARITHMETIC.md, 4). The threads share out the heads.

use half::f16;

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::attention::{ask, narrow};
use crate::cuda;
use crate::device::Device;
use crate::error::KernelError;
use crate::stream::Stream;
use crate::view::{SharedSlice, View};

/// Positions of one page.
pub const PAGE_POSITIONS: usize = 64;

/// The elements of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvForm {
    F32,
    F16,
}

impl KvForm {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            KvForm::F32 => size_of::<f32>(),
            KvForm::F16 => size_of::<f16>(),
        }
    }
}

/// The keys or the values of one layer.
pub enum KvBuffer {
    F32(Buffer<f32>),
    F16(Buffer<f16>),
}

impl KvBuffer {
    /// `len` zeros.
    pub fn zeros(device: &Device, form: KvForm, len: usize) -> Result<KvBuffer, KernelError> {
        Ok(match form {
            KvForm::F32 => KvBuffer::F32(Buffer::zeros(device, len)?),
            KvForm::F16 => KvBuffer::F16(Buffer::zeros(device, len)?),
        })
    }

    /// Elements of all pages.
    #[allow(clippy::len_without_is_empty)] // A cache has pages.
    pub fn len(&self) -> usize {
        match self {
            KvBuffer::F32(cache) => cache.len(),
            KvBuffer::F16(cache) => cache.len(),
        }
    }
}

/// One page over another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    pub from: u32,
    pub to: u32,
}

/// Rows on their way into a cache.
pub struct KvWrite<'a> {
    /// `[T, kv_heads, n]`
    pub from: View<'a>,
    /// Where each row goes, as `page * PAGE_POSITIONS + offset`, `[T]`.
    pub slots: &'a Buffer<u32>,
    /// The width of the cache's rows and the first column that is written.
    pub width: usize,
    pub column: usize,
}

pub fn kv_write(stream: &Stream, write: &KvWrite<'_>, cache: &mut KvBuffer) {
    let at = write.from.layout();
    assert!(at.rows <= write.slots.len() && write.column + at.width <= write.width, "kv_write: shapes");
    if let Some(queue) = stream.cuda() {
        return cuda::kv_write(queue, write, cache);
    }
    match cache {
        KvBuffer::F32(cache) => write_all(stream, write, cache, |from, to| to.copy_from_slice(from)),
        KvBuffer::F16(cache) => {
            let isa = stream.cpu().isa;
            write_all(stream, write, cache, |from, to| narrow(isa, from, to));
        }
    }
}

/// Copies a page of a cache that has `pages` of them.
pub fn kv_copy(stream: &Stream, copy: PageCopy, pages: usize, cache: &mut KvBuffer) {
    let PageCopy { from, to } = copy;
    assert!((from as usize) < pages && (to as usize) < pages, "kv_copy: pages");
    assert!(pages > 0 && cache.len().is_multiple_of(pages), "kv_copy: shapes");
    let page = cache.len() / pages;
    if let Some(queue) = stream.cuda() {
        return cuda::kv_copy(queue, copy, page, cache);
    }
    let (from, to) = (from as usize * page, to as usize * page);
    match cache {
        KvBuffer::F32(cache) => cache.host_mut().copy_within(from..from + page, to),
        KvBuffer::F16(cache) => cache.host_mut().copy_within(from..from + page, to),
    }
}

fn write_all<E: crate::buffer::Plain>(
    stream: &Stream,
    write: &KvWrite<'_>,
    cache: &mut Buffer<E>,
    put: impl Fn(&[f32], &mut [E]) + Sync,
) {
    let at = write.from.layout();
    let cpu = stream.cpu();
    let slots = &write.slots.host()[..at.rows];
    let cache = SharedSlice::new(cache.host_mut());
    let start_of = |head: usize, slot: u32| {
        let (page, offset) = (slot as usize / PAGE_POSITIONS, slot as usize % PAGE_POSITIONS);
        ((page * at.heads + head) * PAGE_POSITIONS + offset) * write.width + write.column
    };
    // One part a thread: heads that follow each other are one run of a row.
    let parts = cpu.parts_within(at.heads, at.rows * at.heads * at.width / 8, 1);
    cpu.pool.run(parts, &|part| {
        let heads = run_of(at.heads, parts, part);
        if slots.len() <= FEW_ROWS {
            // The heads of a row lie far apart and in no cache, and stores wait for their lines one after the other.
            for (&slot, head) in slots.iter().flat_map(|slot| heads.clone().map(move |head| (slot, head))) {
                let row = cache.pointer(start_of(head, slot)) as *const u8;
                ask(cpu.isa, row, at.width * size_of::<E>());
            }
        }
        for (row, &slot) in slots.iter().enumerate() {
            for head in heads.clone() {
                // SAFETY: parts have heads of their own.
                put(write.from.slice(row, head), unsafe { cache.range(start_of(head, slot), at.width) });
            }
        }
    });
}

/// Rows whose places are asked for first.
const FEW_ROWS: usize = 16;
