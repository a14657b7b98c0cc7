//! Attention of one row's heads over paged KV, by ARITHMETIC.md, 4.

use crate::cpu::lanes::{LANES, Lanes, by_isa, tree};
use crate::cpu::linear::{Dots, Out, dots_f32};
use crate::cpu::math::exp;
use crate::device::Isa;
use crate::ops::{ATTENTION_CHUNK, PAGE_POSITIONS};

/// The query heads of one row that share a KV head, and what they see.
pub(crate) struct Heads<'a> {
    /// `[heads, key_width]`, `q_stride` apart.
    pub q: &'a [f32],
    pub q_stride: usize,
    pub heads: usize,
    /// This KV head's pages of keys: page p at `keys[p * page_stride + head_offset]`, `[PAGE_POSITIONS, key_width]`.
    pub keys: Paged<'a>,
    /// Likewise for values `[PAGE_POSITIONS, value_row]`, of which the first `value_width` are used.
    pub values: Paged<'a>,
    pub value_width: usize,
    pub pages: &'a [u32],
    /// The positions seen: `first..=last`.
    pub first: usize,
    pub last: usize,
    pub scale: f32,
    /// A sink logit per head.
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
pub(crate) struct Scratch {
    /// `[heads, ATTENTION_CHUNK]`
    pub scores: Vec<f32>,
    /// `[value_width]`
    pub chunk: Vec<f32>,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch { scores: Vec::new(), chunk: Vec::new() }
    }

    fn fit(&mut self, heads: usize, value_width: usize) {
        self.scores.resize((heads * ATTENTION_CHUNK).max(self.scores.len()), 0.0);
        self.chunk.resize(value_width.max(self.chunk.len()), 0.0);
    }
}

/// The most heads of one task.
pub(crate) const TASK_HEADS: usize = 8;

/// Writes `[heads, value_width]`, `out_stride` apart, into `out`.
pub(crate) fn attend(isa: Isa, h: &Heads<'_>, scratch: &mut Scratch, out: &mut [f32], out_stride: usize) {
    assert!(h.heads <= TASK_HEADS);
    scratch.fit(h.heads, h.value_width);
    let mut state = [(f32::NEG_INFINITY, 0.0f32); TASK_HEADS];
    let state = &mut state[..h.heads];
    for head in 0..h.heads {
        out[head * out_stride..][..h.value_width].fill(0.0);
    }
    let mut chunk = h.first / ATTENTION_CHUNK * ATTENTION_CHUNK;
    while chunk <= h.last {
        let from = chunk.max(h.first);
        let to = (chunk + ATTENTION_CHUNK).min(h.last + 1);
        chunk_scores(isa, h, chunk, from, to, &mut scratch.scores);
        for (head, state) in state.iter_mut().enumerate() {
            let scores = &mut scratch.scores[head * ATTENTION_CHUNK..][..ATTENTION_CHUNK];
            let out = &mut out[head * out_stride..][..h.value_width];
            chunk_values(isa, h, chunk, from..to, scores, &mut scratch.chunk[..h.value_width], state, out);
        }
        chunk += ATTENTION_CHUNK;
    }
    for (head, &(max, sum)) in state.iter().enumerate() {
        let out = &mut out[head * out_stride..][..h.value_width];
        divide(isa, out, max, sum, h.sinks.map(|sinks| sinks[head]));
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
        let mut blocks = partial.chunks_exact_mut(LANES);
        let mut column = 0;
        for block in &mut blocks {
            // SAFETY: the block has 16 elements, and `rows` ends after `partial.len()` columns of its last row.
            unsafe {
                let mut acc = L::load(block.as_ptr());
                for (j, &weight) in weights.iter().enumerate() {
                    let v = L::load(rows.as_ptr().add(j * h.values.width + column));
                    acc = L::splat(weight).fma(v, acc);
                }
                acc.store(block.as_mut_ptr());
            }
            column += LANES;
        }
        for (d, value) in blocks.into_remainder().iter_mut().enumerate() {
            for (j, &weight) in weights.iter().enumerate() {
                *value = weight.mul_add(rows[j * h.values.width + column + d], *value);
            }
        }
        position += count;
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
