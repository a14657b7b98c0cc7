//! The second half of a chunk of attention: softmax of its scores, and the weighted values.

use std::ops::Range;

use half::f16;

use super::{Heads, Part, TASK_HEADS};
use crate::cpu::lanes::{Element, LANES, Lanes, by_isa, tree};
use crate::cpu::math::exp;
use crate::ops::{ATTENTION_CHUNK, PAGE_POSITIONS};

by_isa! { fn values_f32(h: &Heads<'_, f32>, scores: &mut [f32], part: Part<'_>) = values <f32> }
by_isa! { fn values_f16(h: &Heads<'_, f16>, scores: &mut [f32], part: Part<'_>) = values <f16> }

/// Softmax of the queries' scores `[queries, ATTENTION_CHUNK]`, and their values.
#[inline(always)]
fn values<L: Lanes, E: Element>(h: &Heads<'_, E>, scores: &mut [f32], part: Part<'_>) {
    let (heads, width, start) = (h.heads, h.value_width, part.chunk);
    // Positions in the chunk.
    let mut seen = [const { 0..0 }; TASK_HEADS];
    for (query, seen) in seen.iter_mut().enumerate().take(heads) {
        let positions = h.seen_in(start, query);
        *seen = positions.start - start..positions.end - start;
    }
    let seen = &seen[..heads];
    for (query, own) in part.own.iter_mut().enumerate() {
        let scores = &mut scores[query * ATTENTION_CHUNK..][..ATTENTION_CHUNK];
        let seen = &seen[query % heads];
        *own = soften(&mut scores[seen.clone()], h.scale, seen.start);
    }
    part.partial.fill(0.0);
    for page_start in (0..ATTENTION_CHUNK).step_by(PAGE_POSITIONS) {
        let mut here = [const { 0..0 }; TASK_HEADS];
        for (here, seen) in here.iter_mut().zip(seen) {
            let from = seen.start.clamp(page_start, page_start + PAGE_POSITIONS);
            *here = from..seen.end.clamp(from, page_start + PAGE_POSITIONS);
        }
        let here = &here[..heads];
        if here.iter().all(|here| here.is_empty()) {
            continue;
        }
        let page = h.pages[(start + page_start) / PAGE_POSITIONS];
        for kv_head in 0..h.kv_heads {
            let (first, row_width) = (kv_head * heads, h.values.width);
            let rows = &h.values.cache[h.values.start(page, kv_head)..][..PAGE_POSITIONS * row_width];
            let weights = &scores[first * ATTENTION_CHUNK..];
            let page = PageOf { start: page_start, rows, row_width, weights, width };
            page.add::<L>(here, &mut part.partial[first * width..][..heads * width]);
        }
    }
}

/// Turns scores into exponentials; their maximum and sum. The first score is the chunk's `from`-th.
#[inline(always)]
fn soften(scores: &mut [f32], scale: f32, from: usize) -> (f32, f32) {
    // What is the largest does not depend on the order, but for the sign of zero, which no exponential sees.
    let mut most = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for scores in whole {
        for (s, most) in scores.iter_mut().zip(&mut most) {
            *s *= scale;
            *most = if *s > *most { *s } else { *most };
        }
    }
    for (s, most) in rest.iter_mut().zip(&mut most) {
        *s *= scale;
        *most = if *s > *most { *s } else { *most };
    }
    let max = most.iter().fold(f32::NEG_INFINITY, |max, &s| if s > max { s } else { max });
    for s in scores.iter_mut() {
        *s = exp(*s - max);
    }
    let mut lane = [0.0f32; LANES];
    // To the next multiple of 16, then sixteen at a time.
    let (before, scores) = scores.split_at((from.next_multiple_of(LANES) - from).min(scores.len()));
    for (j, &e) in before.iter().enumerate() {
        lane[(from + j) % LANES] += e;
    }
    let (whole, rest) = scores.as_chunks::<LANES>();
    for scores in whole {
        for (lane, &e) in lane.iter_mut().zip(scores) {
            *lane += e;
        }
    }
    for (lane, &e) in lane.iter_mut().zip(rest) {
        *lane += e;
    }
    (max, tree(&lane))
}

/// Queries whose values are added together, so that a row is loaded once for them.
const TOGETHER: usize = 4;

/// A KV head's values of one page, which begins at `start` in its chunk, and the weights of its queries.
struct PageOf<'a, E> {
    start: usize,
    /// `[PAGE_POSITIONS, row_width]`
    rows: &'a [E],
    row_width: usize,
    /// `[queries, ATTENTION_CHUNK]`
    weights: &'a [f32],
    width: usize,
}

impl<E: Element> PageOf<'_, E> {
    /// Adds what the page brings to `partial_d = Σ_j e_j v_jd` of every query, ascending j. `seen` are the positions of the chunk
    /// that lie in the page.
    #[inline(always)]
    fn add<L: Lanes>(&self, seen: &[Range<usize>], partial: &mut [f32]) {
        for (index, seen) in seen.chunks(TOGETHER).enumerate() {
            let head = index * TOGETHER;
            let partial = &mut partial[head * self.width..][..seen.len() * self.width];
            let common = seen.iter().cloned().reduce(|a, b| a.start.max(b.start)..a.end.min(b.end));
            match common {
                Some(common) if seen.len() == TOGETHER && !common.is_empty() => {
                    // What only some see, before and behind it, is added one by one.
                    for (which, seen) in seen.iter().enumerate() {
                        self.add_alone::<L>(seen.start..common.start, head + which, which, partial);
                    }
                    self.part(common.clone(), head).add::<L, TOGETHER>(self.width, partial);
                    for (which, seen) in seen.iter().enumerate() {
                        self.add_alone::<L>(common.end..seen.end, head + which, which, partial);
                    }
                }
                _ => {
                    for (which, seen) in seen.iter().enumerate() {
                        self.add_alone::<L>(seen.clone(), head + which, which, partial);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn add_alone<L: Lanes>(&self, j: Range<usize>, query: usize, which: usize, partial: &mut [f32]) {
        if !j.is_empty() {
            self.part(j, query).add::<L, 1>(self.width, &mut partial[which * self.width..]);
        }
    }

    /// The positions `j` of the chunk, for the queries from `query` on.
    #[inline(always)]
    fn part(&self, j: Range<usize>, query: usize) -> Weighted<'_, E> {
        let rows = &self.rows[(j.start - self.start) * self.row_width..];
        Weighted {
            rows: &rows[..(j.len() - 1) * self.row_width + self.width],
            row_width: self.row_width,
            weights: &self.weights[query * ATTENTION_CHUNK + j.start..],
            count: j.len(),
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
