//! The `gaterail` binary.
#![forbid(unsafe_code)]
fn main() {}
