//! `out[t, n] = dot(x[t], W[n])`: tiles of rows and tokens whose every result is the 16-lane dot of ARITHMETIC.md, 2.
//!
//! A tile only shares loads; each (token, row) pair has an accumulator of its own, so the tile's size changes no bit.

use crate::cpu::decode::decode_row;
use crate::cpu::lanes::{Element, LANES, Lanes, by_isa};
use crate::device::Isa;
use crate::matrix::{ElementType, Matrix};

/// Rows of a coded matrix that are decoded at a time.
const DECODED_ROWS: usize = 4;

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

/// Where the results go: `(token, row) -> out[token * token_stride + row]`.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pointer: *mut f32,
    token_stride: usize,
}

impl Out {
    /// # Safety
    /// The pointer must be good for all tokens and rows of the products it is given to, and nobody else may use these
    /// elements meanwhile.
    pub unsafe fn new(pointer: *mut f32, token_stride: usize) -> Out {
        Out { pointer, token_stride }
    }

    /// The results from a row on.
    pub fn at_row(self, row: usize) -> Out {
        Out { pointer: self.pointer.wrapping_add(row), ..self }
    }

    #[inline(always)]
    unsafe fn put(&self, token: usize, row: usize, value: f32) {
        // SAFETY: the caller stays inside what `new` was promised.
        unsafe { *self.pointer.add(token * self.token_stride + row) = value }
    }
}

/// Rows of activations: token t at `x[t * stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub x: &'a [f32],
    pub stride: usize,
    pub count: usize,
}

/// All dots of `tokens` with the rows of `w`; coded matrices are decoded a few rows at a time.
pub(crate) fn rows_dot(isa: Isa, tokens: Tokens<'_>, w: &Matrix, out: Out) {
    fn plain<'a, E: crate::buffer::Plain>(tokens: Tokens<'a>, w: &'a Matrix) -> Dots<'a, E> {
        let (elements, w_start, w_stride) = w.plain_elements::<E>();
        let Tokens { x, stride, count } = tokens;
        Dots {
            x,
            x_stride: stride,
            tokens: count,
            w: elements,
            w_start,
            w_stride,
            rows: w.rows(),
            k: w.cols(),
        }
    }
    match w.plain() {
        Some(ElementType::F32) => dots_f32(isa, plain(tokens, w), out),
        Some(ElementType::Bf16) => dots_bf16(isa, plain(tokens, w), out),
        Some(ElementType::F16) => dots_f16(isa, plain(tokens, w), out),
        None => coded_rows_dot(isa, tokens, w, out),
    }
}

fn coded_rows_dot(isa: Isa, tokens: Tokens<'_>, w: &Matrix, out: Out) {
    let k = w.cols();
    let mut decoded = vec![0.0f32; DECODED_ROWS * k];
    let mut row = 0;
    while row < w.rows() {
        let rows = DECODED_ROWS.min(w.rows() - row);
        for r in 0..rows {
            decode_row(isa, w, row + r, &mut decoded[r * k..][..k]);
        }
        let Tokens { x, stride, count } = tokens;
        let dots = Dots { x, x_stride: stride, tokens: count, w: &decoded, w_start: 0, w_stride: k, rows, k };
        dots_f32(isa, dots, out.at_row(row));
        row += rows;
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
            let xs: [L; T] = std::array::from_fn(|t| partial::<L, f32>(x[t].add(whole), tail, 0.0));
            for r in 0..R {
                // 0 times -0 is -0, which changes no sum, not even one that is -0 itself.
                let ws = partial::<L, E>(w[r].add(whole), tail, -0.0);
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

/// `n < 16` elements, and `rest` in the other lanes.
#[inline(always)]
unsafe fn partial<L: Lanes, E: Element>(from: *const E, n: usize, rest: f32) -> L {
    let mut lane = [rest; LANES];
    for (j, value) in lane.iter_mut().enumerate().take(n) {
        // SAFETY: the caller has `n` elements at `from`.
        *value = unsafe { from.add(j).read() }.widen();
    }
    // SAFETY: the array has 16 elements.
    unsafe { L::load(lane.as_ptr()) }
}
