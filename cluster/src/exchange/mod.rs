//! How rows travel: a `Channel` is one end of a connection between a router and a worker, and carries frames in order.
//!
//! The ways to travel differ in speed and reach, never in what arrives. `frame` says what a frame is, `calls` what is in it,
//! `traffic` which rows go.

mod calls;
mod channel;
mod frame;
mod local;
mod shared;
#[cfg(feature = "grpc")]
pub mod stream;
mod traffic;

pub use calls::{CallRows, CallX, body_bytes_max, call_bytes};
pub use channel::{Channel, ChannelError, Cut, ExchangeKind};
pub use frame::{FrameBody, FrameError, FrameKind, HEADER_BYTES, Header, RowForm};
pub use local::local_pair;
pub use shared::{
    SharedEnd, SharedError, SharedOffer, Waiting, create as create_shared, open as open_shared,
};
pub use traffic::{Road, Traffic};
