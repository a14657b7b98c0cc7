//! The handle that callers hold, and the thread that steps.

mod handle;

pub use handle::{Engine, EngineParts, Ticket};
