//! Attention of one row's heads over paged KV, by ARITHMETIC.md, 4.

mod values;

use std::ops::Range;

use half::f16;

use values::{values_f16, values_f32};

use crate::cpu::lanes::{Element, LANES, Lanes, by_isa};
use crate::cpu::linear::{Dots, Out, dots_f16, dots_f32};
use crate::cpu::math::exp;
use crate::device::Isa;
use crate::ops::{ATTENTION_CHUNK, PAGE_POSITIONS};
use crate::packed::LINE;

/// KV heads that follow each other, and the queries of each: heads of one row, or one head of rows that follow each other. A
/// page's keys of all these KV heads are one run of memory, and so are its values.
pub(crate) struct Heads<'a, E> {
    /// Query i of KV head h begins at `q[h * q_step + i * q_stride]`, `key_width` long.
    pub q: &'a [f32],
    pub q_step: usize,
    pub q_stride: usize,
    pub kv_heads: usize,
    /// Queries of a KV head.
    pub heads: usize,
    /// Pages of keys: page p of the first KV head at `keys[p * page_stride + head_offset]`, `[PAGE_POSITIONS, key_width]`.
    pub keys: Paged<'a, E>,
    /// Likewise for values `[PAGE_POSITIONS, value_row]`, of which the first `value_width` are used.
    pub values: Paged<'a, E>,
    pub value_width: usize,
    pub pages: &'a [u32],
    /// The positions that each query sees, the same for all KV heads: `first..=last`.
    pub seen: [(usize, usize); TASK_HEADS],
    pub scale: f32,
    /// A sink logit per head, and whether a KV head's queries share one.
    pub sinks: Option<(&'a [f32], bool)>,
}

/// One KV head's rows in a paged cache.
#[derive(Clone, Copy)]
pub(crate) struct Paged<'a, E> {
    pub cache: &'a [E],
    pub page_stride: usize,
    pub head_offset: usize,
    pub width: usize,
}

impl<E> Paged<'_, E> {
    /// Where rows of a page begin.
    #[inline(always)]
    fn start(&self, page: u32, kv_head: usize) -> usize {
        page as usize * self.page_stride + self.head_offset + kv_head * PAGE_POSITIONS * self.width
    }
}

impl<E> Heads<'_, E> {
    /// Queries of all its KV heads.
    pub fn queries(&self) -> usize {
        self.kv_heads * self.heads
    }

    /// Where the chunks begin of which a query sees something.
    pub fn chunks(&self) -> std::iter::StepBy<std::ops::RangeInclusive<usize>> {
        let seen = &self.seen[..self.heads];
        let first = seen.iter().map(|seen| seen.0).min().unwrap_or(0);
        let last = seen.iter().map(|seen| seen.1).max().unwrap_or(0);
        (first / ATTENTION_CHUNK * ATTENTION_CHUNK..=last).step_by(ATTENTION_CHUNK)
    }

    /// The positions of a chunk that a query sees.
    #[inline(always)]
    fn seen_in(&self, chunk: usize, query: usize) -> Range<usize> {
        let (first, last) = self.seen[query % self.heads];
        let from = first.clamp(chunk, chunk + ATTENTION_CHUNK);
        from..(last + 1).clamp(from, chunk + ATTENTION_CHUNK)
    }
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[queries, ATTENTION_CHUNK]`
    scores: Vec<f32>,
    /// `[queries, value_width]`
    partial: Vec<f32>,
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

    fn fit(&mut self, queries: usize, value_width: usize) {
        self.scores.resize((queries * ATTENTION_CHUNK).max(self.scores.len()), 0.0);
        self.partial.resize((queries * value_width).max(self.partial.len()), 0.0);
    }
}

/// The most heads of one task.
pub(crate) const TASK_HEADS: usize = 8;
/// The most queries of one run of KV heads.
pub(crate) const QUERIES_MAX: usize = 32;

/// Where the results go: query i of KV head h at `pointer + h * step + i * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Attended {
    pub pointer: *mut f32,
    pub step: usize,
    pub stride: usize,
    pub width: usize,
}

/// What KV stores.
pub(crate) trait KvElement: Element {
    fn dots(isa: Isa, d: Dots<'_, Self>, out: Out);
    fn values(isa: Isa, h: &Heads<'_, Self>, scores: &mut [f32], part: Part<'_>);
}

impl KvElement for f32 {
    fn dots(isa: Isa, d: Dots<'_, f32>, out: Out) {
        dots_f32(isa, d, out);
    }
    fn values(isa: Isa, h: &Heads<'_, f32>, scores: &mut [f32], part: Part<'_>) {
        values_f32(isa, h, scores, part);
    }
}

impl KvElement for f16 {
    fn dots(isa: Isa, d: Dots<'_, f16>, out: Out) {
        dots_f16(isa, d, out);
    }
    fn values(isa: Isa, h: &Heads<'_, f16>, scores: &mut [f32], part: Part<'_>) {
        values_f16(isa, h, scores, part);
    }
}

/// Writes each query's result, chunk after chunk.
///
/// # Safety
/// `out` is good for all queries, and nobody else uses their elements meanwhile.
pub(crate) unsafe fn attend<E: KvElement>(isa: Isa, h: &Heads<'_, E>, scratch: &mut Scratch, out: Attended) {
    let queries = h.queries();
    scratch.fit(queries, h.value_width);
    let Scratch { scores, partial } = scratch;
    let (own, partial) = (&mut [(0.0, 0.0); QUERIES_MAX][..queries], &mut partial[..queries * h.value_width]);
    // SAFETY: the caller's promise.
    let mut gathered = unsafe { Gathered::begin(isa, h, out) };
    for chunk in h.chunks() {
        attend_chunk(isa, h, scores, Part { chunk, own, partial });
        gathered.add(&Part { chunk, own, partial });
    }
    gathered.finish();
}

/// One chunk of the context, by itself.
pub(crate) fn attend_part<E: KvElement>(isa: Isa, h: &Heads<'_, E>, scratch: &mut Scratch, part: Part<'_>) {
    scratch.fit(h.queries(), 0);
    attend_chunk(isa, h, &mut scratch.scores, part);
}

fn attend_chunk<E: KvElement>(isa: Isa, h: &Heads<'_, E>, scores: &mut [f32], part: Part<'_>) {
    assert!(h.heads <= TASK_HEADS && h.queries() <= QUERIES_MAX);
    assert_eq!((part.own.len(), part.partial.len()), (h.queries(), h.queries() * h.value_width));
    // What any of the queries sees; each then takes its own.
    let seen = (0..h.heads).map(|query| h.seen_in(part.chunk, query)).filter(|seen| !seen.is_empty());
    if let Some(seen) = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) {
        chunk_scores(isa, h, part.chunk, seen, scores);
    }
    E::values(isa, h, scores, part);
}

/// What the queries get of one chunk.
pub(crate) struct Part<'a> {
    /// The chunk's first position.
    pub chunk: usize,
    /// Maximum and sum of each query, `[queries]`.
    pub own: &'a mut [(f32, f32)],
    /// The weighted values, `[queries, value_width]`.
    pub partial: &'a mut [f32],
}

/// The chunks' parts merged in ascending order.
pub(crate) struct Gathered<'r, 'a, E> {
    isa: Isa,
    h: &'r Heads<'a, E>,
    out: Attended,
    /// Maximum and sum of each query so far.
    state: [(f32, f32); QUERIES_MAX],
}

impl<'r, 'a, E> Gathered<'r, 'a, E> {
    /// # Safety
    /// `out` is good for all queries, and nobody else uses their elements as long as this lives.
    pub unsafe fn begin(isa: Isa, h: &'r Heads<'a, E>, out: Attended) -> Self {
        let mut gathered = Gathered { isa, h, out, state: [(f32::NEG_INFINITY, 0.0); QUERIES_MAX] };
        (0..h.queries()).for_each(|query| gathered.out(query).fill(0.0));
        gathered
    }

    fn out(&mut self, query: usize) -> &mut [f32] {
        let at = query / self.h.heads * self.out.step + query % self.h.heads * self.out.stride;
        // SAFETY: `begin`'s caller gave the queries' results to this alone.
        unsafe { std::slice::from_raw_parts_mut(self.out.pointer.add(at), self.out.width) }
    }

    /// Takes the next chunk in.
    pub fn add(&mut self, part: &Part<'_>) {
        for (query, own) in part.own.iter().enumerate() {
            if !self.h.seen_in(part.chunk, query).is_empty() {
                let partial = &part.partial[query * self.h.value_width..][..self.h.value_width];
                let mut state = self.state[query];
                merge(self.isa, &mut state, *own, partial, self.out(query));
                self.state[query] = state;
            }
        }
    }

    pub fn finish(mut self) {
        for query in 0..self.h.queries() {
            let shared_by = |shared: bool| if shared { self.h.heads } else { 1 };
            let sink = self.h.sinks.map(|(sinks, shared)| sinks[query / shared_by(shared)]);
            let ((max, sum), isa) = (self.state[query], self.isa);
            divide(isa, self.out(query), max, sum, sink);
        }
    }
}

/// `scores[query, j] = dot(q, k_{chunk + j})` for the positions seen, page by page.
fn chunk_scores<E: KvElement>(
    isa: Isa,
    h: &Heads<'_, E>,
    chunk: usize,
    seen: Range<usize>,
    scores: &mut [f32],
) {
    let mut position = seen.start;
    while position < seen.end {
        let in_page = position % PAGE_POSITIONS;
        let count = (PAGE_POSITIONS - in_page).min(seen.end - position);
        for kv_head in 0..h.kv_heads {
            let start = h.keys.start(h.pages[position / PAGE_POSITIONS], kv_head);
            let dots = Dots {
                x: &h.q[kv_head * h.q_step..],
                x_stride: h.q_stride,
                tokens: h.heads,
                w: h.keys.cache,
                w_start: start + in_page * h.keys.width,
                w_stride: h.keys.width,
                rows: count,
                k: h.keys.width,
            };
            let into = &mut scores[kv_head * h.heads * ATTENTION_CHUNK + position - chunk..];
            assert!((h.heads - 1) * ATTENTION_CHUNK + count <= into.len());
            // SAFETY: `heads` rows of scores, `count` of each, lie in `into`, which is ours alone.
            E::dots(isa, dots, unsafe { Out::new(into.as_mut_ptr(), ATTENTION_CHUNK) });
        }
        position += count;
    }
}

by_isa! {
    /// Merges what a query got of a chunk into what it has.
    fn merge(state: &mut (f32, f32), own: (f32, f32), partial: &[f32], out: &mut [f32]) = merge_chunk
}

#[inline(always)]
fn merge_chunk<L: Lanes>(state: &mut (f32, f32), own: (f32, f32), partial: &[f32], out: &mut [f32]) {
    let (max, sum) = own;
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
    /// Asks for the lines of a run of bytes that will be used soon; any address will do.
    fn ask(start: *const u8, bytes: usize) = ask_lines
}

#[inline(always)]
fn ask_lines<L: Lanes>(start: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(LINE) {
        // SAFETY: any address will do; instructions by `by_isa!`.
        unsafe { L::prefetch_near(start.wrapping_add(at)) };
    }
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
