//! `attention` over paged KV (`ops::kv`).
//!
//! Position p of a sequence lies in page `table[p / 64]` at `p % 64`. q `[T, heads, key_width]`, out `[T, heads, value_width]`;
//! heads / kv_heads query heads share a KV head. Threads share out (KV head, row, up to eight heads); where no heads share one,
//! eight rows that follow each other do.

use std::ops::Range;

use super::kv::{KvBuffer, PAGE_POSITIONS};
use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::attention::{
    Attended, Gathered, Heads, KvElement, Paged, Part, QUERIES_MAX, Scratch, TASK_HEADS, attend, attend_part,
};
use crate::cuda;
use crate::device::CpuDevice;
use crate::stream::Stream;
use crate::view::{Layout, SharedRows, SharedSlice, View, ViewMut};

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

impl AttentionArgs<'_> {
    /// The positions that a row sees: `first..=last`.
    fn seen(&self, row: usize) -> (usize, usize) {
        let last = self.positions.host()[row] as usize;
        (self.mask.first(last), last)
    }
}

fn attend_all<E: KvElement>(
    stream: &Stream,
    args: &AttentionArgs<'_>,
    caches: Caches<'_, E>,
    mut out: ViewMut<'_>,
) {
    let (qs, kv, cpu) = (args.q.layout(), args.kv, stream.cpu());
    let seen: usize = (0..qs.rows).map(|row| args.seen(row)).map(|(first, last)| last + 1 - first).sum();
    let work = seen * qs.heads * (kv.key_width + kv.value_width) / 8;
    let at = out.layout();
    let tasks = Tasks::new(args, caches, (out.shared(), at));
    let threads = cpu.pool.threads();
    let room = |chunks: &Chunks| chunk_room(chunks.count(), qs.heads, kv.value_width) <= SCRATCH_MAX;
    let worth = |chunks: &Chunks| tasks.rows_together == 1 && chunks.count() >= 2 * threads;
    if let Some(chunks) = Chunks::new(args).filter(|chunks| worth(chunks) && room(chunks)) {
        return attend_chunks(cpu, &tasks, &chunks, work);
    }
    // An item a thread at least.
    let together = if qs.rows <= FEW_ROWS { tasks.per_row * qs.rows / threads } else { 1 };
    let together = together.clamp(1, tasks.together_max());
    let (row_runs, head_runs) = (qs.rows.div_ceil(tasks.rows_together), tasks.per_row.div_ceil(together));
    let items = row_runs * head_runs;
    let parts = cpu.parts_within(items, work, 16);
    cpu.pool.run(parts, &|part| {
        let mut scratch = Scratch::take();
        for item in run_of(items, parts, part) {
            // A thread stays with its KV heads as long as it can: their keys and values stay close by.
            let (run, first) = (item % row_runs, item / row_runs * together);
            let heads = first..(first + together).min(tasks.per_row);
            let mut row = run * tasks.rows_together;
            let end = (row + tasks.rows_together).min(qs.rows);
            while row < end {
                let rows = same_sequence(args, row..end);
                let (queries, out) = tasks.queries(row..row + rows, heads.clone());
                // SAFETY: inside the view; every (row, head) belongs to one item.
                unsafe { attend(cpu.isa, &queries, &mut scratch, out) };
                row += rows;
            }
        }
        scratch.keep();
    });
}

/// Rows of a batch that only decodes, or nearly so.
const FEW_ROWS: usize = 16;

/// Bytes of chunks that wait to be merged; with more of them the threads share out the heads.
const SCRATCH_MAX: usize = 32 << 20;

/// Bytes of so many chunks: values, and maximum and sum, of every head.
fn chunk_room(chunks: usize, heads: usize, value_width: usize) -> usize {
    chunks * heads * (value_width * size_of::<f32>() + size_of::<(f32, f32)>())
}

/// The most bytes that attention keeps for itself, for batches of up to `rows` rows in a context of so many positions.
pub fn attention_scratch_bytes(rows: usize, context: usize, heads: usize, value_width: usize) -> usize {
    // A window that begins within a chunk has a part of one chunk more.
    let chunks = rows.min(FEW_ROWS) * (context.div_ceil(ATTENTION_CHUNK) + 1);
    chunk_room(chunks, heads, value_width).min(SCRATCH_MAX)
}

/// The chunks of a few rows' contexts.
struct Chunks {
    /// How many the rows before each have.
    before: [usize; FEW_ROWS + 1],
    rows: usize,
}

impl Chunks {
    fn new(args: &AttentionArgs<'_>) -> Option<Chunks> {
        let rows = args.q.layout().rows;
        let mut before = [0; FEW_ROWS + 1];
        for row in 0..rows {
            let (first, last) = args.seen(row);
            *before.get_mut(row + 1)? = before[row] + last / ATTENTION_CHUNK + 1 - first / ATTENTION_CHUNK;
        }
        Some(Chunks { before, rows })
    }

    fn count(&self) -> usize {
        self.before[self.rows]
    }

    /// A chunk's row.
    fn row(&self, chunk: usize) -> usize {
        self.before[1..=self.rows].partition_point(|&upto| upto <= chunk)
    }
}

/// What the queries get of each chunk: values, and maximum and sum.
type ChunkParts = (Vec<f32>, Vec<(f32, f32)>);

thread_local! {
    static PARTS: std::cell::Cell<ChunkParts> = std::cell::Cell::default();
}

/// Few rows with long contexts: threads share out the chunks, for all KV heads of a page are one run of memory; then the
/// heads, to merge the chunks in their order.
fn attend_chunks<E: KvElement>(cpu: &CpuDevice, tasks: &Tasks<'_, E>, chunks: &Chunks, work: usize) {
    let head_runs = tasks.per_row.div_ceil(tasks.together_max());
    let together = tasks.per_row.div_ceil(head_runs);
    let (heads, width) = (tasks.args.q.layout().heads, tasks.args.kv.value_width);
    let items = chunks.count() * head_runs;
    // Head after head of every chunk: what `chunk_room` counts.
    let (mut values, mut sums) = PARTS.take();
    values.resize((chunks.count() * heads * width).max(values.len()), 0.0);
    sums.resize((chunks.count() * heads).max(sums.len()), (0.0, 0.0));
    let (shared, shared_sums) = (SharedSlice::new(&mut values), SharedSlice::new(&mut sums));
    // What `count` heads have of them, from a task's first on.
    let part = |index: usize, chunk: usize, (task, count): (usize, usize)| {
        let at = index * heads + tasks.first_head(task);
        // SAFETY: items have heads of their own in a chunk, which are written in one run of the pool and only read in the next.
        let (partial, own) =
            unsafe { (shared.range(at * width, count * width), shared_sums.range(at, count)) };
        Part { chunk, own, partial }
    };
    let start_of = |row: usize, index: usize| {
        (tasks.args.seen(row).0 / ATTENTION_CHUNK + index - chunks.before[row]) * ATTENTION_CHUNK
    };
    let parts = cpu.parts_within(items, work, 16);
    cpu.pool.run(parts, &|which| {
        let mut scratch = Scratch::take();
        for item in run_of(items, parts, which) {
            let (index, first) = (item / head_runs, item % head_runs * together);
            let row = chunks.row(index);
            let (queries, _) = tasks.queries(row..row + 1, first..(first + together).min(tasks.per_row));
            let part = part(index, start_of(row, index), (first, queries.queries()));
            attend_part(cpu.isa, &queries, &mut scratch, part);
        }
        scratch.keep();
    });
    let merges = chunks.rows * tasks.per_row;
    let parts = cpu.parts_for(merges, chunks.count() * heads * width);
    cpu.pool.run(parts, &|which| {
        for merge in run_of(merges, parts, which) {
            let (row, head) = (merge / tasks.per_row, merge % tasks.per_row);
            let (queries, out) = tasks.queries(row..row + 1, head..head + 1);
            // SAFETY: every (row, head) belongs to one merge.
            let mut gathered = unsafe { Gathered::begin(cpu.isa, &queries, out) };
            for index in chunks.before[row]..chunks.before[row + 1] {
                gathered.add(&part(index, start_of(row, index), (head, queries.queries())));
            }
            gathered.finish();
        }
    });
    PARTS.set((values, sums));
}

/// How many of the rows, from the first on, belong to its sequence.
fn same_sequence(args: &AttentionArgs<'_>, rows: Range<usize>) -> usize {
    let sequences = &args.sequences.host()[rows];
    sequences.iter().take_while(|sequence| **sequence == sequences[0]).count()
}

/// How rows and heads become tasks: a KV head and up to eight of its queries for one row, or for rows that follow each other
/// in a sequence where no heads share a KV head.
struct Tasks<'a, E: KvElement> {
    args: &'a AttentionArgs<'a>,
    caches: Caches<'a, E>,
    out: SharedRows,
    out_at: Layout,
    /// Heads that share a KV head.
    group: usize,
    /// Tasks of a KV head.
    blocks: usize,
    /// Tasks of a row.
    per_row: usize,
    rows_together: usize,
}

impl<'a, E: KvElement> Tasks<'a, E> {
    fn new(args: &'a AttentionArgs<'a>, caches: Caches<'a, E>, out: (SharedRows, Layout)) -> Self {
        let rows = args.q.layout().rows;
        let group = args.q.layout().heads / args.kv.kv_heads;
        let blocks = group.div_ceil(TASK_HEADS);
        let alone =
            group > 1 || (rows <= FEW_ROWS && (0..rows).all(|row| same_sequence(args, row..rows) == 1));
        let rows_together = if alone { 1 } else { TASK_HEADS };
        let per_row = args.kv.kv_heads * blocks;
        Tasks { args, caches, out: out.0, out_at: out.1, group, blocks, per_row, rows_together }
    }

    /// The most queries of a task.
    fn heads_max(&self) -> usize {
        if self.rows_together > 1 { self.rows_together } else { self.group.min(TASK_HEADS) }
    }

    /// The most tasks of one call: of KV heads that follow each other.
    fn together_max(&self) -> usize {
        if self.blocks > 1 { 1 } else { QUERIES_MAX / self.heads_max() }
    }

    /// The first head of a task of one row.
    fn first_head(&self, task: usize) -> usize {
        task / self.blocks * self.group + task % self.blocks * TASK_HEADS
    }

    /// The queries of some tasks, for rows of one sequence, and where their results go.
    fn queries(&self, rows: Range<usize>, tasks: Range<usize>) -> (Heads<'a, E>, Attended) {
        let (args, qs, os, kv) = (self.args, self.args.q.layout(), self.out_at, self.args.kv);
        let (kv_head, first) = (tasks.start / self.blocks, self.first_head(tasks.start));
        let heads = TASK_HEADS.min((kv_head + 1) * self.group - first);
        let by_rows = self.rows_together > 1;
        let count = if by_rows { rows.len() } else { heads };
        let mut seen = [(0, 0); TASK_HEADS];
        for (index, seen) in seen.iter_mut().enumerate().take(count) {
            *seen = args.seen(if by_rows { rows.start + index } else { rows.start });
        }
        let paged = |buffer: &'a Buffer<E>, width: usize| Paged {
            cache: buffer.host(),
            page_stride: kv.kv_heads * PAGE_POSITIONS * width,
            head_offset: kv_head * PAGE_POSITIONS * width,
            width,
        };
        let sequence = args.sequences.host()[rows.start] as usize;
        // The last query's last element is inside the view, and so are those before it.
        self.out.pointer(rows.end - 1, first + (tasks.len() - 1) * self.group + heads - 1, os.width - 1);
        let out = Attended {
            pointer: self.out.pointer(rows.start, first, 0),
            step: self.group * os.head_stride,
            stride: if by_rows { os.row_stride } else { os.head_stride },
            width: os.width,
        };
        let queries = Heads {
            q: &args.q.data[qs.at(rows.start, first)..],
            q_step: self.group * qs.head_stride,
            q_stride: if by_rows { qs.row_stride } else { qs.head_stride },
            kv_heads: tasks.len(),
            heads: count,
            keys: paged(self.caches.0, kv.key_width),
            values: self.caches.1.map_or(paged(self.caches.0, kv.key_width), |v| paged(v, kv.value_width)),
            value_width: kv.value_width,
            pages: &args.tables.host()[sequence * args.table_stride..][..args.table_stride],
            seen,
            scale: args.scale,
            sinks: args.sinks.map(|sinks| (&sinks.host()[first..], by_rows)),
        };
        (queries, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{CpuOptions, Device};
    use crate::ops::KvForm;

    /// Attends once and looks at what stays behind in this thread.
    fn kept(rows: usize, positions: usize, (heads, kv_heads, width): (usize, usize, usize)) -> usize {
        let device = Device::cpu(CpuOptions { threads: 2, pin: false, ..CpuOptions::default() }).unwrap();
        let stream = Stream::new(&device);
        let numbers = |values: &[u32]| {
            let mut buffer = Buffer::zeros(&device, values.len()).unwrap();
            stream.upload(values, &mut buffer).unwrap();
            buffer
        };
        let pages = positions.div_ceil(PAGE_POSITIONS);
        let cache =
            || KvBuffer::zeros(&device, KvForm::F16, pages * kv_heads * PAGE_POSITIONS * width).unwrap();
        let (keys, values) = (cache(), cache());
        let q = Buffer::zeros(&device, rows * heads * width).unwrap();
        let mut out = Buffer::zeros(&device, rows * heads * width).unwrap();
        let args = AttentionArgs {
            q: View::heads(&q, rows, heads, width),
            kv: KvView { keys: &keys, values: Some(&values), kv_heads, key_width: width, value_width: width },
            tables: &numbers(&(0..pages as u32).collect::<Vec<_>>()),
            table_stride: pages,
            sequences: &numbers(&vec![0; rows]),
            positions: &numbers(&(0..rows).map(|row| (positions - 1 - row) as u32).collect::<Vec<_>>()),
            mask: Mask::Full,
            sinks: None,
            scale: 1.0,
        };
        attention(&stream, &args, ViewMut::heads(&mut out, rows, heads, width));
        let (values, sums) = PARTS.take();
        values.len() * size_of::<f32>() + sums.len() * size_of::<(f32, f32)>()
    }

    /// What plans of memory count with. 36 KV heads are two runs of 18, 24 heads that share two are runs of 8.
    #[test]
    fn chunks_keep_no_more_than_was_said() {
        for (rows, positions, shape) in [
            (1, 1300, (16, 16, 64)),
            (1, 2100, (36, 36, 16)),
            (2, 1100, (24, 2, 8)),
            (1, 3000, (300, 300, 16)),
        ] {
            let kept = kept(rows, positions, shape);
            let said = attention_scratch_bytes(rows, positions, shape.0, shape.2);
            assert!((1..=said).contains(&kept), "{kept} bytes of {said} for {shape:?}");
        }
        // So many chunks that threads share out the heads.
        assert_eq!(kept(1, 4096, (8192, 8, 64)), 0);
        assert_eq!(attention_scratch_bytes(1, 4096, 8192, 64), SCRATCH_MAX);
    }
}
