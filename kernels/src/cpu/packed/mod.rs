//! Products of quantised rows with panels of packed weights, by ARITHMETIC.md, 8.
//!
//! A tile is one panel (16 rows of weights, one per lane) and up to eight rows of activations. Within a group everything is
//! exact integers, so that each instruction set may add them as it likes; the group's term is one product and one fused
//! multiply-add per lane, in the order of the chains, whatever the tile's size.

mod form;
mod rows;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

pub(crate) use form::{Decode, FormOf, Span, TileFn, tile_for};
pub(crate) use rows::{QuantRow, QuantSet, TILE, TileScratch, Tiles, quantize_group, quantize_row};
pub(crate) use tile::{IntLanes, Panel};

use crate::cpu::lanes::{LANES, Lanes, by_isa};
use crate::device::Isa;
use crate::packed::{LINE, Packed};

/// A run of panels of a projection.
pub(crate) struct PanelRun<'a> {
    pub w: &'a Packed,
    pub panels: Range<usize>,
    pub x: Tiles,
    pub bias: Option<&'a [f32]>,
    /// Row t goes to `out + t * stride`, from column 0 of the whole matrix on.
    pub out: *mut f32,
    pub stride: usize,
}

/// # Safety
/// `out` is good for all rows and for the columns of these panels, which nobody else uses meanwhile; the rows have the
/// matrix's groups, and were laid for its codes.
pub(crate) unsafe fn panel_run(isa: Isa, run: &PanelRun<'_>) {
    run_panels_on(isa, run, tile_for(FormOf::of(run.w.format()), isa));
}

by_isa! { fn run_panels_on(run: &PanelRun<'_>, tile: TileFn) = run_panels }

#[inline(always)]
fn run_panels<L: Lanes>(run: &PanelRun<'_>, tile: TileFn) {
    let w = run.w;
    let decode = Decode::of(w.format().codes);
    let x = &run.x;
    for panels in blocks(run.panels.clone(), w) {
        for index in 0..x.count() {
            // SAFETY: there are so many tiles.
            let x = unsafe { x.tile(index) };
            for panel in panels.clone() {
                let mut y = [[0.0; LANES]; TILE];
                // SAFETY: the rows have the matrix's groups.
                unsafe { tile(&Panel::new(w, panel), &decode, &x, Span::whole(w.groups()), &mut y) };
                let column = panel * LANES;
                let width = LANES.min(w.rows() - column);
                for (t, y) in y.iter().enumerate().take(x.rows) {
                    let start = (index * TILE + t) * run.stride + column;
                    // SAFETY: these columns of this row are the caller's.
                    let out = unsafe { std::slice::from_raw_parts_mut(run.out.add(start), width) };
                    match <&mut [f32; LANES]>::try_from(&mut *out) {
                        Ok(whole) => *whole = *y,
                        Err(_) => out.copy_from_slice(&y[..width]),
                    }
                    if let Some(bias) = run.bias {
                        out.iter_mut().zip(&bias[column..]).for_each(|(y, b)| *y += b);
                    }
                }
            }
        }
    }
}

/// Bytes of weights that stay in the second-level cache while the tiles of rows pass by.
const BLOCK_BYTES: usize = 320 << 10;

/// Runs of panels that are small enough to stay there.
pub(crate) fn blocks(panels: Range<usize>, w: &Packed) -> impl Iterator<Item = Range<usize>> {
    let length = (BLOCK_BYTES / (w.groups() * w.format().record()).max(1)).max(1);
    panels.clone().step_by(length).map(move |start| start..(start + length).min(panels.end))
}

by_isa! {
    /// Integer products from registers alone: `PEAK_OPERATIONS` a round.
    fn peak(rounds: usize) = peak_rounds
}

/// Multiplications and additions of one round of `peak`.
pub(crate) const PEAK_OPERATIONS: usize = 2 * 64 * PEAK_CHAINS;
/// More than latency times width of the multiplier.
const PEAK_CHAINS: usize = 16;

#[inline(always)]
fn peak_rounds<L: IntLanes>(rounds: usize) {
    let bytes = [1u8; LINE];
    // SAFETY: one line of codes, and rows of one line.
    unsafe { L::peak(std::hint::black_box(bytes.as_ptr()), rounds) }
}
