//! `sums_add` and `sums_finish` (`sums.cu`): as `ops::partial_sums`.

use super::arguments::SumsArgs;
use super::compile::Source;
use super::device::{CudaQueue, Strided};
use super::driver::Kernel;
use super::experts::SumsOnDevice;
use super::quantize::MOST_ROWS;

const ADD: Kernel = Kernel { source: Source::Sums, name: "sums_add", form: None };
const FINISH: Kernel = Kernel { source: Source::Sums, name: "sums_finish", form: None };

fn check(sums: SumsOnDevice<'_>, rows: usize, width: usize) {
    assert!(rows * width <= sums.sums.len() && rows <= sums.poison.len(), "sums: {rows} x {width}");
    assert!(rows <= MOST_ROWS, "sums: rows");
}

/// to <- to + from, for `rows` rows of `width`.
pub fn sums_add(queue: &CudaQueue, from: SumsOnDevice<'_>, to: SumsOnDevice<'_>, rows: usize, width: usize) {
    check(from, rows, width);
    check(to, rows, width);
    let args = SumsArgs {
        sums: to.sums.at(0),
        poison: to.poison.at(0),
        from_sums: from.sums.at(0),
        from_poison: from.poison.at(0),
        width: width as u32,
        ..SumsArgs::default()
    };
    // SAFETY: the shapes were checked above.
    unsafe { queue.launch(ADD, [width.div_ceil(256), rows, 1], 256, 0, &args) };
}

/// out <- the sums as f32; poisoned rows are NaN.
pub fn sums_finish(queue: &CudaQueue, sums: SumsOnDevice<'_>, fraction_bits: u32, out: Strided<'_>) {
    check(sums, out.rows, out.width);
    assert_eq!(out.heads, 1, "sums: out");
    let args = SumsArgs {
        sums: sums.sums.at(0),
        poison: sums.poison.at(0),
        out: out.address(),
        out_stride: out.row_stride as u64,
        unit: 2f64.powi(-(fraction_bits as i32)),
        width: out.width as u32,
        ..SumsArgs::default()
    };
    // SAFETY: the shapes were checked above, the view against its buffer.
    unsafe { queue.launch(FINISH, [out.width.div_ceil(256), out.rows, 1], 256, 0, &args) };
}
