//! Where each worker of this machine computes: what was asked for, made sure of before anything is loaded.

use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::spec::ModelSpec;
use gaterail_model::weights::{Precision, check_for_cards, precision_for_cards};

use super::share::CardRoom;
use gaterail_kernels::cuda::Card;

use crate::cards::{self, Found, Here};
use crate::device::DeviceArg;
use crate::error::CliError;
use crate::terminal;
use crate::weights::WeightsArg;

/// Every card that kernels run on has as much shared memory for a block.
const SHARED_BYTES: usize = 99 << 10;

/// The device of each of `spawn` workers: one that was asked for, or the one for all.
pub fn asked(devices: &[DeviceArg], spawn: usize) -> Result<Vec<DeviceArg>, CliError> {
    match *devices {
        [] => Ok(vec![DeviceArg::Cpu; spawn]),
        // One card for several is refused where cards are given out.
        [one] => Ok(vec![one; spawn]),
        _ if spawn == 0 || devices.len() == spawn => Ok(devices[..spawn.min(devices.len())].to_vec()),
        _ => Err(CliError::Usage(format!(
            "--worker-devices names {}, and --workers starts {spawn}: one for each, or one for all",
            devices.len()
        ))),
    }
}

/// The precision for workers on these devices: where somebody names a card and nobody a precision, one that cards compute.
pub fn precision(
    devices: &[DeviceArg],
    weights: WeightsArg,
    found: Precision,
    (spec, checkpoint): (&ModelSpec, &Checkpoint),
) -> Precision {
    let names_card = devices.iter().any(|device| matches!(device, DeviceArg::Cuda(_)));
    if weights != WeightsArg::Auto
        || !names_card
        || check_for_cards(spec, checkpoint, found, SHARED_BYTES).is_ok()
    {
        return found;
    }
    let Some(precision) = precision_for_cards(spec, checkpoint, SHARED_BYTES) else { return found };
    terminal::note(&format!(
        "gaterail: weights in {}: cards have kernels for some forms of 4 and 8 bits (--weights says otherwise)",
        name(precision)
    ));
    precision
}

/// As `--weights` has it.
fn name(precision: Precision) -> &'static str {
    if precision == Precision::Int8 { "int8" } else { "int4" }
}

/// Why cards do not compute the experts as they are to be run, and what would work.
fn not_for_cards(precision: Precision, (spec, checkpoint): (&ModelSpec, &Checkpoint)) -> Option<String> {
    let why = check_for_cards(spec, checkpoint, precision, SHARED_BYTES).err()?;
    let other = precision_for_cards(spec, checkpoint, SHARED_BYTES);
    let other = other.map_or(String::new(), |other| format!("--weights {} has one, and ", name(other)));
    Some(format!("{why}; {other}workers on the CPU compute all (--worker-devices cpu)"))
}

/// The cards of those who compute on one, by worker. Says what `auto` comes to.
pub fn cards_of(
    devices: &[DeviceArg],
    precision: Precision,
    (spec, checkpoint): (&ModelSpec, &Checkpoint),
) -> Result<Vec<Option<CardRoom>>, CliError> {
    if devices.iter().all(|device| *device == DeviceArg::Cpu) {
        return Ok(vec![None; devices.len()]);
    }
    let mut here: Here = cards::look();
    if here.iter().flatten().any(|card| !matches!(card, Found::Unfit(_))) {
        let refused = not_for_cards(precision, (spec, checkpoint));
        here = refused.map_or(here, Err);
    }
    let say = |line: String| terminal::note(&terminal::visible(&format!("gaterail: {line}")));
    here = cards::released(devices, here, cards::RELEASE, say);
    let refused = |why| CliError::Refused(format!("--worker-devices: {why}"));
    let (chosen, rooms) = loop {
        let chosen = cards::choose(devices, &here).map_err(refused)?;
        let rooms: Vec<_> = chosen.iter().map(|at| at.card.as_ref().map(room).transpose()).collect();
        // A card that cannot be opened is none for who takes what there is: each is tried once.
        let mut passed = false;
        for ((room, at), device) in rooms.iter().zip(&chosen).zip(devices) {
            if let (Err(error), Some(card), DeviceArg::Auto, Ok(found)) = (room, &at.card, device, &mut here)
            {
                found[card.properties.ordinal] = Found::Unfit(error.to_string());
                passed = true;
            }
        }
        if !passed {
            break (chosen, rooms);
        }
    };
    for (worker, at) in chosen.iter().enumerate() {
        if let Some(why) = &at.why {
            terminal::note(&terminal::visible(&format!("gaterail: worker-{worker} computes on {why}")));
        }
    }
    rooms.into_iter().collect()
}

fn room(card: &Card) -> Result<CardRoom, CliError> {
    Ok(CardRoom { ordinal: card.properties.ordinal, memory: cards::room(card)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_for_each_or_one_for_all() {
        use DeviceArg::{Auto, Cpu, Cuda};
        let of = |devices: &[DeviceArg], spawn| asked(devices, spawn).expect("devices");
        assert_eq!(of(&[], 2), [Cpu, Cpu]);
        assert_eq!(of(&[Auto], 3), [Auto, Auto, Auto]);
        assert_eq!(of(&[Cuda(1), Cpu], 2), [Cuda(1), Cpu]);
        // Nobody is started: what they would have had does not matter.
        assert_eq!(of(&[Cuda(1), Cpu], 0), []);
        for spawn in [1, 3] {
            let error = asked(&[Cuda(1), Cpu], spawn).expect_err("two").to_string();
            assert!(error.contains("names 2") && error.contains(&format!("starts {spawn}")), "{error}");
        }
    }
}
