//! The GPUs of this machine, and whose each is: a card belongs to one worker.
//!
//! Two workers on a card would only take turns on it, and each would count on memory that the other takes. Who computes on a
//! card holds a name of the system's (an abstract socket) that says which one: it is gone with its process, however that ends,
//! and leaves no file. Programs see each other's names within one network namespace; two containers do not.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use gaterail_kernels::KernelError;
use gaterail_kernels::cuda::{self, Card, CudaDevice};

use crate::device::DeviceArg;
use crate::error::CliError;
use crate::worker::usual_memory;

/// Who asks for a card by its number waits so long for whoever has it, and looks this often: where a server is started again at
/// once, the worker that it had before may be ending still.
pub const RELEASE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(100));

/// A card as whoever looks for one finds it; the N-th is `cuda:N`.
#[derive(Clone, Debug)]
pub enum Found {
    Free(Card),
    /// Another worker's.
    Taken(Card),
    /// Why no kernel of ours runs on it.
    Unfit(String),
}

/// All cards of this machine, or why there is none to be had.
pub type Here = Result<Vec<Found>, String>;

/// Where one worker computes.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// `None`: on the CPU.
    pub card: Option<Card>,
    /// Where it was not said: what was chosen, and why.
    pub why: Option<String>,
}

/// Holds a card as long as it lives.
pub struct Claim {
    _name: Option<UnixDatagram>,
}

/// What is here now. Opens no card.
pub fn look() -> Here {
    let found = |card: Result<Card, cuda::CudaError>| {
        let fit = card.and_then(|card| cuda::check_compiler(&card.properties.architecture).map(|()| card));
        match fit {
            Ok(card) if is_taken(&card) => Found::Taken(card),
            Ok(card) => Found::Free(card),
            Err(error) => Found::Unfit(error.to_string()),
        }
    };
    let cards = cuda::cards().map_err(|error| error.to_string())?;
    Ok(cards.into_iter().map(found).collect())
}

/// As they are here when no card that is asked for by its number is another worker's any more, or when that was waited for long
/// enough. `say` is told once what is waited for.
pub fn released(
    asked: &[DeviceArg],
    mut here: Here,
    (longest, every): (Duration, Duration),
    say: impl FnOnce(String),
) -> Here {
    let Ok(found) = &mut here else { return here };
    let is_asked = |ordinal: &usize| asked.contains(&DeviceArg::Cuda(*ordinal));
    let taken = |found: &[Found]| -> Vec<usize> {
        let taken = found.iter().enumerate().filter(|(_, at)| matches!(at, Found::Taken(_)));
        taken.map(|(ordinal, _)| ordinal).filter(is_asked).collect()
    };
    let waits_for = taken(found);
    // What cannot be with all of them does not become possible by waiting.
    let free = |at: &Found| match at {
        Found::Taken(card) => Found::Free(card.clone()),
        at => at.clone(),
    };
    if waits_for.is_empty() || choose(asked, &Ok(found.iter().map(free).collect())).is_err() {
        return here;
    }
    let names: Vec<String> = waits_for.iter().map(|ordinal| format!("cuda:{ordinal}")).collect();
    say(format!(
        "another worker has {}, and may be ending: that is waited for, up to {} s",
        names.join(" and "),
        longest.as_secs_f64()
    ));
    let deadline = Instant::now() + longest;
    while !taken(found).is_empty() && Instant::now() < deadline {
        std::thread::sleep(every);
        for at in found.iter_mut() {
            if matches!(at, Found::Taken(card) if !is_taken(card)) {
                *at = free(at);
            }
        }
    }
    here
}

/// Takes a card, unless another worker has it.
pub fn claim(card: &Card) -> Option<Claim> {
    match name(card).and_then(|name| UnixDatagram::bind_addr(&name)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        // Where the system has no such names nobody is kept away.
        bound => Some(Claim { _name: bound.ok() }),
    }
}

/// Whether a worker has it. Looking takes nothing from whoever takes it at this moment.
fn is_taken(card: &Card) -> bool {
    let Ok(name) = name(card) else { return false };
    let asked = UnixDatagram::unbound().and_then(|socket| socket.connect_addr(&name));
    // Somebody may have the name who wants to hear nothing.
    !matches!(asked, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

fn name(card: &Card) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("gaterail/card/{}", card.id))
}

/// Opens a card for a moment: what experts may take of what is free on it now.
pub fn room(card: &Card) -> Result<u64, CliError> {
    let device = CudaDevice::open(card.properties.ordinal).map_err(KernelError::from)?;
    Ok(usual_memory(device.free_bytes().map_err(KernelError::from)? as u64))
}

/// A card, or the CPU, for each worker. Cards that were asked for by number come first; `auto` then takes those that are left, in
/// their order. The error says which of the wishes cannot be.
pub fn choose(asked: &[DeviceArg], here: &Here) -> Result<Vec<Chosen>, String> {
    let mut given: Vec<(usize, usize)> = Vec::new();
    for (worker, device) in asked.iter().enumerate() {
        let DeviceArg::Cuda(ordinal) = *device else { continue };
        if let Some((_, other)) = given.iter().find(|(taken, _)| *taken == ordinal) {
            return Err(format!(
                "cuda:{ordinal} is asked for by worker-{other} and worker-{worker}: a card belongs to one worker, since two would take turns on it and each count on memory that the other takes. Give each its own, or take fewer workers"
            ));
        }
        match here.as_ref().map_err(String::clone)?.get(ordinal) {
            Some(Found::Free(_)) => given.push((ordinal, worker)),
            Some(Found::Taken(_)) => {
                return Err(format!("cuda:{ordinal} is another worker's, and a card belongs to one worker"));
            }
            Some(Found::Unfit(why)) => return Err(format!("cuda:{ordinal}: {why}")),
            None => {
                let count = here.as_ref().map_or(0, Vec::len);
                return Err(cuda::CudaError::NoDevice { ordinal, count }.to_string());
            }
        }
    }
    let chosen = asked.iter().enumerate().map(|(worker, device)| match *device {
        DeviceArg::Cpu => Chosen { card: None, why: None },
        DeviceArg::Cuda(ordinal) => Chosen { card: free(here, ordinal).cloned(), why: None },
        DeviceArg::Auto => next(worker, here, &mut given),
    });
    Ok(chosen.collect())
}

fn free(here: &Here, ordinal: usize) -> Option<&Card> {
    match here.as_ref().ok()?.get(ordinal)? {
        Found::Free(card) => Some(card),
        Found::Taken(_) | Found::Unfit(_) => None,
    }
}

/// The next card that nobody has, else the CPU.
fn next(worker: usize, here: &Here, given: &mut Vec<(usize, usize)>) -> Chosen {
    let found = match here {
        Ok(found) => found,
        Err(why) => return Chosen { card: None, why: Some(format!("the CPU: {why}")) },
    };
    let mut passed = Vec::new();
    for (ordinal, at) in found.iter().enumerate() {
        let owner = given.iter().find(|(taken, _)| *taken == ordinal).map(|(_, owner)| owner);
        match (at, owner) {
            (_, Some(owner)) => passed.push(format!("cuda:{ordinal} is worker-{owner}'s")),
            (Found::Taken(_), _) => passed.push(format!("cuda:{ordinal} is another worker's")),
            (Found::Unfit(why), _) => passed.push(format!("cuda:{ordinal}: {why}")),
            (Found::Free(card), None) => {
                given.push((ordinal, worker));
                let passed =
                    if passed.is_empty() { String::new() } else { format!(" ({})", passed.join("; ")) };
                let why = format!("cuda:{ordinal}, the first card that is free{passed}");
                return Chosen { card: Some(card.clone()), why: Some(why) };
            }
        }
    }
    let why = if passed.is_empty() { "there is no card".to_string() } else { passed.join("; ") };
    Chosen { card: None, why: Some(format!("the CPU: {why}")) }
}

#[cfg(test)]
mod tests {
    use gaterail_kernels::cuda::Properties;

    use super::*;
    use crate::device;

    fn card(ordinal: usize, id: &str) -> Card {
        let properties = Properties {
            ordinal,
            name: "a card".to_string(),
            architecture: "sm_90".to_string(),
            multiprocessors: 1,
            shared_bytes: 1,
            memory_bytes: 1,
            cache_bytes: 1,
        };
        Card { id: id.to_string(), properties }
    }

    /// `f`: free, `t`: another worker's, `u`: of no use.
    fn here(cards: &str) -> Here {
        let found = |(ordinal, state)| match state {
            'f' => Found::Free(card(ordinal, "")),
            't' => Found::Taken(card(ordinal, &format!("{cards}-{}", std::process::id()))),
            _ => Found::Unfit("too old".to_string()),
        };
        Ok(cards.chars().enumerate().map(found).collect())
    }

    fn asked(devices: &str) -> Vec<DeviceArg> {
        devices.split(',').map(|device| device::parse(device).expect("a device")).collect()
    }

    /// `0`: cuda:0, `-`: the CPU.
    fn check(devices: &str, here: &Here, expected: &str) {
        let chosen = choose(&asked(devices), here).unwrap_or_else(|error| panic!("{devices}: {error}"));
        let shown = chosen.iter().map(|at| match &at.card {
            Some(card) => card.properties.ordinal.to_string(),
            None => "-".to_string(),
        });
        assert_eq!(shown.collect::<String>(), expected, "{devices} of {here:?}");
        // What was not said is told, and nothing else.
        for (device, at) in asked(devices).into_iter().zip(&chosen) {
            assert_eq!(at.why.is_some(), device == DeviceArg::Auto, "{devices}: {at:?}");
        }
    }

    #[test]
    fn every_worker_gets_a_card_of_its_own() {
        check("cuda:0,cuda:1", &here("ff"), "01");
        check("cuda:1,cpu,cuda", &here("ff"), "1-0");
        check("auto,auto", &here("ff"), "01");
        check("auto,auto,auto", &here("ff"), "01-");
        // Who names one gets it, whoever is asked first.
        check("auto,cuda:0,auto", &here("fff"), "102");
        check("auto,auto", &here("tuf"), "2-");
        check("auto,cpu", &here(""), "--");
        check("auto,cpu", &Err("no driver".to_string()), "--");
        check("cpu,cpu", &Err("no driver".to_string()), "--");
    }

    #[test]
    fn what_was_chosen_is_told_with_its_reason() {
        let why = |devices: &str, here: &Here| -> Vec<String> {
            let chosen = choose(&asked(devices), here).expect("a choice");
            chosen.into_iter().filter_map(|at| at.why).collect()
        };
        assert_eq!(why("auto", &Err("no driver".to_string())), ["the CPU: no driver"]);
        assert_eq!(why("auto", &here("")), ["the CPU: there is no card"]);
        assert_eq!(
            why("auto,auto", &here("tuf")),
            [
                "cuda:2, the first card that is free (cuda:0 is another worker's; cuda:1: too old)",
                "the CPU: cuda:0 is another worker's; cuda:1: too old; cuda:2 is worker-0's",
            ]
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |devices: &str, here: &Here, part: &str| {
            let error = choose(&asked(devices), here).expect_err(devices);
            assert!(error.contains(part), "{error}");
        };
        refused("cuda:0,cuda:0", &here("ff"), "worker-0 and worker-1");
        refused("cuda:0,auto,cuda", &here("ff"), "worker-0 and worker-2");
        refused("cuda:2", &here("ff"), "cuda:2 asked for, 2 devices found");
        refused("cuda:1", &here("ft"), "another worker's");
        refused("cuda:0", &here("uf"), "cuda:0: too old");
        refused("cpu,cuda:0", &Err("no driver".to_string()), "no driver");
    }

    /// Holds the second of two cards for `held`, or until nobody waits any more; what is found of it in the end, and what was said.
    fn waited(devices: &str, held: Option<Duration>, longest: Duration) -> (bool, Vec<String>) {
        let there = card(1, &format!("{devices}-{held:?}-{}", std::process::id()));
        let holder = claim(&there).expect("nobody has it");
        let (ended, end) = std::sync::mpsc::channel();
        let releases = std::thread::spawn(move || {
            match held {
                Some(held) => std::thread::sleep(held),
                None => end.recv().expect("the wait ends"),
            }
            drop(holder);
        });
        let here = Ok(vec![Found::Free(card(0, "")), Found::Taken(there)]);
        let mut said = Vec::new();
        let every = Duration::from_millis(5);
        let found = released(&asked(devices), here, (longest, every), |line| said.push(line));
        // Nobody listens where the time was over first.
        let _ = ended.send(());
        releases.join().expect("it ends");
        (matches!(found.expect("cards")[1], Found::Free(_)), said)
    }

    #[test]
    fn who_asks_for_a_card_waits_for_its_release_and_not_for_ever() {
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(60));
        let (free, said) = waited("cuda:1,auto", Some(short), long);
        assert!(free && said.len() == 1 && said[0].contains("has cuda:1, and may be ending"), "{said:?}");
        let (free, said) = waited("cuda:1", None, Duration::from_millis(50));
        assert!(!free && said.len() == 1, "{said:?}");
        // Whoever takes what there is does not wait, nor who asks for another, nor who asks for what cannot be.
        for devices in ["auto", "cpu", "cuda:0", "cuda:1,cuda:1", "cuda:1,cuda:7"] {
            let (free, said) = waited(devices, None, long);
            assert!(!free && said.is_empty(), "{devices}: {said:?}");
        }
    }

    #[test]
    fn a_card_is_one_workers_until_that_is_gone() {
        let card = card(0, &format!("test-{}", std::process::id()));
        assert!(!is_taken(&card));
        let first = claim(&card).expect("nobody has it");
        assert!(is_taken(&card) && claim(&card).is_none(), "it is another's");
        drop(first);
        assert!(!is_taken(&card) && claim(&card).is_some());
    }
}
