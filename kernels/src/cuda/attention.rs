//! `attention` and `kv_write` (`attention.cu`), `kv_copy` (`rows_copy` of `rows.cu`): as `ops`' of the same name.

use half::f16;

use super::arguments::{AttentionArgs, KvWriteArgs, RowsArgs};
use super::compile::Source;
use super::device::{CudaQueue, Strided};
use super::driver::Kernel;
use super::quantize::MOST_ROWS;
use crate::ops::{self, ATTENTION_CHUNK, KvBuffer, Mask, PAGE_POSITIONS, PageCopy};

/// out <- attention of `args`, whose shapes `ops::attention` has checked.
pub(crate) fn attention(queue: &CudaQueue, args: &ops::AttentionArgs<'_>, out: Strided<'_>) {
    let (q, kv) = (args.q.strided(), args.kv);
    let page = kv.kv_heads * PAGE_POSITIONS;
    let (keys, len, half) = cache_of(kv.keys);
    let values = kv.values.map(cache_of);
    assert!(values.is_none_or(|(.., form)| form == half), "attention: keys and values of two forms");
    let values_pages = values.map_or(usize::MAX, |(_, len, _)| len / (page * kv.value_width));
    let pages = values_pages.min(len / (page * kv.key_width));
    let (mask, mask_size) = match args.mask {
        Mask::Full => (0, 1),
        Mask::Sliding { window } => (1, window),
        Mask::Chunked { size } => (2, size),
    };
    assert!(mask_size >= 1 && out.rows <= MOST_ROWS, "attention: mask and rows");
    assert!(kv.values.is_some() || kv.value_width <= kv.key_width, "attention: value width");
    let launch = AttentionArgs {
        q: q.address(),
        keys,
        values: values.map_or(0, |(address, ..)| address),
        tables: args.tables.cuda().at(0),
        sequences: args.sequences.cuda().at(0),
        positions: args.positions.cuda().at(0),
        sinks: args.sinks.map_or(0, |sinks| sinks.cuda().at(0)),
        out: out.address(),
        q_row: q.row_stride as u64,
        q_head: q.head_stride as u64,
        out_row: out.row_stride as u64,
        out_head: out.head_stride as u64,
        table_stride: args.table_stride as u32,
        sequence_count: (args.tables.len() / args.table_stride.max(1)) as u32,
        pages: pages as u32,
        heads: q.heads as u32,
        kv_heads: kv.kv_heads as u32,
        key_width: kv.key_width as u32,
        value_width: kv.value_width as u32,
        mask,
        mask_size: mask_size.min(u32::MAX as usize) as u32,
        scale: args.scale,
        half: u32::from(half),
        padding: 0,
    };
    let kernel = Kernel { source: Source::Attention, name: "attention", form: None };
    let shared = 4 * (kv.key_width + kv.value_width + ATTENTION_CHUNK + 16);
    // SAFETY: shapes were checked by the caller, the views against their buffers; the kernel reads no page, sequence or
    // position that is not there.
    unsafe { queue.launch(kernel, [q.heads, q.rows, 1], 256, shared, &launch) };
}

/// A cache's address and length, and whether it is f16.
fn cache_of(cache: &KvBuffer) -> (u64, usize, bool) {
    match cache {
        KvBuffer::F32(cache) => (cache.cuda().at(0), cache.len(), false),
        KvBuffer::F16(cache) => (cache.cuda().at(0), cache.len(), true),
    }
}

/// cache <- rows, each to its slot; slots that the cache does not have are left out.
pub(crate) fn kv_write(queue: &CudaQueue, write: &ops::KvWrite<'_>, cache: &mut KvBuffer) {
    let from = write.from.strided();
    let (cache, len, half) = cache_of(cache);
    let pages = len / (from.heads * PAGE_POSITIONS * write.width);
    assert!(from.rows.max(from.heads) <= MOST_ROWS, "kv_write: rows");
    let args = KvWriteArgs {
        from: from.address(),
        slots: write.slots.cuda().at(0),
        cache,
        from_row: from.row_stride as u64,
        from_head: from.head_stride as u64,
        width: from.width as u32,
        heads: from.heads as u32,
        cache_width: write.width as u32,
        column: write.column as u32,
        pages: pages as u32,
        half: u32::from(half),
    };
    let kernel = Kernel { source: Source::Attention, name: "kv_write", form: None };
    // SAFETY: the shapes were checked by the caller, the view against its buffer; pages are checked by the kernel.
    unsafe { queue.launch(kernel, [from.width.div_ceil(256), from.heads, from.rows], 256, 0, &args) };
}

/// One page over another, `page` elements each: bits, whatever they mean.
pub(crate) fn kv_copy(queue: &CudaQueue, copy: PageCopy, page: usize, cache: &mut KvBuffer) {
    let (cache, len, half) = cache_of(cache);
    let bytes = page * if half { size_of::<f16>() } else { size_of::<f32>() };
    assert!(bytes.is_multiple_of(size_of::<f32>()), "kv_copy: half a word");
    assert!((copy.from.max(copy.to) as usize + 1) * page <= len, "kv_copy: pages");
    let at = |page: u32| cache + (page as usize * bytes) as u64;
    let width = bytes / size_of::<f32>();
    let args = RowsArgs { to: at(copy.to), from: at(copy.from), width: width as u32, ..RowsArgs::default() };
    let kernel = Kernel { source: Source::Rows, name: "rows_copy", form: None };
    // SAFETY: both pages lie in the cache.
    unsafe { queue.launch(kernel, [width.div_ceil(256), 1, 1], 256, 0, &args) };
}
