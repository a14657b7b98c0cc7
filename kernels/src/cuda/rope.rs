//! `rope` (`rope.cu`): as `ops::rope`.

use super::arguments::RopeArgs;
use super::compile::Source;
use super::device::{CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::quantize::MOST_ROWS;
use crate::ops::RopeStyle;

/// Rotates the columns of every (row, head) of `x` in place by the row's angles.
pub fn rope(
    queue: &CudaQueue,
    style: RopeStyle,
    cos: &DeviceBuffer<f32>,
    sin: &DeviceBuffer<f32>,
    x: Strided<'_>,
) {
    let half = x.width / 2;
    assert!(x.width.is_multiple_of(2), "rope: pairs");
    assert!(x.rows * half <= cos.len() && cos.len() == sin.len(), "rope: angles");
    assert!(x.rows <= MOST_ROWS, "rope: rows");
    let args = RopeArgs {
        x: x.address(),
        cos: cos.at(0),
        sin: sin.at(0),
        x_row: x.row_stride as u64,
        x_head: x.head_stride as u64,
        half: half as u32,
        pairs: u32::from(style == RopeStyle::Pairs),
    };
    let kernel = Kernel { source: Source::Rope, name: "rope", form: None };
    // SAFETY: the shapes were checked above, the view against its buffer.
    unsafe { queue.launch(kernel, [x.heads, x.rows, 1], 128, 0, &args) };
}
