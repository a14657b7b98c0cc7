//! `packed_linear` (`packed_linear.cu`): out[t, n] = product(x[t], W[n]) + bias[n], with W packed.

use super::arguments::{PackedLinearArgs, Table};
use super::compile::{Form, Source};
use super::device::{CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use super::quantize::{MOST_ROWS, Quantized};
use super::weight::PackedOnDevice;
use crate::packed::PANEL_ROWS;

/// How a product is computed. All ways give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearPath {
    /// By the number of rows.
    Auto,
    /// One row, by dp4a.
    Dot,
    /// Up to 8 rows, on tensor cores.
    Eight,
    /// Up to 32 rows, on tensor cores.
    ThirtyTwo,
    /// Any number of rows, in tiles of 32.
    Tiles,
}

impl LinearPath {
    /// The path for this many rows.
    pub(super) fn chosen(self, rows: usize) -> LinearPath {
        match self {
            LinearPath::Auto => match rows {
                0..=1 => LinearPath::Dot,
                2..=8 => LinearPath::Eight,
                9..=32 => LinearPath::ThirtyTwo,
                _ => LinearPath::Tiles,
            },
            path => path,
        }
    }

    /// The rows of one pass.
    pub(super) fn tokens(self) -> usize {
        match self {
            LinearPath::Dot => 1,
            LinearPath::Eight => 8,
            LinearPath::Auto | LinearPath::ThirtyTwo | LinearPath::Tiles => 32,
        }
    }
}

/// The constants of `packed.h` and `tiles.h` for a form.
pub(super) struct FormSizes {
    pub ring_bytes: usize,
    pub tile_bytes: usize,
}

impl FormSizes {
    pub(super) fn of(form: Form) -> FormSizes {
        let group_bytes = form.group_bytes();
        let (stages, tile_stages) = match group_bytes {
            ..=256 => (8, 4),
            257..=512 => (6, 3),
            513..=1024 => (3, 3),
            _ => (2, 2),
        };
        let stage = group_bytes + 128;
        let row = if form.group == 32 { 32 } else { usize::from(form.group) + 32 };
        FormSizes { ring_bytes: stages * stage, tile_bytes: tile_stages * (16 * stage + 32 * row + 256) }
    }
}

/// out <- the products of quantised rows with a packed matrix. Faults come to light when the queue is synchronised.
pub fn packed_linear(
    queue: &CudaQueue,
    x: Quantized<'_>,
    w: &PackedOnDevice,
    bias: Option<&DeviceBuffer<f32>>,
    path: LinearPath,
    out: Strided<'_>,
) {
    let format = w.format();
    assert_eq!((x.width, x.group), (w.cols(), format.group), "packed_linear: x");
    assert_eq!((out.rows, out.heads, out.width), (x.rows, 1, w.rows()), "packed_linear: out");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "packed_linear: bias");
    let form = match Form::of(format) {
        Ok(form) => form,
        Err(error) => return queue.keep_fault(Err(error)),
    };
    let path = path.chosen(out.rows);
    let args = PackedLinearArgs {
        x: x.argument(),
        weights: w.part(),
        table: Table::of(format.codes),
        bias: bias.map_or(0, |bias| bias.at(0)),
        out: out.address(),
        out_stride: out.row_stride as u64,
        tokens: out.rows as u32,
        rows: w.rows() as u32,
        groups: w.groups() as u32,
        padding: 0,
    };
    let sizes = FormSizes::of(form);
    let kernel = |name| Kernel { source: Source::PackedLinear, name, form: Some(form) };
    let name = match path {
        LinearPath::Dot => "packed_linear_rows_1",
        LinearPath::Eight => "packed_linear_rows_8",
        LinearPath::Auto | LinearPath::ThirtyTwo => "packed_linear_rows_32",
        LinearPath::Tiles => {
            let grid = [w.rows().div_ceil(256), out.rows.div_ceil(32), 1];
            assert!(grid[1] <= MOST_ROWS, "packed_linear: rows");
            // SAFETY: the shapes were checked above, the view against its buffer.
            return unsafe {
                queue.launch(kernel("packed_linear_tiles"), grid, 256, sizes.tile_bytes, &args)
            };
        }
    };
    assert!(out.rows <= path.tokens(), "packed_linear: {} rows by {path:?}", out.rows);
    let shared = 4 * sizes.ring_bytes + 4 * path.tokens() * PANEL_ROWS * 4;
    let grid = if out.rows == 0 { 0 } else { w.rows().div_ceil(PANEL_ROWS) };
    // SAFETY: as above.
    unsafe { queue.launch(kernel(name), [grid, 1, 1], 128, shared, &args) };
}
