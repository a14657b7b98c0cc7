//! `linear`: out[t, n] = dot(x[t], W[n]) + bias[n].
//!
//! x `[T, K]` f32, W `[N, K]` as stored, bias `[N]` f32, out `[T, N]` f32. The threads share out the rows of W.
//! `linear_heads` does it per head: x `[T, heads, K]`, W `[heads * N, K]`, out `[T, heads, N]`.

use super::{parts_for, run_of};
use crate::buffer::Buffer;
use crate::cpu::linear::{Dots, Out, dots_bf16, dots_f16, dots_f32};
use crate::device::Isa;
use crate::matrix::{ElementType, Matrix};
use crate::stream::Stream;
use crate::view::{View, ViewMut};

/// Rows of a coded matrix that are decoded at a time.
const DECODED_ROWS: usize = 4;

pub fn linear(stream: &Stream, x: View<'_>, w: &Matrix, bias: Option<&Buffer<f32>>, mut out: ViewMut<'_>) {
    let (xs, os) = (x.layout(), out.layout());
    assert!(xs.heads == 1 && os.heads == 1, "linear works on rows");
    assert_eq!((xs.rows, xs.width), (os.rows, w.cols()), "linear: x");
    assert_eq!(os.width, w.rows(), "linear: out");
    let bias = bias.map(|bias| bias.host());
    assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "linear: bias");
    let cpu = stream.cpu();
    let parts = parts_for(cpu.pool.threads(), w.rows().div_ceil(4), xs.rows * w.rows() * w.cols() / 4);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        let rows = quarter_run(w.rows(), parts, part);
        if rows.is_empty() || xs.rows == 0 {
            return;
        }
        // SAFETY: parts write disjoint columns, inside the view.
        let pointer = unsafe { shared.slice(0, 0, rows.start, rows.len()) }.as_mut_ptr();
        let target = Out { pointer, token_stride: os.row_stride, row_stride: 1 };
        let tokens = Tokens { x: &x.data[xs.at(0, 0)..], stride: xs.row_stride, count: xs.rows };
        rows_dot(cpu.isa, tokens, &w.row_slice(rows.start, 1, rows.len()), target);
        if let Some(bias) = bias {
            for row in 0..xs.rows {
                // SAFETY: as above.
                let out = unsafe { shared.slice(row, 0, rows.start, rows.len()) };
                crate::cpu::rows::add_row(cpu.isa, out, &bias[rows.clone()]);
            }
        }
    });
}

pub fn linear_heads(stream: &Stream, x: View<'_>, w: &Matrix, mut out: ViewMut<'_>) {
    let (xs, os) = (x.layout(), out.layout());
    assert_eq!((xs.rows, xs.heads, xs.width), (os.rows, os.heads, w.cols()), "linear_heads: x");
    assert_eq!(os.width * os.heads, w.rows(), "linear_heads: out");
    let cpu = stream.cpu();
    let work = xs.rows * w.rows() * w.cols() / 4;
    let parts = parts_for(cpu.pool.threads(), xs.heads, work);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        for head in run_of(xs.heads, parts, part) {
            if xs.rows == 0 {
                continue;
            }
            // SAFETY: parts write disjoint heads, inside the view.
            let pointer = unsafe { shared.slice(0, head, 0, os.width) }.as_mut_ptr();
            let target = Out { pointer, token_stride: os.row_stride, row_stride: 1 };
            let tokens = Tokens { x: &x.data[xs.at(0, head)..], stride: xs.row_stride, count: xs.rows };
            rows_dot(cpu.isa, tokens, &w.row_slice(head * os.width, 1, os.width), target);
        }
    });
}

/// Runs that begin at multiples of four, so that tiles stay whole.
fn quarter_run(rows: usize, parts: usize, part: usize) -> std::ops::Range<usize> {
    let run = run_of(rows.div_ceil(4), parts, part);
    run.start * 4..(run.end * 4).min(rows)
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
            w.dequantize_row(row + r, &mut decoded[r * k..][..k]);
        }
        let Tokens { x, stride, count } = tokens;
        let dots = Dots { x, x_stride: stride, tokens: count, w: &decoded, w_start: 0, w_stride: k, rows, k };
        // SAFETY: `row` is below the rows that `out` is valid for.
        let pointer = unsafe { out.pointer.add(row * out.row_stride) };
        dots_f32(isa, dots, Out { pointer, ..out });
        row += rows;
    }
}
