//! `attention` over paged KV, and `kv_write` that fills it.
//!
//! A cache is `[pages, kv_heads, PAGE_POSITIONS, width]` f32; position p of a sequence lies in page `table[p / 64]` at
//! `p % 64`. q `[T, heads, key_width]`, out `[T, heads, value_width]`; heads / kv_heads query heads share a KV head.
//! Threads share out (row, up to eight heads of one KV head).

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::attention::{Heads, Paged, Scratch, TASK_HEADS, attend};
use crate::stream::Stream;
use crate::view::{View, ViewMut};

/// Positions of one page.
pub const PAGE_POSITIONS: usize = 64;
/// Positions of one chunk, the unit of summation (ARITHMETIC.md, 4).
pub const ATTENTION_CHUNK: usize = 256;

/// Which positions up to its own a row sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All.
    Full,
    /// The last `window`, its own included.
    Sliding { window: usize },
    /// Those of its own block of `size` positions, counted from 0.
    Chunked { size: usize },
}

impl Mask {
    /// The first position that `position` sees.
    pub fn first(self, position: usize) -> usize {
        match self {
            Mask::Full => 0,
            Mask::Sliding { window } => (position + 1).saturating_sub(window),
            Mask::Chunked { size } => position / size * size,
        }
    }
}

/// The caches of one layer.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    pub keys: &'a Buffer<f32>,
    /// `None`: a value is the first `value_width` columns of its key (latent attention).
    pub values: Option<&'a Buffer<f32>>,
    pub kv_heads: usize,
    pub key_width: usize,
    pub value_width: usize,
}

/// Attention of a batch of rows.
pub struct AttentionArgs<'a> {
    /// `[T, heads, key_width]`
    pub q: View<'a>,
    pub kv: KvView<'a>,
    /// Page tables, `[sequences, table_stride]`.
    pub tables: &'a Buffer<u32>,
    pub table_stride: usize,
    /// The sequence of each row, `[T]`.
    pub sequences: &'a Buffer<u32>,
    /// The position of each row, `[T]`.
    pub positions: &'a Buffer<u32>,
    pub mask: Mask,
    /// A logit per head that takes part in the softmax and has no value, `[heads]`.
    pub sinks: Option<&'a Buffer<f32>>,
    pub scale: f32,
}

pub fn attention(stream: &Stream, args: &AttentionArgs<'_>, mut out: ViewMut<'_>) {
    let (qs, os, kv) = (args.q.layout(), out.layout(), args.kv);
    assert_eq!((qs.rows, qs.heads, qs.width), (os.rows, os.heads, kv.key_width), "attention: q");
    assert_eq!(os.width, kv.value_width, "attention: out");
    assert!(qs.heads.is_multiple_of(kv.kv_heads), "attention: heads");
    assert!(qs.rows <= args.positions.len() && qs.rows <= args.sequences.len(), "attention: rows");
    assert!(args.sinks.is_none_or(|sinks| sinks.len() == qs.heads), "attention: sinks");
    let group = qs.heads / kv.kv_heads;
    let blocks = group.div_ceil(TASK_HEADS);
    let tasks_per_row = kv.kv_heads * blocks;
    let cpu = stream.cpu();
    let positions = &args.positions.host()[..qs.rows];
    let seen: usize = positions.iter().map(|&p| p as usize + 1 - args.mask.first(p as usize)).sum();
    let items = qs.rows * tasks_per_row;
    let parts = cpu.parts_for(items, seen * qs.heads * (kv.key_width + kv.value_width) / 8);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        let mut scratch = Scratch::new();
        for item in run_of(items, parts, part) {
            let (row, task) = (item / tasks_per_row, item % tasks_per_row);
            let kv_head = task / blocks;
            let first_head = kv_head * group + task % blocks * TASK_HEADS;
            let heads = TASK_HEADS.min((kv_head + 1) * group - first_head);
            let task = row_heads(args, row, kv_head, first_head, heads);
            let span = (heads - 1) * os.head_stride + os.width;
            // SAFETY: every (row, head) belongs to one item; `span` covers these heads of the row.
            let out = unsafe { shared.slice_heads(row, first_head, span) };
            attend(cpu.isa, &task, &mut scratch, out, os.head_stride);
        }
    });
}

fn row_heads<'a>(
    args: &AttentionArgs<'a>,
    row: usize,
    kv_head: usize,
    first_head: usize,
    heads: usize,
) -> Heads<'a> {
    let (qs, kv) = (args.q.layout(), args.kv);
    let last = args.positions.host()[row] as usize;
    let sequence = args.sequences.host()[row] as usize;
    let paged = |buffer: &'a Buffer<f32>, width: usize| Paged {
        cache: buffer.host(),
        page_stride: kv.kv_heads * PAGE_POSITIONS * width,
        head_offset: kv_head * PAGE_POSITIONS * width,
        width,
    };
    Heads {
        q: &args.q.data[qs.at(row, first_head)..],
        q_stride: qs.head_stride,
        heads,
        keys: paged(kv.keys, kv.key_width),
        values: kv.values.map_or(paged(kv.keys, kv.key_width), |values| paged(values, kv.value_width)),
        value_width: kv.value_width,
        pages: &args.tables.host()[sequence * args.table_stride..][..args.table_stride],
        first: args.mask.first(last),
        last,
        scale: args.scale,
        sinks: args.sinks.map(|sinks| &sinks.host()[first_head..][..heads]),
    }
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

pub fn kv_write(stream: &Stream, write: &KvWrite<'_>, cache: &mut Buffer<f32>) {
    let at = write.from.layout();
    let _ = stream.cpu();
    assert!(at.rows <= write.slots.len() && write.column + at.width <= write.width, "kv_write: shapes");
    let cache = cache.host_mut();
    for (row, &slot) in write.slots.host()[..at.rows].iter().enumerate() {
        let (page, offset) = (slot as usize / PAGE_POSITIONS, slot as usize % PAGE_POSITIONS);
        for head in 0..at.heads {
            let start = ((page * at.heads + head) * PAGE_POSITIONS + offset) * write.width + write.column;
            cache[start..start + at.width].copy_from_slice(write.from.slice(row, head));
        }
    }
}
