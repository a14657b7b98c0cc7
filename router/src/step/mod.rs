//! `schedule -> run -> postprocess`: one step of all sequences, without a thread or a socket.
//!
//! | file | |
//! |---|---|
//! | [`core`] | who is there, and the step |
//! | `view` | what the schedule is made from |
//! | `apply` | the plan carried out: pages taken and given, the batch |
//! | `postprocess` | logits to tokens, text and events |
//! | `sweep` | who is gone: clients, deadlines |
//! | [`counters`] | what is counted |

mod apply;
pub mod core;
pub mod counters;
mod postprocess;
mod sweep;
#[cfg(test)]
mod tests;
mod view;

pub use self::core::{Core, Gauges, Outcome};
pub use counters::{Counters, Pace};
