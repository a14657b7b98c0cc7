//! Who is alive, who holds what, and how rows travel.
//!
//! `placement` decides who holds what, `membership` when; both are pure. `predict` says what a placement costs. `exchange`
//! carries the rows of a layer to workers and their sums home; `tls` encrypts what leaves the machine. Nobody here knows what a token means.
#![deny(unsafe_code)]

pub mod exchange;
mod host;
pub mod membership;
pub mod placement;
pub mod predict;
#[cfg(feature = "grpc")]
pub mod tls;

pub use host::host;
