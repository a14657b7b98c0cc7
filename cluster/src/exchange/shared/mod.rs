//! Memory that a router and a worker of one host share: a memfd with two rings of bytes each way.
//!
//! | file | |
//! |---|---|
//! | [`layout`] | where everything lies |
//! | [`map`] | the memory itself: all unsafe code |
//! | [`ring`] | bytes through a ring, and counters that are not believed |
//! | [`waiting`] | looking, offering the core, sleeping |
//! | [`end`] | frames through the rings: the `Channel` |
//! | [`offer`] | how two processes come to share it |
//!
//! The router makes the memory and tells pid, descriptor, size and nonce over the control connection; the worker opens
//! `/proc/PID/fd/FD`, which the kernel allows to the same user only. Either side distrusts what the other writes: a counter that
//! cannot be true, or a header that is none, ends the connection with an error.

mod end;
mod layout;
mod map;
mod offer;
mod ring;
mod waiting;

pub use end::SharedEnd;
pub use offer::{SharedError, SharedOffer, create, open};
pub use waiting::Waiting;
