//! The row-wise operations of `rows.cu`: as `ops`' of the same name.

use super::arguments::RowsArgs;
use super::compile::Source;
use super::device::{CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::quantize::MOST_ROWS;
use super::weight::MatrixOnDevice;
use crate::ops::Activation;

/// `to <- activation(to, from)`
pub fn activation(queue: &CudaQueue, kind: Activation, to: Strided<'_>, from: Strided<'_>) {
    let args = RowsArgs { activation: kind.into(), ..beside(to, from) };
    launch(queue, "rows_activation", to, args);
}

/// `to <- to + from`
pub fn add(queue: &CudaQueue, to: Strided<'_>, from: Strided<'_>) {
    launch(queue, "rows_add", to, beside(to, from));
}

/// `to[t] <- to[t] + sigmoid(logits[t]) * from[t]`
pub fn add_gated(queue: &CudaQueue, to: Strided<'_>, from: Strided<'_>, logits: &DeviceBuffer<f32>) {
    assert!(to.rows <= logits.len(), "add_gated: logits");
    launch(queue, "rows_add_gated", to, RowsArgs { scales: logits.at(0), ..beside(to, from) });
}

/// `to <- from`
pub fn copy_rows(queue: &CudaQueue, to: Strided<'_>, from: Strided<'_>) {
    launch(queue, "rows_copy", to, beside(to, from));
}

/// `x <- min(max(x, -limit), limit)`
pub fn clamp(queue: &CudaQueue, limit: f32, x: Strided<'_>) {
    launch(queue, "rows_clamp", x, RowsArgs { limit, ..RowsArgs::default() });
}

/// `x[t] <- x[t] * scales[t]`
pub fn scale_rows(queue: &CudaQueue, scales: &DeviceBuffer<f32>, x: Strided<'_>) {
    assert!(x.rows <= scales.len(), "scale_rows: scales");
    launch(queue, "rows_scale", x, RowsArgs { scales: scales.at(0), ..RowsArgs::default() });
}

/// `to[t] <- from[rows[t]]`; a row that is not there gives NaN.
pub fn gather_rows(queue: &CudaQueue, from: Strided<'_>, rows: &DeviceBuffer<u32>, to: Strided<'_>) {
    assert!(from.heads == 1 && to.heads == 1 && from.width == to.width, "gather_rows: shapes");
    assert!(to.rows <= rows.len(), "gather_rows: rows");
    let args = RowsArgs {
        from: from.address(),
        from_row: from.row_stride as u64,
        from_rows: from.rows as u32,
        index: rows.at(0),
        ..RowsArgs::default()
    };
    launch(queue, "rows_gather", to, args);
}

/// `to[t] <- table[ids[t]]`; a row that is not there gives NaN.
pub fn embed(queue: &CudaQueue, ids: &DeviceBuffer<u32>, table: &MatrixOnDevice, to: Strided<'_>) {
    assert!(to.heads == 1 && to.rows <= ids.len() && to.width == table.cols(), "embed: shapes");
    let args = RowsArgs {
        table: table.argument(),
        from_rows: table.rows() as u32,
        index: ids.at(0),
        ..RowsArgs::default()
    };
    launch(queue, "rows_embed", to, args);
}

/// `from` has the shape of `to`.
fn beside(to: Strided<'_>, from: Strided<'_>) -> RowsArgs {
    assert_eq!(
        (from.rows, from.heads, from.width),
        (to.rows, to.heads, to.width),
        "row-wise operation: shapes"
    );
    RowsArgs {
        from: from.address(),
        from_row: from.row_stride as u64,
        from_head: from.head_stride as u64,
        ..RowsArgs::default()
    }
}

fn launch(queue: &CudaQueue, name: &'static str, to: Strided<'_>, args: RowsArgs) {
    assert!(to.rows.max(to.heads) <= MOST_ROWS, "row-wise operation: rows");
    let args = RowsArgs {
        to: to.address(),
        to_row: to.row_stride as u64,
        to_head: to.head_stride as u64,
        width: to.width as u32,
        ..args
    };
    let kernel = Kernel { source: Source::Rows, name, form: None };
    // SAFETY: the shapes were checked by the callers, the views against their buffers.
    unsafe { queue.launch(kernel, [to.width.div_ceil(256), to.heads, to.rows], 256, 0, &args) };
}
