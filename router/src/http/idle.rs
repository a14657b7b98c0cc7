//! How long a connection has nothing to answer. Hyper watches this for HTTP/1; in HTTP/2 a client that answers pings would be
//! kept for ever, and so would one that never says what it speaks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::timeout;

/// Requests of one connection that are not answered to the end.
#[derive(Clone)]
pub struct Open(Arc<watch::Sender<usize>>);

/// One of them.
#[must_use]
pub struct Ticket(Open);

/// A body that holds its request's ticket.
pub struct Counted {
    body: Body,
    _ticket: Ticket,
}

impl Open {
    pub fn none() -> Open {
        Open(Arc::new(watch::channel(0).0))
    }

    pub fn enter(&self) -> Ticket {
        self.0.send_modify(|open| *open += 1);
        Ticket(self.clone())
    }

    /// Returns when there was none for `time_max`, from the beginning or after the last.
    pub async fn idle_for(&self, time_max: Duration) {
        let mut open = self.0.subscribe();
        loop {
            let quiet = *open.borrow_and_update() == 0;
            match quiet {
                true if timeout(time_max, open.changed()).await.is_err() => return,
                true => {}
                // The sender is `self`: it is there.
                false => drop(open.changed().await),
            }
        }
    }
}

impl Ticket {
    /// Held until the last of the answer was sent, or nobody wants it.
    pub fn around(self, answer: Response<Body>) -> Response<Counted> {
        answer.map(|body| Counted { body, _ticket: self })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const MAX: Duration = Duration::from_millis(400);

    async fn ends(open: &Open) -> bool {
        timeout(2 * MAX, open.idle_for(MAX)).await.is_ok()
    }

    #[tokio::test]
    async fn only_a_connection_without_requests_is_idle() {
        let open = Open::none();
        assert!(ends(&open).await, "nothing ever came");
        let ticket = open.enter();
        assert!(!ends(&open).await, "one is being answered");
        let answer = ticket.around(Response::new(Body::from("x")));
        assert!(!ends(&open).await, "one is being sent");
        drop(answer);
        assert!(ends(&open).await, "all is sent");
        while !short_ones_count(&open).await {}
    }

    /// Short requests, one after another; `false` where this process stood still for so long that there was none meanwhile.
    async fn short_ones_count(open: &Open) -> bool {
        let mut idle = std::pin::pin!(open.idle_for(MAX));
        let began = Instant::now();
        while began.elapsed() < 2 * MAX {
            let last = Instant::now();
            drop(open.enter());
            if timeout(MAX / 20, &mut idle).await.is_ok() {
                assert!(last.elapsed() >= MAX, "short ones count");
                return false;
            }
        }
        true
    }
}
