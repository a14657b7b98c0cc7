//! The `gaterail` binary: it parses the command line and starts what was asked for.
#![forbid(unsafe_code)]

mod hub;

fn main() {}
