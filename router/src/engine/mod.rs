//! The handle that callers hold, and the thread that steps.
//!
//! | file | |
//! |---|---|
//! | [`handle`] | what callers hold |
//! | `inbox` | what they leave for the thread, and what it lets them see |
//! | `thread` | the loop |

pub mod handle;
mod inbox;
#[cfg(test)]
mod tests;
mod thread;

pub use handle::{Engine, EngineParts, Ticket};
pub use inbox::Ended;
