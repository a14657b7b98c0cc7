//! Who is alive, and which plan they serve: events and the time go in, actions come out. No socket, no clock, no thread.
//!
//! A plan comes to life in three steps: every worker prepares its shard beside what it has, the epoch is activated when all
//! have, and what came before is retired. A death with copies left is a plan that nobody must load for.

mod about;
mod case;
mod event;
mod member;
mod penalty;
mod plan;
mod roster;
mod running;
mod search;
mod view;
mod wish;

pub use about::{Machine, Policy, WorkerAbout};
pub use case::Case;
pub use event::{Action, Event, Note, Refused, Wish};
pub use roster::Roster;
pub use running::SEARCHES_MAX;
pub use search::{Found, Search};
pub use view::{PendingView, Progress, RosterView, WorkerState, WorkerView};
pub use wish::{Begun, Considered, Fitting};
