//! The expert server: a process that holds shards of experts, and computes them for any number of routers.
#![forbid(unsafe_code)]
