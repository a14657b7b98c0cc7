//! Small row-wise operations: activation, residual sums, clamping, scaling, gathering of rows. All `[T, n]` f32.

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::rows::{activation_row, add_gated_row, add_row};
use crate::cuda;
use crate::stream::Stream;
use crate::view::{View, ViewMut};

/// What stands between gate|up and down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// silu(gate) * up
    SwiGlu,
    /// (clamp(up) + 1) * g * sigmoid(alpha * g), g = min(gate, limit): gpt-oss.
    ClampedSwiGlu { alpha: f32, limit: f32 },
}

/// Runs `each` on the rows of `to` with those of `from`.
fn zip_rows(
    stream: &Stream,
    from: View<'_>,
    mut to: ViewMut<'_>,
    each: impl Fn(usize, &mut [f32], &[f32]) + Sync,
) {
    let (fs, ts) = (from.layout(), to.layout());
    assert_eq!((fs.rows, fs.heads, fs.width), (ts.rows, ts.heads, ts.width), "row-wise operation: shapes");
    let cpu = stream.cpu();
    let parts = cpu.parts_for(ts.rows, ts.rows * ts.heads * ts.width);
    let shared = to.shared();
    cpu.pool.run(parts, &|part| {
        for row in run_of(ts.rows, parts, part) {
            for head in 0..ts.heads {
                // SAFETY: every row belongs to one part.
                each(row, unsafe { shared.slice(row, head, 0, ts.width) }, from.slice(row, head));
            }
        }
    });
}

/// `gate <- activation(gate, up)`
pub fn activation(stream: &Stream, kind: Activation, gate: ViewMut<'_>, up: View<'_>) {
    if let Some(queue) = stream.cuda() {
        return cuda::activation(queue, kind, gate.strided(), up.strided());
    }
    let isa = stream.cpu().isa;
    zip_rows(stream, up, gate, |_, gate, up| activation_row(isa, kind, gate, up));
}

/// `to <- to + from`
pub fn add(stream: &Stream, to: ViewMut<'_>, from: View<'_>) {
    if let Some(queue) = stream.cuda() {
        return cuda::add(queue, to.strided(), from.strided());
    }
    let isa = stream.cpu().isa;
    zip_rows(stream, from, to, |_, to, from| add_row(isa, to, from));
}

/// `to <- from`, row by row.
pub fn copy_rows(stream: &Stream, from: View<'_>, to: ViewMut<'_>) {
    if let Some(queue) = stream.cuda() {
        return cuda::copy_rows(queue, to.strided(), from.strided());
    }
    zip_rows(stream, from, to, |_, to, from| to.copy_from_slice(from));
}

/// `to[t] <- to[t] + sigmoid(logits[t]) * from[t]`
pub fn add_gated(stream: &Stream, to: ViewMut<'_>, from: View<'_>, logits: &Buffer<f32>) {
    if let Some(queue) = stream.cuda() {
        return cuda::add_gated(queue, to.strided(), from.strided(), logits.cuda());
    }
    let isa = stream.cpu().isa;
    assert!(to.layout().rows <= logits.len(), "add_gated: logits");
    zip_rows(stream, from, to, |row, to, from| add_gated_row(isa, to, from, logits.host()[row]));
}

/// `x <- min(max(x, -limit), limit)`
pub fn clamp(stream: &Stream, limit: f32, mut x: ViewMut<'_>) {
    if let Some(queue) = stream.cuda() {
        return cuda::clamp(queue, limit, x.strided());
    }
    let xs = x.layout();
    let _ = stream.cpu();
    let shared = x.shared();
    for row in 0..xs.rows {
        for head in 0..xs.heads {
            // SAFETY: one thread.
            for value in unsafe { shared.slice(row, head, 0, xs.width) } {
                let v = if *value > limit { limit } else { *value };
                *value = if v < -limit { -limit } else { v };
            }
        }
    }
}

/// `x[t] <- x[t] * scales[t]`
pub fn scale_rows(stream: &Stream, scales: &Buffer<f32>, mut x: ViewMut<'_>) {
    if let Some(queue) = stream.cuda() {
        return cuda::scale_rows(queue, scales.cuda(), x.strided());
    }
    let xs = x.layout();
    let _ = stream.cpu();
    assert!(xs.rows <= scales.len(), "scale_rows: scales");
    let shared = x.shared();
    for row in 0..xs.rows {
        let scale = scales.host()[row];
        for head in 0..xs.heads {
            // SAFETY: one thread.
            unsafe { shared.slice(row, head, 0, xs.width) }.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// `out[i] <- x[rows[i]]`
pub fn gather_rows(stream: &Stream, x: View<'_>, rows: &Buffer<u32>, mut out: ViewMut<'_>) {
    if let Some(queue) = stream.cuda() {
        return cuda::gather_rows(queue, x.strided(), rows.cuda(), out.strided());
    }
    let os = out.layout();
    let _ = stream.cpu();
    assert!(os.rows <= rows.len() && os.width == x.layout().width, "gather_rows: shapes");
    let shared = out.shared();
    for (i, &row) in rows.host()[..os.rows].iter().enumerate() {
        assert!((row as usize) < x.layout().rows, "gather_rows: row");
        // SAFETY: one thread.
        unsafe { shared.slice(i, 0, 0, os.width) }.copy_from_slice(x.slice(row as usize, 0));
    }
}
