//! The socket of one client: given up when it takes too little, and noticed when it is gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Who reads has so long to see for itself that the client is gone.
const TURN: Duration = Duration::from_millis(10);

/// A stream that gives up on a client that takes too little for too long.
pub struct Patient {
    stream: Arc<TcpStream>,
    /// Whoever reads waits for the client, and will see its end.
    reading: Arc<AtomicBool>,
    stall_max: Duration,
    bytes_min: usize,
    /// Runs while bytes wait for the client.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Taken since it runs.
    taken: usize,
}

/// The end of a client that nobody reads from. Hyper reads ahead while it answers, to see a client go; but not where a byte
/// has come behind the request, and then it would answer to the end for nobody.
pub struct Gone {
    stream: Arc<TcpStream>,
    reading: Arc<AtomicBool>,
}

impl Gone {
    /// Returns when the client has closed its side and nobody is about to read that.
    pub async fn noticed(&self) {
        loop {
            // This interest wakes for a side that is closed, and not for bytes that come.
            match self.stream.ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(TURN).await,
                _ => break,
            }
        }
        loop {
            tokio::time::sleep(TURN).await;
            if !self.reading.load(Relaxed) {
                return;
            }
        }
    }
}

impl Patient {
    pub fn new(stream: TcpStream, stall_max: Duration, bytes_min: usize) -> (Patient, Gone) {
        let (stream, reading) = (Arc::new(stream), Arc::new(AtomicBool::new(false)));
        let gone = Gone { stream: stream.clone(), reading: reading.clone() };
        (Patient { stream, reading, stall_max, bytes_min, waiting: None, taken: 0 }, gone)
    }

    fn read(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(drop)),
            }
        }
    }

    fn write(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn wrote(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(bytes)) => {
                self.taken += bytes;
                if self.taken >= self.bytes_min {
                    self.waiting = None;
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Pending => {
                if self.waiting.is_none() {
                    self.taken = 0;
                    self.waiting = Some(Box::pin(tokio::time::sleep_until(Instant::now() + self.stall_max)));
                }
                let over = self.waiting.as_mut().is_some_and(|sleep| sleep.as_mut().poll(context).is_ready());
                if over { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
            }
            failed => failed,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = self.read(context, buffer);
        self.reading.store(result.is_pending(), Relaxed);
        result
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.write(context, |stream| stream.try_write(bytes));
        self.wrote(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.write(context, |stream| stream.try_write_vectored(parts));
        self.wrote(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Hyper flushes when all that it had is written: nobody waits.
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write) {
            // The client was faster.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
