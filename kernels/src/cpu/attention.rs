//! Attention of one row's heads over paged KV, by ARITHMETIC.md, 4.

use crate::cpu::lanes::{LANES, Lanes, by_isa, tree};
use crate::cpu::linear::{Dots, Out, dots_f32};
use crate::cpu::math::exp;
use crate::device::Isa;
use crate::ops::{ATTENTION_CHUNK, PAGE_POSITIONS};

/// Queries that share a KV head: heads of one row, or one head of rows that follow each other; and what they see.
pub(crate) struct Heads<'a> {
    /// `[heads, key_width]`, `q_stride` apart.
    pub q: &'a [f32],
    pub q_stride: usize,
    /// Queries.
    pub heads: usize,
    /// This KV head's pages of keys: page p at `keys[p * page_stride + head_offset]`, `[PAGE_POSITIONS, key_width]`.
    pub keys: Paged<'a>,
    /// Likewise for values `[PAGE_POSITIONS, value_row]`, of which the first `value_width` are used.
    pub values: Paged<'a>,
    pub value_width: usize,
    pub pages: &'a [u32],
    /// The positions that each query sees: `first..=last`.
    pub seen: [(usize, usize); TASK_HEADS],
    pub scale: f32,
    /// A sink logit per query; one for all where there is only one.
    pub sinks: Option<&'a [f32]>,
}

/// One KV head's rows in a paged cache.
#[derive(Clone, Copy)]
pub(crate) struct Paged<'a> {
    pub cache: &'a [f32],
    pub page_stride: usize,
    pub head_offset: usize,
    pub width: usize,
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[heads, ATTENTION_CHUNK]`
    pub scores: Vec<f32>,
    /// `[value_width]`
    pub chunk: Vec<f32>,
}

thread_local! {
    static SCRATCH: std::cell::Cell<Scratch> = std::cell::Cell::default();
}

impl Scratch {
    /// This thread's; to be given back with `keep`.
    pub fn take() -> Scratch {
        SCRATCH.take()
    }

    pub fn keep(self) {
        SCRATCH.set(self);
    }

    fn fit(&mut self, heads: usize, value_width: usize) {
        self.scores.resize((heads * ATTENTION_CHUNK).max(self.scores.len()), 0.0);
        self.chunk.resize(value_width.max(self.chunk.len()), 0.0);
    }
}

/// The most heads of one task.
pub(crate) const TASK_HEADS: usize = 8;

/// Where the queries' results go: query i at `pointer + i * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Attended {
    pub pointer: *mut f32,
    pub stride: usize,
    pub width: usize,
}

impl Attended {
    /// # Safety
    /// The query's elements are inside the memory pointed at, and nobody else uses them meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn of(&self, query: usize) -> &mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(query * self.stride), self.width) }
    }
}

/// Writes each query's result.
///
/// # Safety
/// `out` is good for all of the queries, and nobody else uses their elements meanwhile.
pub(crate) unsafe fn attend(isa: Isa, h: &Heads<'_>, scratch: &mut Scratch, out: Attended) {
    assert!(h.heads <= TASK_HEADS);
    scratch.fit(h.heads, h.value_width);
    let mut state = [(f32::NEG_INFINITY, 0.0f32); TASK_HEADS];
    let state = &mut state[..h.heads];
    for head in 0..h.heads {
        // SAFETY: the caller's promise, here and below.
        unsafe { out.of(head) }.fill(0.0);
    }
    let seen = &h.seen[..h.heads];
    let first = seen.iter().map(|seen| seen.0).min().unwrap_or(0);
    let last = seen.iter().map(|seen| seen.1).max().unwrap_or(0);
    let mut chunk = first / ATTENTION_CHUNK * ATTENTION_CHUNK;
    while chunk <= last {
        let end = chunk + ATTENTION_CHUNK;
        // What any of the queries sees; each then takes its own.
        chunk_scores(isa, h, chunk, chunk.max(first), end.min(last + 1), &mut scratch.scores);
        for (head, state) in state.iter_mut().enumerate() {
            let (from, to) = (chunk.max(seen[head].0), end.min(seen[head].1 + 1));
            if from >= to {
                continue;
            }
            let scores = &mut scratch.scores[head * ATTENTION_CHUNK..][..ATTENTION_CHUNK];
            // SAFETY: as above.
            let out = unsafe { out.of(head) };
            chunk_values(isa, h, chunk, from..to, scores, &mut scratch.chunk[..h.value_width], state, out);
        }
        chunk = end;
    }
    for (head, &(max, sum)) in state.iter().enumerate() {
        // SAFETY: as above.
        let out = unsafe { out.of(head) };
        divide(isa, out, max, sum, h.sinks.map(|sinks| sinks[head.min(sinks.len() - 1)]));
    }
}

/// `scores[head, j] = dot(q, k_{chunk + j})` for the positions `from..to`, page by page.
fn chunk_scores(isa: Isa, h: &Heads<'_>, chunk: usize, from: usize, to: usize, scores: &mut [f32]) {
    let mut position = from;
    while position < to {
        let in_page = position % PAGE_POSITIONS;
        let count = (PAGE_POSITIONS - in_page).min(to - position);
        let page = h.pages[position / PAGE_POSITIONS] as usize;
        let start = page * h.keys.page_stride + h.keys.head_offset + in_page * h.keys.width;
        let dots = Dots {
            x: h.q,
            x_stride: h.q_stride,
            tokens: h.heads,
            w: h.keys.cache,
            w_start: start,
            w_stride: h.keys.width,
            rows: count,
            k: h.keys.width,
        };
        let into = &mut scores[position - chunk..];
        assert!((h.heads - 1) * ATTENTION_CHUNK + count <= into.len());
        // SAFETY: `heads` rows of scores, `count` of each, lie in `into`, which is ours alone.
        dots_f32(isa, dots, unsafe { Out::new(into.as_mut_ptr(), ATTENTION_CHUNK) });
        position += count;
    }
}

by_isa! {
    /// Softmax of one head's chunk, its values, and the merge into (max, sum, out).
    fn chunk_values(h: &Heads<'_>, chunk: usize, seen: std::ops::Range<usize>, scores: &mut [f32],
        partial: &mut [f32], state: &mut (f32, f32), out: &mut [f32]) = values
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn values<L: Lanes>(
    h: &Heads<'_>,
    chunk: usize,
    seen: std::ops::Range<usize>,
    scores: &mut [f32],
    partial: &mut [f32],
    state: &mut (f32, f32),
    out: &mut [f32],
) {
    let local = seen.start - chunk..seen.end - chunk;
    let mut max = f32::NEG_INFINITY;
    for s in &mut scores[local.clone()] {
        *s *= h.scale;
        max = if *s > max { *s } else { max };
    }
    for s in &mut scores[local.clone()] {
        *s = exp(*s - max);
    }
    let mut lane = [0.0f32; LANES];
    for j in local.clone() {
        lane[j % LANES] += scores[j];
    }
    let sum = tree(&lane);
    weighted_values::<L>(h, chunk, seen, scores, partial);
    merge(state, max, sum, partial, out);
}

/// `partial_d = Σ_j e_j v_jd`, ascending j, from +0.
#[inline(always)]
fn weighted_values<L: Lanes>(
    h: &Heads<'_>,
    chunk: usize,
    seen: std::ops::Range<usize>,
    weights: &[f32],
    partial: &mut [f32],
) {
    partial.fill(0.0);
    let mut position = seen.start;
    while position < seen.end {
        let in_page = position % PAGE_POSITIONS;
        let count = (PAGE_POSITIONS - in_page).min(seen.end - position);
        let page = h.pages[position / PAGE_POSITIONS] as usize;
        let start = page * h.values.page_stride + h.values.head_offset + in_page * h.values.width;
        let rows = &h.values.cache[start..start + (count - 1) * h.values.width + partial.len()];
        let weights = &weights[position - chunk..][..count];
        let weights = Weighted { rows, width: h.values.width, weights };
        let mut column = 0;
        // A row's values are read once, as many vectors side by side as the registers hold.
        let wide = if L::WIDE { 8 * LANES } else { 4 * LANES };
        while column + wide <= partial.len() {
            // SAFETY: the columns lie in `partial`, and `rows` ends after `partial.len()` columns of its last row.
            unsafe {
                match L::WIDE {
                    true => weights.add_to::<L, 8>(column, partial.as_mut_ptr().add(column)),
                    false => weights.add_to::<L, 4>(column, partial.as_mut_ptr().add(column)),
                }
            }
            column += wide;
        }
        while column + LANES <= partial.len() {
            // SAFETY: as above.
            unsafe { weights.add_to::<L, 1>(column, partial.as_mut_ptr().add(column)) };
            column += LANES;
        }
        for (d, value) in partial[column..].iter_mut().enumerate() {
            for (j, &weight) in weights.weights.iter().enumerate() {
                *value = weight.mul_add(rows[j * h.values.width + column + d], *value);
            }
        }
        position += count;
    }
}

/// Rows of values in one page, and the weight of each.
struct Weighted<'a> {
    rows: &'a [f32],
    width: usize,
    weights: &'a [f32],
}

impl Weighted<'_> {
    /// Adds the weighted rows' columns from `column` on to `16 N` sums.
    ///
    /// # Safety
    /// The rows and the sums have these columns.
    #[inline(always)]
    unsafe fn add_to<L: Lanes, const N: usize>(&self, column: usize, sums: *mut f32) {
        // SAFETY: passed on to the caller.
        unsafe {
            let mut acc = [L::splat(0.0); N];
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(sums.add(n * LANES));
            }
            for (j, &weight) in self.weights.iter().enumerate() {
                let row = self.rows.as_ptr().add(j * self.width + column);
                let weight = L::splat(weight);
                for (n, acc) in acc.iter_mut().enumerate() {
                    *acc = weight.fma(L::load(row.add(n * LANES)), *acc);
                }
            }
            for (n, acc) in acc.iter().enumerate() {
                acc.store(sums.add(n * LANES));
            }
        }
    }
}

#[inline(always)]
fn merge(state: &mut (f32, f32), max: f32, sum: f32, partial: &[f32], out: &mut [f32]) {
    let new = if max > state.0 { max } else { state.0 };
    let (a, b) = (exp(state.0 - new), exp(max - new));
    *state = (new, state.1.mul_add(a, sum * b));
    for (o, &p) in out.iter_mut().zip(partial) {
        *o = o.mul_add(a, p * b);
    }
}

by_isa! {
    /// Merges the sink, then divides by the sum.
    fn divide(out: &mut [f32], max: f32, sum: f32, sink: Option<f32>) = finish
}

#[inline(always)]
fn finish<L: Lanes>(out: &mut [f32], max: f32, sum: f32, sink: Option<f32>) {
    let mut total = sum;
    if let Some(sink) = sink {
        let new = if sink > max { sink } else { max };
        let a = exp(max - new);
        total = sum.mul_add(a, exp(sink - new));
        out.iter_mut().for_each(|o| *o = o.mul_add(a, 0.0));
    }
    out.iter_mut().for_each(|o| *o /= total);
}
