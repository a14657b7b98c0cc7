//! `embed`: out[t] = table[ids[t]] as f32. ids `[T]` u32 below V, table `[V, H]` as stored, out `[T, H]`.

use crate::buffer::Buffer;
use crate::matrix::Matrix;
use crate::stream::Stream;
use crate::view::ViewMut;

pub fn embed(stream: &Stream, ids: &Buffer<u32>, table: &Matrix, mut out: ViewMut<'_>) {
    let os = out.layout();
    assert!(os.rows <= ids.len() && os.width == table.cols(), "embed: shapes");
    let _ = stream.cpu();
    let shared = out.shared();
    for (row, &id) in ids.host()[..os.rows].iter().enumerate() {
        // SAFETY: one thread; rows are disjoint.
        table.dequantize_row(id as usize, unsafe { shared.slice(row, 0, 0, os.width) });
    }
}
