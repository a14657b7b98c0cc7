//! `out[t, n] = dot(x[t], W[n])`: tiles of rows and tokens whose every result is the 16-lane dot of ARITHMETIC.md, 2.
//!
//! A tile only shares loads; each (token, row) pair has an accumulator of its own, so the tile's size changes no bit.

use crate::cpu::lanes::{Element, LANES, Lanes, by_isa};

/// Rows of f32 on one side, rows of stored elements on the other; all lengths in elements.
#[derive(Clone, Copy)]
pub(crate) struct Dots<'a, E> {
    /// Token t starts at `x[t * x_stride]`.
    pub x: &'a [f32],
    pub x_stride: usize,
    pub tokens: usize,
    /// Row n starts at `w[w_start + n * w_stride]`.
    pub w: &'a [E],
    pub w_start: usize,
    pub w_stride: usize,
    pub rows: usize,
    /// The length of the dots.
    pub k: usize,
}

impl<E> Dots<'_, E> {
    fn check(&self) {
        if self.tokens == 0 || self.rows == 0 {
            return;
        }
        assert!((self.tokens - 1) * self.x_stride + self.k <= self.x.len(), "tokens run out of their buffer");
        assert!(
            self.w_start + (self.rows - 1) * self.w_stride + self.k <= self.w.len(),
            "rows run out of theirs"
        );
    }
}

/// Where the results go: `(token, row) -> out[token * token_stride + row * row_stride]`.
///
/// # Safety
/// The pointer must be valid for all tokens and rows of the call, and nobody else may write them meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub pointer: *mut f32,
    pub token_stride: usize,
    pub row_stride: usize,
}

impl Out {
    #[inline(always)]
    unsafe fn put(&self, token: usize, row: usize, value: f32) {
        // SAFETY: the caller stays inside what `Out` promises.
        unsafe { *self.pointer.add(token * self.token_stride + row * self.row_stride) = value }
    }
}

by_isa! { fn dots_f32(d: Dots<'_, f32>, out: Out) = dots <f32> }
by_isa! { fn dots_bf16(d: Dots<'_, half::bf16>, out: Out) = dots <half::bf16> }
by_isa! { fn dots_f16(d: Dots<'_, half::f16>, out: Out) = dots <half::f16> }

#[inline(always)]
fn dots<L: Lanes, E: Element>(d: Dots<'_, E>, out: Out) {
    d.check();
    // SAFETY: `check` bounds every load; `Out`'s promise covers every store; instructions by `by_isa!`.
    unsafe {
        let mut row = 0;
        if L::WIDE {
            while row + 4 <= d.rows {
                columns::<L, E, 4, 4>(&d, out, row);
                row += 4;
            }
        }
        while row + 2 <= d.rows {
            columns::<L, E, 2, 2>(&d, out, row);
            row += 2;
        }
        if row < d.rows {
            columns::<L, E, 1, 4>(&d, out, row);
        }
    }
}

/// All tokens of `R` rows, `T` at a time.
#[inline(always)]
unsafe fn columns<L: Lanes, E: Element, const R: usize, const T: usize>(
    d: &Dots<'_, E>,
    out: Out,
    row: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut token = 0;
        while token + T <= d.tokens {
            tile::<L, E, R, T>(d, out, row, token);
            token += T;
        }
        while token < d.tokens {
            tile::<L, E, R, 1>(d, out, row, token);
            token += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, E: Element, const R: usize, const T: usize>(
    d: &Dots<'_, E>,
    out: Out,
    row: usize,
    token: usize,
) {
    // SAFETY: `row + R <= rows` and `token + T <= tokens`, whose extents `check` compared with the slices.
    unsafe {
        let x: [*const f32; T] = std::array::from_fn(|t| d.x.as_ptr().add((token + t) * d.x_stride));
        let w: [*const E; R] = std::array::from_fn(|r| d.w.as_ptr().add(d.w_start + (row + r) * d.w_stride));
        let mut acc = [[L::splat(0.0); T]; R];
        let whole = d.k / LANES * LANES;
        let mut i = 0;
        while i < whole {
            let xs: [L; T] = std::array::from_fn(|t| L::load(x[t].add(i)));
            for r in 0..R {
                let ws = E::load::<L>(w[r].add(i));
                if T == 1 {
                    // The rows of the next tile: the machine's own prefetchers stop at the end of a page.
                    L::prefetch(w[r].wrapping_add(R * d.w_stride + i) as *const u8);
                }
                for t in 0..T {
                    acc[r][t] = xs[t].fma(ws, acc[r][t]);
                }
            }
            i += LANES;
        }
        if whole < d.k {
            let tail = d.k - whole;
            let xs: [L; T] = std::array::from_fn(|t| partial::<L, f32>(x[t].add(whole), tail));
            for r in 0..R {
                let ws = partial::<L, E>(w[r].add(whole), tail);
                for t in 0..T {
                    acc[r][t] = xs[t].fma(ws, acc[r][t]);
                }
            }
        }
        let flat = |n: usize| if n < R * T { acc[n / T][n % T] } else { L::splat(0.0) };
        for first in (0..R * T).step_by(4) {
            let sums = L::sums(std::array::from_fn(|n| flat(first + n)));
            for (n, &sum) in (first..(R * T).min(first + 4)).zip(&sums) {
                out.put(token + n % T, row + n / T, sum);
            }
        }
    }
}

/// `n < 16` elements, the other lanes zero.
#[inline(always)]
unsafe fn partial<L: Lanes, E: Element>(from: *const E, n: usize) -> L {
    let mut lane = [0.0f32; LANES];
    for (j, value) in lane.iter_mut().enumerate().take(n) {
        // SAFETY: the caller has `n` elements at `from`.
        *value = unsafe { from.add(j).read() }.widen();
    }
    // SAFETY: the array has 16 elements.
    unsafe { L::load(lane.as_ptr()) }
}
