//! Plans that would fit where the one that was asked for does not.

use super::misfit::WayOut;
use super::place::fit;
use super::{Mode, Seat, Wanted, held};
use gaterail_proto::{ExpertInventory, LayerExperts, WorkerId};

/// Workers beyond these are not proposed.
const WORKERS_MAX: usize = 64;

/// One change at a time, the mildest first; then all that help together.
pub(super) fn ways_out(wanted: &Wanted<'_>) -> Vec<WayOut> {
    let wanted = Wanted { current: None, beside: false, replica_bytes: 0, ..*wanted };
    let mut ways = Vec::new();
    ways.extend(other_mode(&wanted));
    ways.extend(fewer_copies(&wanted));
    ways.extend(wanted.smaller.iter().filter_map(|(flag, inventory)| smaller(&wanted, flag, inventory)));
    ways.extend(more_workers(&wanted));
    if ways.is_empty() {
        ways.extend(all_together(&wanted));
    }
    ways
}

fn other_mode(wanted: &Wanted<'_>) -> Option<WayOut> {
    modes(wanted).find_map(|mode| way(&Wanted { mode, ..*wanted }, format!("--parallel {mode}")))
}

fn fewer_copies(wanted: &Wanted<'_>) -> Option<WayOut> {
    (1..wanted.copies)
        .rev()
        .find_map(|copies| way(&Wanted { copies, ..*wanted }, format!("--expert-copies {copies}")))
}

fn smaller(wanted: &Wanted<'_>, flag: &str, inventory: &ExpertInventory) -> Option<WayOut> {
    way(&Wanted { inventory, ..*wanted }, flag.to_string())
}

/// More workers like the smallest there is.
fn more_workers(wanted: &Wanted<'_>) -> Option<WayOut> {
    let like = wanted.seats.iter().min_by_key(|seat| seat.memory_bytes)?;
    let most = if matches!(wanted.mode, Mode::Mixed { .. }) { 0 } else { WORKERS_MAX };
    // Fewer have not the memory.
    let missing =
        needed(wanted).saturating_sub(memory(wanted)).div_ceil(u128::from(like.memory_bytes.max(1)));
    let least = wanted.seats.len() + usize::try_from(missing).unwrap_or(WORKERS_MAX).max(1);
    let with = |count: usize| {
        let mut seats = wanted.seats.to_vec();
        let free = (0..).map(WorkerId).filter(|&id| wanted.seats.iter().all(|seat| seat.worker != id));
        seats.extend(free.take(count - wanted.seats.len()).map(|worker| Seat { worker, ..*like }));
        way(&Wanted { seats: &seats, ..*wanted }, format!("--workers {count}"))
    };
    // From below, since plans for many workers take long: in steps that grow, then between the last two.
    let (mut low, mut high, mut step) = (least, least, 1);
    let mut found = loop {
        if high > most {
            return None;
        }
        match with(high) {
            Some(way) => break way,
            None => (low, high, step) = (high + 1, (high + step).min(most.max(high + 1)), step * 2),
        }
    };
    while low < high {
        let middle = (low + high) / 2;
        match with(middle) {
            Some(way) => (found, high) = (way, middle),
            None => low = middle + 1,
        }
    }
    Some(found)
}

/// Bytes of all copies.
fn needed(wanted: &Wanted<'_>) -> u128 {
    let bytes = |at: &LayerExperts| u128::from(at.expert_bytes) * u128::from(at.experts);
    wanted.inventory.layers.iter().map(bytes).sum::<u128>() * u128::from(wanted.copies.max(1))
}

fn memory(wanted: &Wanted<'_>) -> u128 {
    wanted.seats.iter().map(|seat| u128::from(seat.memory_bytes)).sum()
}

fn all_together(wanted: &Wanted<'_>) -> Option<WayOut> {
    let inventories = [("", wanted.inventory)].into_iter();
    let inventories = inventories.chain(wanted.smaller.iter().map(|(flag, at)| (flag.as_str(), at)));
    for (flag, inventory) in inventories {
        for mode in [wanted.mode].into_iter().chain(modes(wanted)) {
            let mut flags: Vec<String> =
                [flag].iter().filter(|flag| !flag.is_empty()).map(|flag| flag.to_string()).collect();
            if mode != wanted.mode {
                flags.push(format!("--parallel {mode}"));
            }
            if wanted.copies > 1 {
                flags.push("--expert-copies 1".to_string());
            }
            let then = Wanted { inventory, mode, copies: 1, ..*wanted };
            if let Some(way) = way(&then, flags.join(" ")) {
                return Some(way);
            }
            if let Some(WayOut { flags: workers, bytes_max }) = more_workers(&then) {
                flags.push(workers);
                return Some(WayOut { flags: flags.join(" "), bytes_max });
            }
        }
    }
    None
}

/// All other modes for as many workers.
fn modes(wanted: &Wanted<'_>) -> impl Iterator<Item = Mode> {
    let (asked, workers) = (wanted.mode, wanted.seats.len());
    let divides = move |ep: &usize| workers.is_multiple_of(*ep);
    let mixed = (2..workers).filter(divides).map(move |ep| Mode::Mixed { ep, tp: workers / ep });
    [Mode::Ep, Mode::Tp].into_iter().chain(mixed).filter(move |&mode| mode != asked)
}

fn way(wanted: &Wanted<'_>, flags: String) -> Option<WayOut> {
    // Most of what is tried does not fit, and shows it here.
    if needed(wanted) > memory(wanted) {
        return None;
    }
    let placement = fit(wanted).ok()?;
    let parts = held(wanted.inventory, &placement, None);
    Some(WayOut { flags, bytes_max: parts.iter().map(|part| part.bytes).max().unwrap_or(0) })
}
