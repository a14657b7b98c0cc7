//! The one trait, and how its ends fail.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::frame::{FrameBody, FrameError, Header};

/// One end of a connection that carries frames in order, both ways. It belongs to one thread.
///
/// What came before the other end went is still received; then, and after a cut, everything fails with `Closed`. After
/// `Deadline` one may try again: it never falls into the middle of a frame that is received, which has `REST_MAX` more from its
/// beginning on. Only where that did not do, or where sending broke off, is the connection over, and `Closed` comes next, as
/// after bytes that are no frame.
///
/// At least two frames of the largest size fit into either direction, so that a router may have two calls on their way while
/// the worker still computes the first.
pub trait Channel: Send {
    /// Puts a frame on its way; its body is the parts, one after another. `Header::body_bytes` is set by this.
    fn send(&mut self, header: &Header, body: &[&[u8]], deadline: Instant) -> Result<(), ChannelError>;

    /// The next frame. `body` holds what came; what it held before is gone.
    fn receive(&mut self, body: &mut FrameBody, deadline: Instant) -> Result<Header, ChannelError>;

    fn kind(&self) -> ExchangeKind;

    /// What ends this end's waits from another thread.
    fn cut(&self) -> Cut;
}

/// Why nothing was sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other end is gone, or somebody has cut the connection.
    #[error("the connection is closed")]
    Closed,
    #[error("nothing came in time")]
    Deadline,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// The ways to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// Threads of one process.
    Local,
    /// Processes of one host.
    SharedMemory,
    /// Anywhere.
    Grpc,
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExchangeKind::Local => "local",
            ExchangeKind::SharedMemory => "shared memory",
            ExchangeKind::Grpc => "gRPC",
        })
    }
}

/// A frame that has begun may take this much longer than its receiver's deadline: whoever looks in short turns does not break
/// off in the middle of one.
pub const REST_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// Ends a channel's waits: they fail with `Closed` from then on. Waits look at it at least every `Cut::LATENCY_MAX`.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    /// How long a wait may take to see that it was cut.
    pub const LATENCY_MAX: std::time::Duration = std::time::Duration::from_millis(20);

    pub fn now(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_cut(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
