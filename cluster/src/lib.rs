//! Who is alive, who holds what, and how rows travel.
//!
//! `exchange` carries the rows of a layer to workers and their sums home. It knows frames and neighbours, not what a token
//! means.
#![deny(unsafe_code)]

pub mod exchange;
