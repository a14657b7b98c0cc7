//! `embed`: out[t] = table[ids[t]] as f32. ids `[T]` u32 below V, table `[V, H]` as stored, out `[T, H]`.

use crate::buffer::Buffer;
use crate::cuda::{self, WeightOnDevice};
use crate::stream::Stream;
use crate::view::ViewMut;
use crate::weight::Weight;

/// The table is plain. The CPU panics at an id that the table does not have; a GPU gives NaN.
pub fn embed(stream: &Stream, ids: &Buffer<u32>, table: &Weight, mut out: ViewMut<'_>) {
    let os = out.layout();
    assert!(os.rows <= ids.len() && os.width == table.cols(), "embed: shapes");
    let table = match (table, stream.cuda()) {
        (Weight::Plain(table), None) => table,
        (Weight::Cuda(table), Some(queue)) => match table.as_ref() {
            WeightOnDevice::Plain(table) => return cuda::embed(queue, ids.cuda(), table, out.strided()),
            WeightOnDevice::Packed(_) => panic!("embed: {table:?}"),
        },
        (table, _) => panic!("embed: {table:?} on {}", stream.device()),
    };
    let shared = out.shared();
    for (row, &id) in ids.host()[..os.rows].iter().enumerate() {
        // SAFETY: one thread; rows are disjoint.
        table.dequantize_row(id as usize, unsafe { shared.slice(row, 0, 0, os.width) });
    }
}
