//! `restore`: a packed matrix out of bytes that were packed before, wherever they come from.
//!
//! Threads share out blocks of panels; each is filled by one call, straight into the arena's memory.

use std::sync::Mutex;

use crate::arena::Arena;
use crate::device::Device;
use crate::packed::{PANEL_ROWS, Packed, PackedFormat};
use crate::view::SharedSlice;

/// Panels that are restored at a time: 128 rows, the least length of a unit.
pub const BLOCK_PANELS: usize = 8;

/// Fills a block's panels.
pub type Fill<'a, E> = dyn Fn(usize, &mut [u8]) -> Result<(), E> + Sync + 'a;

/// The packed matrix `[rows, cols]` in a piece of the arena. `fill(block, bytes)` writes the panels from
/// `block * BLOCK_PANELS` on; it is called once for every block, on any thread, until one fails.
pub fn restore<E: Send>(
    device: &Device,
    (format, rows, cols): (PackedFormat, usize, usize),
    arena: &mut Arena,
    fill: &Fill<'_, E>,
) -> Result<Packed, E> {
    let Device::Cpu(cpu) = device else { panic!("weights are packed on the CPU") };
    let panel_bytes = cols.div_ceil(format.group) * format.record();
    let panels = rows.div_ceil(PANEL_ROWS);
    let mut bytes = arena.piece(format.bytes(rows, cols));
    let shared = SharedSlice::new(bytes.as_mut_slice());
    let failed: Mutex<Option<E>> = Mutex::new(None);
    let lock = || failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    cpu.pool.run(panels.div_ceil(BLOCK_PANELS), &|block| {
        if lock().is_some() {
            return;
        }
        let first = block * BLOCK_PANELS;
        let count = BLOCK_PANELS.min(panels - first);
        // SAFETY: blocks do not overlap, and each is one part.
        let out = unsafe { shared.range(first * panel_bytes, count * panel_bytes) };
        if let Err(error) = fill(block, out) {
            lock().get_or_insert(error);
        }
    });
    match failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(error) => Err(error),
        None => Ok(Packed::new(format, bytes.share(), rows, cols)),
    }
}
