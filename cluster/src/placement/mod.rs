//! Who holds what: a pure function from a model's experts, the workers there are, and a mode to a `Placement`.
//!
//! All modes are one: workers form groups (of one for expert parallel, of all for tensor parallel), experts are spread over
//! groups, and each is cut over the workers of its groups. Each of the three begins with what is there already.

mod balance;
mod cut;
mod groups;
mod held;
mod job;
mod misfit;
mod mode;
mod place;
mod replicas;
mod rough;
mod spread;
mod ways;

pub use balance::{Balance, balance, replicas};
pub(crate) use groups::speeds;
pub use held::{Held, copies, held, run_bytes, without};
pub use misfit::{Misfit, WayOut};
pub use mode::{Mode, ModeError, Parallel};
pub(crate) use place::fit;
pub use place::place;
pub(crate) use rough::rough;

use std::sync::Arc;

use gaterail_proto::{ExpertInventory, Placement, ShardSpec, WorkerId};

/// A worker, as far as placement cares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seat {
    pub worker: WorkerId,
    /// What experts may take: a hard bound.
    pub memory_bytes: u64,
    /// The share of the work follows it.
    pub read_bytes_per_second: f64,
}

impl Seat {
    /// The seats of workers by their ids; one that is not among them has nothing.
    pub(crate) fn of(workers: &[WorkerId], seats: &[Seat]) -> Vec<Seat> {
        let of = |worker: &WorkerId| seats.iter().find(|seat| seat.worker == *worker).copied();
        let nobody = |worker| Seat { worker, memory_bytes: 0, read_bytes_per_second: 0.0 };
        workers.iter().map(|worker| of(worker).unwrap_or_else(|| nobody(*worker))).collect()
    }
}

/// How often each expert was hit, in the order of the inventory's slices; any scale.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Popularity(pub Vec<f64>);

/// What is to be placed, and where.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub inventory: &'a ExpertInventory,
    pub seats: &'a [Seat],
    pub mode: Mode,
    /// Copies of every expert, on different workers; at least 1.
    pub copies: u32,
    /// For further copies of the experts that are hit most, over all workers together.
    pub replica_bytes: u64,
    pub popularity: Option<&'a Popularity>,
    /// What lies packed on a worker's host: of places that are equal else, it goes there.
    pub packed: &'a [(WorkerId, Arc<ShardSpec>)],
    /// Who holds what now: as little as possible moves.
    pub current: Option<&'a Placement>,
    /// Whether what is new must fit beside all that is held now. If not, it does where that is possible.
    pub beside: bool,
    /// The same model in fewer bytes, each with the flag that asks for it ("--weights int4"): where a plan that does not fit
    /// may find room.
    pub smaller: &'a [(String, ExpertInventory)],
}

impl<'a> Wanted<'a> {
    /// One copy of every expert on seats that hold nothing yet.
    pub fn new(inventory: &'a ExpertInventory, seats: &'a [Seat], mode: Mode) -> Wanted<'a> {
        Wanted {
            inventory,
            seats,
            mode,
            copies: 1,
            replica_bytes: 0,
            popularity: None,
            packed: &[],
            current: None,
            beside: false,
            smaller: &[],
        }
    }
}
