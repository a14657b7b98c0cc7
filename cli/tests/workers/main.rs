//! `gaterail serve` with workers, and `gaterail worker`, as their operators meet them: real processes, the demo model, real
//! sockets, real signals.

#[path = "../serve/server.rs"]
#[allow(dead_code)]
mod server;

mod cards;
mod cluster;
mod death;
mod door;
mod lifecycle;
mod log;
mod rebalance;
mod same;
mod tls;
