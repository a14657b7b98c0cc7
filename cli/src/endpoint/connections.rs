//! Whether a request went over a connection that was there already. In: what connects. Out: how often this thread did.

use std::cell::Cell;
use std::io::ErrorKind;

use ureq::unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, Transport};

thread_local! {
    static OPENED: Cell<u64> = const { Cell::new(0) };
}

/// Connections that this thread has opened.
#[derive(PartialEq)]
pub struct Opened(u64);

impl Opened {
    pub fn so_far() -> Opened {
        Opened(OPENED.get())
    }
}

/// Connects as ever, and counts.
#[derive(Debug, Default)]
pub struct Counted(DefaultConnector);

impl Connector for Counted {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<()>,
    ) -> Result<Option<Box<dyn Transport>>, ureq::Error> {
        OPENED.set(OPENED.get() + 1);
        self.0.connect(details, chained)
    }
}

/// The other side closed the connection before it answered.
pub fn is_gone(error: &ureq::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error, ureq::Error::Io(error)
        if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}
