//! `rms_norm`: y = x / sqrt(mean(x²) + eps) * w, over the width of every (row, head); without w it only scales.
//!
//! x `[T, heads, n]`, w `[n]`, out like x.

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::rows::rms_norm_row;
use crate::stream::Stream;
use crate::view::{View, ViewMut};

pub fn rms_norm(stream: &Stream, x: View<'_>, weight: Option<&Buffer<f32>>, eps: f32, mut out: ViewMut<'_>) {
    let (xs, os) = (x.layout(), out.layout());
    assert_eq!((xs.rows, xs.heads, xs.width), (os.rows, os.heads, os.width), "rms_norm: shapes");
    if let Some(queue) = stream.cuda() {
        return crate::cuda::rms_norm(queue, x.strided(), weight.map(Buffer::cuda), eps, out.strided());
    }
    let weight = weight.map(|weight| weight.host());
    assert!(weight.is_none_or(|weight| weight.len() == xs.width), "rms_norm: weight");
    let cpu = stream.cpu();
    let items = xs.rows * xs.heads;
    let parts = cpu.parts_for(items, items * xs.width);
    let shared = out.shared();
    cpu.pool.run(parts, &|part| {
        for item in run_of(items, parts, part) {
            let (row, head) = (item / xs.heads, item % xs.heads);
            // SAFETY: every (row, head) belongs to one part.
            let out = unsafe { shared.slice(row, head, 0, xs.width) };
            rms_norm_row(cpu.isa, x.slice(row, head), weight, eps, out);
        }
    });
}
