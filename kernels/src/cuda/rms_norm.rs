//! `rms_norm` (`rms_norm.cu`): as `ops::rms_norm`.

use super::arguments::RmsNormArgs;
use super::compile::Source;
use super::device::{CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::quantize::MOST_ROWS;

/// `out <- x / sqrt(mean(x²) + eps) * weight` over the width of every (row, head). `out` may be the buffer of `x`.
pub fn rms_norm(
    queue: &CudaQueue,
    x: Strided<'_>,
    weight: Option<&DeviceBuffer<f32>>,
    eps: f32,
    out: Strided<'_>,
) {
    assert_eq!((x.rows, x.heads, x.width), (out.rows, out.heads, out.width), "rms_norm: shapes");
    assert!(weight.is_none_or(|weight| weight.len() == x.width), "rms_norm: weight");
    assert!(x.rows <= MOST_ROWS, "rms_norm: rows");
    let args = RmsNormArgs {
        x: x.address(),
        weight: weight.map_or(0, |weight| weight.at(0)),
        out: out.address(),
        x_row: x.row_stride as u64,
        x_head: x.head_stride as u64,
        out_row: out.row_stride as u64,
        out_head: out.head_stride as u64,
        width: x.width as u32,
        eps,
    };
    let kernel = Kernel { source: Source::RmsNorm, name: "rms_norm", form: None };
    // SAFETY: the shapes were checked above, the views against their buffers.
    unsafe { queue.launch(kernel, [x.heads, x.rows, 1], 256, 4 * (x.width + 4), &args) };
}
