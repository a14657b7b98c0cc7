//! `gaterail serve` as its clients and its operator meet it: the real program, the demo model, real sockets.

mod bad_input;
mod bench;
mod clients;
mod company;
mod grpc;
mod keys;
mod lifecycle;
mod loading;
mod overload;
mod secret;
mod server;
mod slow;
mod stream;
mod tenants;
