//! Placing, from the gentlest way to the roughest.

use gaterail_proto::{ExpertCopy, ExpertPlace, Placement, UnitRun};

use super::cut::cut;
use super::job::Job;
use super::replicas::replicate;
use super::spread::spread;
use super::ways::ways_out;
use super::{Misfit, Wanted};

/// Decides who holds what. As little as possible moves, and the result passes `Placement::check`.
pub fn place(wanted: &Wanted<'_>) -> Result<Placement, Misfit> {
    fit(wanted).map_err(|misfit| Misfit { ways: ways_out(wanted), ..misfit })
}

/// As `place`, without looking for ways out.
pub(crate) fn fit(wanted: &Wanted<'_>) -> Result<Placement, Misfit> {
    let (workers, copies) = (wanted.seats.len(), wanted.copies.max(1));
    if workers < copies as usize {
        let what = match (workers, copies) {
            (0, 1) => "there is no worker".to_string(),
            _ => format!("{copies} copies of each need as many workers, and there are {workers}"),
        };
        return Err(Misfit { what, missing_bytes: 0, ways: Vec::new() });
    }
    let beside = attempt(&Job::new(wanted, wanted.current, true));
    if wanted.beside || wanted.current.is_none() || beside.is_ok() {
        return beside;
    }
    let gentle = attempt(&Job::new(wanted, wanted.current, false));
    gentle.or_else(|_| attempt(&Job::new(wanted, None, false)))
}

fn attempt(job: &Job<'_>) -> Result<Placement, Misfit> {
    let mut spread = spread(job)?;
    replicate(job, &mut spread);
    let copies = cut(job, &spread.at)?;
    let experts = job.wanted.inventory.slices().zip(copies).map(|(slice, copies)| {
        let run = |part: super::job::Part| UnitRun { worker: part.seat as u32, units: part.units };
        let copies =
            copies.into_iter().map(|parts| ExpertCopy { runs: parts.into_iter().map(run).collect() });
        ExpertPlace { layer: slice.layer, expert: slice.expert, copies: copies.collect() }
    });
    let workers = job.wanted.seats.iter().map(|seat| seat.worker).collect();
    let placement = Placement { experts: experts.collect(), workers };
    debug_assert_eq!(placement.check(job.wanted.inventory), Ok(()));
    Ok(placement)
}
