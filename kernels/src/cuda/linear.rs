//! `linear` (`linear.cu`): as `ops::linear`, with W plain.

use super::arguments::LinearArgs;
use super::compile::Source;
use super::device::{CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::quantize::MOST_ROWS;
use super::weight::MatrixOnDevice;

/// Rows of x that a block takes.
const TOKENS: usize = 8;

/// out <- x W^T + bias.
pub fn linear(
    queue: &CudaQueue,
    x: Strided<'_>,
    w: &MatrixOnDevice,
    bias: Option<&DeviceBuffer<f32>>,
    out: Strided<'_>,
) {
    assert!(x.heads == 1 && out.heads == 1, "linear works on rows");
    assert_eq!((x.rows, x.width), (out.rows, w.cols()), "linear: x");
    assert_eq!(out.width, w.rows(), "linear: out");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "linear: bias");
    let grid = [w.rows().div_ceil(16), x.rows.div_ceil(TOKENS), 1];
    assert!(grid[1] <= MOST_ROWS, "linear: rows");
    let args = LinearArgs {
        x: x.address(),
        weights: w.argument(),
        bias: bias.map_or(0, |bias| bias.at(0)),
        out: out.address(),
        x_stride: x.row_stride as u64,
        out_stride: out.row_stride as u64,
        tokens: x.rows as u32,
        rows: w.rows() as u32,
    };
    let kernel = Kernel { source: Source::Linear, name: "linear", form: None };
    // SAFETY: the shapes were checked above, the views against their buffers.
    unsafe { queue.launch(kernel, grid, 256, 0, &args) };
}
