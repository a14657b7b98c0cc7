//! `attention` over paged KV (`ops::kv`).
//!
//! Position p of a sequence lies in page `table[p / 64]` at `p % 64`. q `[T, heads, key_width]`, out `[T, heads, value_width]`;
//! heads / kv_heads query heads share a KV head. Threads share out (KV head, row, up to eight heads); where no heads share one,
//! eight rows that follow each other do.

use super::kv::{KvBuffer, PAGE_POSITIONS};
use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::attention::{Attended, Heads, KvElement, Paged, Scratch, TASK_HEADS, attend};
use crate::cuda;
use crate::stream::Stream;
use crate::view::{View, ViewMut};

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
    pub keys: &'a KvBuffer,
    /// `None`: a value is the first `value_width` columns of its key (latent attention).
    pub values: Option<&'a KvBuffer>,
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

pub fn attention(stream: &Stream, args: &AttentionArgs<'_>, out: ViewMut<'_>) {
    let (qs, os, kv) = (args.q.layout(), out.layout(), args.kv);
    assert_eq!((qs.rows, qs.heads, qs.width), (os.rows, os.heads, kv.key_width), "attention: q");
    assert_eq!(os.width, kv.value_width, "attention: out");
    assert!(qs.heads.is_multiple_of(kv.kv_heads), "attention: heads");
    assert!(qs.rows <= args.positions.len() && qs.rows <= args.sequences.len(), "attention: rows");
    assert!(args.sinks.is_none_or(|sinks| sinks.len() == qs.heads), "attention: sinks");
    if let Some(queue) = stream.cuda() {
        return cuda::attention(queue, args, out.strided());
    }
    match (kv.keys, kv.values) {
        (KvBuffer::F32(keys), None) => attend_all(stream, args, (keys, None), out),
        (KvBuffer::F16(keys), None) => attend_all(stream, args, (keys, None), out),
        (KvBuffer::F32(keys), Some(KvBuffer::F32(values))) => {
            attend_all(stream, args, (keys, Some(values)), out);
        }
        (KvBuffer::F16(keys), Some(KvBuffer::F16(values))) => {
            attend_all(stream, args, (keys, Some(values)), out);
        }
        _ => panic!("attention: keys and values of two forms"),
    }
}

/// Keys, and values where they are not part of them.
type Caches<'a, E> = (&'a Buffer<E>, Option<&'a Buffer<E>>);

fn attend_all<E: KvElement>(
    stream: &Stream,
    args: &AttentionArgs<'_>,
    caches: Caches<'_, E>,
    mut out: ViewMut<'_>,
) {
    let (qs, os, kv) = (args.q.layout(), out.layout(), args.kv);
    let group = qs.heads / kv.kv_heads;
    let blocks = group.div_ceil(TASK_HEADS);
    let tasks_per_row = kv.kv_heads * blocks;
    let cpu = stream.cpu();
    let positions = &args.positions.host()[..qs.rows];
    let seen: usize = positions.iter().map(|&p| p as usize + 1 - args.mask.first(p as usize)).sum();
    // Where no heads share keys, rows that follow each other do.
    let rows_together = if group == 1 { TASK_HEADS } else { 1 };
    let runs = qs.rows.div_ceil(rows_together);
    let items = runs * tasks_per_row;
    let parts = cpu.parts_within(items, seen * qs.heads * (kv.key_width + kv.value_width) / 8, 16);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        let mut scratch = Scratch::take();
        for item in run_of(items, parts, part) {
            // A thread stays with a KV head as long as it can: its keys and values stay close by.
            let (run, task) = (item % runs, item / runs);
            let kv_head = task / blocks;
            let first_head = kv_head * group + task % blocks * TASK_HEADS;
            let heads = TASK_HEADS.min((kv_head + 1) * group - first_head);
            let mut row = run * rows_together;
            let end = (row + rows_together).min(qs.rows);
            while row < end {
                let rows = if group == 1 { same_sequence(args, row..end) } else { 1 };
                let (task, stride) = match rows {
                    1 => (
                        queries(args, caches, (row, kv_head, first_head), (heads, qs.head_stride)),
                        os.head_stride,
                    ),
                    _ => (
                        queries(args, caches, (row, kv_head, first_head), (rows, qs.row_stride)),
                        os.row_stride,
                    ),
                };
                // The last query's element is inside the view, and so are those before it.
                let (last_row, last_head) =
                    if rows > 1 { (row + rows - 1, first_head) } else { (row, first_head + heads - 1) };
                shared.pointer(last_row, last_head, os.width - 1);
                let pointer = shared.pointer(row, first_head, 0);
                let out = Attended { pointer, stride, width: os.width };
                // SAFETY: inside the view; every (row, head) belongs to one item.
                unsafe { attend(cpu.isa, &task, &mut scratch, out) };
                row += rows;
            }
        }
        scratch.keep();
    });
}

/// How many of the rows, from the first on, belong to its sequence.
fn same_sequence(args: &AttentionArgs<'_>, rows: std::ops::Range<usize>) -> usize {
    let sequences = &args.sequences.host()[rows];
    sequences.iter().take_while(|sequence| **sequence == sequences[0]).count()
}

/// The queries from (row, first_head) on: `count` of them, `stride` apart, which is the heads' distance or the rows'.
fn queries<'a, E: KvElement>(
    args: &AttentionArgs<'a>,
    caches: Caches<'a, E>,
    (row, kv_head, first_head): (usize, usize, usize),
    (count, stride): (usize, usize),
) -> Heads<'a, E> {
    let (qs, kv) = (args.q.layout(), args.kv);
    let sequence = args.sequences.host()[row] as usize;
    let by_rows = count > 1 && stride == qs.row_stride && qs.heads == kv.kv_heads;
    let mut seen = [(0, 0); TASK_HEADS];
    for (index, seen) in seen.iter_mut().enumerate().take(count) {
        let last = args.positions.host()[if by_rows { row + index } else { row }] as usize;
        *seen = (args.mask.first(last), last);
    }
    let paged = |buffer: &'a Buffer<E>, width: usize| Paged {
        cache: buffer.host(),
        page_stride: kv.kv_heads * PAGE_POSITIONS * width,
        head_offset: kv_head * PAGE_POSITIONS * width,
        width,
    };
    Heads {
        q: &args.q.data[qs.at(row, first_head)..],
        q_stride: stride,
        heads: count,
        keys: paged(caches.0, kv.key_width),
        values: caches.1.map_or(paged(caches.0, kv.key_width), |values| paged(values, kv.value_width)),
        value_width: kv.value_width,
        pages: &args.tables.host()[sequence * args.table_stride..][..args.table_stride],
        seen,
        scale: args.scale,
        sinks: args.sinks.map(|sinks| &sinks.host()[first_head..][..if by_rows { 1 } else { count }]),
    }
}
