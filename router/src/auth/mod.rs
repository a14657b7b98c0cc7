//! Who may come in, whose request it is, and how much of it they may have.
//!
//! | file | |
//! |---|---|
//! | [`key`] | a key: 256 random bits, of which only a hash is kept |
//! | [`file`] | the keys of a server on disk |
//! | [`bucket`] | so much a minute |
//! | [`gate`] | the decision, in front of every route of HTTP and gRPC |

pub mod bucket;
pub mod file;
pub mod gate;
pub mod key;
#[cfg(test)]
mod tests;

pub use file::{KeyFile, KeyFileError};
pub use gate::{Caller, Gate, StreamPermit, TokenCharge};
pub use key::{KeyHash, KeyLimits, KeyRecord, NewKey};
