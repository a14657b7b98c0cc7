//! Attention of one row's heads over paged KV, by ARITHMETIC.md, 4.

use std::ops::Range;

use half::f16;

use crate::cpu::lanes::{Element, LANES, Lanes, by_isa, tree};
use crate::cpu::linear::{Dots, Out, dots_f16, dots_f32};
use crate::cpu::math::exp;
use crate::device::Isa;
use crate::ops::{ATTENTION_CHUNK, PAGE_POSITIONS};

/// Queries that share a KV head: heads of one row, or one head of rows that follow each other; and what they see.
pub(crate) struct Heads<'a, E> {
    /// `[heads, key_width]`, `q_stride` apart.
    pub q: &'a [f32],
    pub q_stride: usize,
    /// Queries.
    pub heads: usize,
    /// This KV head's pages of keys: page p at `keys[p * page_stride + head_offset]`, `[PAGE_POSITIONS, key_width]`.
    pub keys: Paged<'a, E>,
    /// Likewise for values `[PAGE_POSITIONS, value_row]`, of which the first `value_width` are used.
    pub values: Paged<'a, E>,
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
pub(crate) struct Paged<'a, E> {
    pub cache: &'a [E],
    pub page_stride: usize,
    pub head_offset: usize,
    pub width: usize,
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[heads, ATTENTION_CHUNK]`
    pub scores: Vec<f32>,
    /// `[heads, value_width]`
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
        self.chunk.resize((heads * value_width).max(self.chunk.len()), 0.0);
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

/// What KV stores.
pub(crate) trait KvElement: Element {
    fn dots(isa: Isa, d: Dots<'_, Self>, out: Out);
    fn values(isa: Isa, h: &Heads<'_, Self>, chunk: Chunk<'_>, out: Attended);
}

impl KvElement for f32 {
    fn dots(isa: Isa, d: Dots<'_, f32>, out: Out) {
        dots_f32(isa, d, out);
    }
    fn values(isa: Isa, h: &Heads<'_, f32>, chunk: Chunk<'_>, out: Attended) {
        chunk_values_f32(isa, h, chunk, out);
    }
}

impl KvElement for f16 {
    fn dots(isa: Isa, d: Dots<'_, f16>, out: Out) {
        dots_f16(isa, d, out);
    }
    fn values(isa: Isa, h: &Heads<'_, f16>, chunk: Chunk<'_>, out: Attended) {
        chunk_values_f16(isa, h, chunk, out);
    }
}

/// Writes each query's result.
///
/// # Safety
/// `out` is good for all of the queries, and nobody else uses their elements meanwhile.
pub(crate) unsafe fn attend<E: KvElement>(isa: Isa, h: &Heads<'_, E>, scratch: &mut Scratch, out: Attended) {
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
    for start in (first / ATTENTION_CHUNK * ATTENTION_CHUNK..=last).step_by(ATTENTION_CHUNK) {
        let end = start + ATTENTION_CHUNK;
        // What any of the queries sees; each then takes its own.
        chunk_scores(isa, h, start, start.max(first), end.min(last + 1), &mut scratch.scores);
        let chunk = Chunk { start, scores: &mut scratch.scores, partial: &mut scratch.chunk, state };
        E::values(isa, h, chunk, out);
    }
    for (head, &(max, sum)) in state.iter().enumerate() {
        // SAFETY: as above.
        let out = unsafe { out.of(head) };
        divide(isa, out, max, sum, h.sinks.map(|sinks| sinks[head.min(sinks.len() - 1)]));
    }
}

/// `scores[head, j] = dot(q, k_{chunk + j})` for the positions `from..to`, page by page.
fn chunk_scores<E: KvElement>(
    isa: Isa,
    h: &Heads<'_, E>,
    chunk: usize,
    from: usize,
    to: usize,
    scores: &mut [f32],
) {
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
        E::dots(isa, dots, unsafe { Out::new(into.as_mut_ptr(), ATTENTION_CHUNK) });
        position += count;
    }
}

/// A chunk of the context, and what the queries have of it.
pub(crate) struct Chunk<'a> {
    start: usize,
    /// `[heads, ATTENTION_CHUNK]`
    scores: &'a mut [f32],
    /// `[heads, value_width]`
    partial: &'a mut [f32],
    /// Maximum and sum of each query so far.
    state: &'a mut [(f32, f32)],
}

by_isa! { fn chunk_values_f32(h: &Heads<'_, f32>, chunk: Chunk<'_>, out: Attended) = values <f32> }
by_isa! { fn chunk_values_f16(h: &Heads<'_, f16>, chunk: Chunk<'_>, out: Attended) = values <f16> }

/// Softmax of the queries' scores, their values, and the merge into state and out.
#[inline(always)]
fn values<L: Lanes, E: Element>(h: &Heads<'_, E>, chunk: Chunk<'_>, out: Attended) {
    let mut seen = [const { 0..0 }; TASK_HEADS];
    let mut own = [(f32::NEG_INFINITY, 0.0f32); TASK_HEADS];
    for head in 0..h.heads {
        let (first, last) = h.seen[head];
        // Positions in the chunk.
        let from = first.clamp(chunk.start, chunk.start + ATTENTION_CHUNK) - chunk.start;
        let to = (last + 1).clamp(chunk.start, chunk.start + ATTENTION_CHUNK) - chunk.start;
        seen[head] = from..to.max(from);
        let scores = &mut chunk.scores[head * ATTENTION_CHUNK..][..ATTENTION_CHUNK];
        own[head] = soften(&mut scores[seen[head].clone()], h.scale, from);
    }
    let partial = &mut chunk.partial[..h.heads * h.value_width];
    partial.fill(0.0);
    weighted_values::<L, E>(h, chunk.start, &seen[..h.heads], chunk.scores, partial);
    for (head, state) in chunk.state.iter_mut().enumerate() {
        if !seen[head].is_empty() {
            let (max, sum) = own[head];
            // SAFETY: `attend`'s caller gave the queries' results to it alone.
            let out = unsafe { out.of(head) };
            merge(state, max, sum, &partial[head * h.value_width..][..h.value_width], out);
        }
    }
}

/// Turns scores into exponentials; their maximum and sum. The first score is the chunk's `from`-th.
#[inline(always)]
fn soften(scores: &mut [f32], scale: f32, from: usize) -> (f32, f32) {
    let mut max = f32::NEG_INFINITY;
    for s in scores.iter_mut() {
        *s *= scale;
        max = if *s > max { *s } else { max };
    }
    for s in scores.iter_mut() {
        *s = exp(*s - max);
    }
    let mut lane = [0.0f32; LANES];
    for (j, &e) in scores.iter().enumerate() {
        lane[(from + j) % LANES] += e;
    }
    (max, tree(&lane))
}

/// Queries whose values are added together, so that a row is loaded once for them.
const TOGETHER: usize = 4;

/// `partial_d = Σ_j e_j v_jd` of every query, ascending j.
#[inline(always)]
fn weighted_values<L: Lanes, E: Element>(
    h: &Heads<'_, E>,
    chunk: usize,
    seen: &[Range<usize>],
    weights: &[f32],
    partial: &mut [f32],
) {
    let width = h.value_width;
    for page_start in (0..ATTENTION_CHUNK).step_by(PAGE_POSITIONS) {
        let here = |seen: &Range<usize>| {
            let from = seen.start.clamp(page_start, page_start + PAGE_POSITIONS);
            from..seen.end.clamp(from, page_start + PAGE_POSITIONS)
        };
        if seen.iter().all(|seen| here(seen).is_empty()) {
            continue;
        }
        let page = h.pages[(chunk + page_start) / PAGE_POSITIONS] as usize;
        let page = page * h.values.page_stride + h.values.head_offset;
        let rows = &h.values.cache[page..page + PAGE_POSITIONS * h.values.width];
        // The positions `j` of the chunk, for the queries from `head` on.
        let part = |j: Range<usize>, head: usize| Weighted {
            rows: &rows[(j.start - page_start) * h.values.width..][..(j.len() - 1) * h.values.width + width],
            row_width: h.values.width,
            weights: &weights[head * ATTENTION_CHUNK + j.start..],
            count: j.len(),
        };
        for (index, seen) in seen.chunks(TOGETHER).enumerate() {
            let head = index * TOGETHER;
            let partial = &mut partial[head * width..][..seen.len() * width];
            let common = seen.iter().map(here).reduce(|a, b| a.start.max(b.start)..a.end.min(b.end));
            match common {
                Some(common) if seen.len() == TOGETHER && !common.is_empty() => {
                    // What only some see, before and behind it, is added one by one.
                    for (which, seen) in seen.iter().enumerate() {
                        let before = here(seen).start..common.start;
                        if !before.is_empty() {
                            part(before, head + which).add::<L, 1>(width, &mut partial[which * width..]);
                        }
                    }
                    part(common.clone(), head).add::<L, TOGETHER>(width, partial);
                    for (which, seen) in seen.iter().enumerate() {
                        let behind = common.end..here(seen).end;
                        if !behind.is_empty() {
                            part(behind, head + which).add::<L, 1>(width, &mut partial[which * width..]);
                        }
                    }
                }
                _ => {
                    for (which, seen) in seen.iter().enumerate().filter(|(_, seen)| !here(seen).is_empty()) {
                        part(here(seen), head + which).add::<L, 1>(width, &mut partial[which * width..]);
                    }
                }
            }
        }
    }
}

/// Rows of values in one page, and the weights of queries, `ATTENTION_CHUNK` apart.
struct Weighted<'a, E> {
    rows: &'a [E],
    row_width: usize,
    weights: &'a [f32],
    count: usize,
}

impl<E: Element> Weighted<'_, E> {
    /// Adds the weighted rows to the sums of `Q` queries, `[Q, width]`, as many columns at a time as the registers hold.
    #[inline(always)]
    fn add<L: Lanes, const Q: usize>(&self, width: usize, sums: &mut [f32]) {
        assert!((self.count - 1) * self.row_width + width <= self.rows.len());
        assert!((Q - 1) * ATTENTION_CHUNK + self.count <= self.weights.len() && Q * width <= sums.len());
        let mut column = 0;
        // SAFETY: rows, weights and sums have what `add_to` is asked for, as asserted.
        unsafe {
            match (L::WIDE, Q) {
                (true, 1) => self.many::<L, Q, 8>(width, &mut column, sums),
                (true, _) | (false, 1) => self.many::<L, Q, 4>(width, &mut column, sums),
                _ => {}
            }
            self.many::<L, Q, 1>(width, &mut column, sums);
        }
        for (query, sums) in sums.chunks_mut(width).enumerate().take(Q) {
            for (d, sum) in sums.iter_mut().enumerate().skip(column) {
                for j in 0..self.count {
                    let weight = self.weights[query * ATTENTION_CHUNK + j];
                    *sum = weight.mul_add(self.rows[j * self.row_width + d].widen(), *sum);
                }
            }
        }
    }

    /// Steps of `16 N` columns, as long as there are so many left.
    #[inline(always)]
    unsafe fn many<L: Lanes, const Q: usize, const N: usize>(
        &self,
        width: usize,
        column: &mut usize,
        sums: &mut [f32],
    ) {
        while *column + N * LANES <= width {
            // SAFETY: passed on to the caller.
            unsafe { self.add_to::<L, Q, N>(*column, width, sums.as_mut_ptr()) };
            *column += N * LANES;
        }
    }

    /// Adds the weighted rows' columns from `column` on to `16 N` sums of each query.
    ///
    /// # Safety
    /// The rows and the sums have these columns, and the weights are there.
    #[inline(always)]
    unsafe fn add_to<L: Lanes, const Q: usize, const N: usize>(
        &self,
        column: usize,
        width: usize,
        sums: *mut f32,
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            let mut acc = [[L::splat(0.0); N]; Q];
            for (q, acc) in acc.iter_mut().enumerate() {
                for (n, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(sums.add(q * width + column + n * LANES));
                }
            }
            for j in 0..self.count {
                let row = self.rows.as_ptr().add(j * self.row_width + column);
                let values: [L; N] = std::array::from_fn(|n| E::load::<L>(row.add(n * LANES)));
                for (q, acc) in acc.iter_mut().enumerate() {
                    let weight = L::splat(*self.weights.as_ptr().add(q * ATTENTION_CHUNK + j));
                    for (acc, value) in acc.iter_mut().zip(&values) {
                        *acc = weight.fma(*value, *acc);
                    }
                }
            }
            for (q, acc) in acc.iter().enumerate() {
                for (n, acc) in acc.iter().enumerate() {
                    acc.store(sums.add(q * width + column + n * LANES));
                }
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

by_isa! {
    /// Rounds to f16, half to even; what lies beyond its range becomes its largest value, NaN stays.
    fn narrow(from: &[f32], to: &mut [f16]) = narrow_row
}

#[inline(always)]
fn narrow_row<L: Lanes>(from: &[f32], to: &mut [f16]) {
    assert_eq!(from.len(), to.len());
    let largest = f16::MAX.to_f32();
    for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
        let mut lane = [0.0f32; LANES];
        for (lane, &value) in lane.iter_mut().zip(from) {
            *lane = if value > largest {
                largest
            } else if value < -largest {
                -largest
            } else {
                value
            };
        }
        let mut bits = [0u16; LANES];
        // SAFETY: both arrays have 16 elements; instructions by `by_isa!`.
        unsafe { L::load(lane.as_ptr()).store_f16(bits.as_mut_ptr()) };
        for (to, bits) in to.iter_mut().zip(bits) {
            *to = f16::from_bits(bits);
        }
    }
}
