//! `linear`: out[t, n] = dot(x[t], W[n]) + bias[n].
//!
//! x `[T, K]` f32, W `[N, K]` as stored, bias `[N]` f32, out `[T, N]` f32. The threads share out the rows of W.
//! `linear_heads` does it per head: x `[T, heads, K]`, W `[heads * N, K]`, out `[T, heads, N]`.

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::linear::{Out, Tokens, rows_dot};
use crate::matrix::Matrix;
use crate::stream::Stream;
use crate::view::{View, ViewMut};

pub fn linear(stream: &Stream, x: View<'_>, w: &Matrix, bias: Option<&Buffer<f32>>, mut out: ViewMut<'_>) {
    let (xs, os) = (x.layout(), out.layout());
    assert!(xs.heads == 1 && os.heads == 1, "linear works on rows");
    assert_eq!((xs.rows, xs.width), (os.rows, w.cols()), "linear: x");
    assert_eq!(os.width, w.rows(), "linear: out");
    let bias = bias.map(|bias| bias.host());
    assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "linear: bias");
    let cpu = stream.cpu();
    let parts = cpu.parts_for(w.rows().div_ceil(4), xs.rows * w.rows() * w.cols() / 4);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        let rows = quarter_run(w.rows(), parts, part);
        if rows.is_empty() || xs.rows == 0 {
            return;
        }
        // SAFETY: parts write disjoint columns of all rows, inside the view.
        let target = unsafe { Out::new(shared.pointer(0, 0, rows.start), os.row_stride) };
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
    let parts = cpu.parts_for(xs.heads, work);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        for head in run_of(xs.heads, parts, part) {
            if xs.rows == 0 {
                continue;
            }
            // SAFETY: parts write disjoint heads of all rows, inside the view.
            let target = unsafe { Out::new(shared.pointer(0, head, 0), os.row_stride) };
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
