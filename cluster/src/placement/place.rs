//! The placement itself.

use gaterail_proto::{ExpertCopy, ExpertPlace, Placement, UnitRun};

use super::{Misfit, Wanted};

/// Decides who holds what.
pub fn place(wanted: &Wanted<'_>) -> Result<Placement, Misfit> {
    let (seats, copies) = (wanted.seats, wanted.copies.max(1) as usize);
    if seats.len() < copies {
        let what = format!("{copies} copies want {copies} workers, and there are {}", seats.len());
        return Err(Misfit { what, missing_bytes: 0, ways: Vec::new() });
    }
    let experts = wanted.inventory.slices().enumerate().map(|(index, slice)| {
        let worker = |copy: usize| ((index + copy) % seats.len()) as u32;
        let copy = |copy| ExpertCopy { runs: vec![UnitRun { worker: worker(copy), units: slice.units }] };
        ExpertPlace { layer: slice.layer, expert: slice.expert, copies: (0..copies).map(copy).collect() }
    });
    Ok(Placement { workers: seats.iter().map(|seat| seat.worker).collect(), experts: experts.collect() })
}
