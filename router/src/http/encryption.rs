//! TLS in front of a port: the handshake within its time, and an answer for whoever comes in clear.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use gaterail_cluster::tls::{ServerTls, TlsStream, is_hello};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::listen::{Peer, Protocol};
use super::socket::{Gone, Patient};
use crate::openai::{ApiError, ErrorKind};

/// The same is not told again for so long, and not more lines than this of all that strangers do.
const TELL_EVERY: Duration = Duration::from_secs(30);
const TOLD_MAX: usize = 16;

/// A port's TLS.
#[derive(Clone)]
pub struct Tls {
    pub server: ServerTls,
    /// What answers whoever comes in clear.
    pub in_clear: Router,
}

/// A connection whose first bytes were looked at.
pub(super) enum Opened {
    Secret(Box<TlsStream<Patient>>),
    Clear(Patient),
}

impl Tls {
    pub fn new(server: ServerTls, protocol: Protocol, says: &'static str) -> Tls {
        Tls { server, in_clear: refusing(protocol, says) }
    }

    /// Everything that comes before the first request; `None` where none will come. It takes `time_max` at most. Who does not
    /// get in is told to `tell`.
    pub(super) async fn open(
        &self,
        stream: TcpStream,
        Peer(peer): Peer,
        time_max: Duration,
        tell: impl Fn(String),
        patient: impl FnOnce(TcpStream) -> (Patient, Gone),
    ) -> Option<(Opened, Gone)> {
        let deadline = Instant::now() + time_max;
        let mut first = [0];
        let looked = tokio::time::timeout_at(deadline, stream.peek(&mut first)).await;
        if looked.ok()?.ok()? == 0 {
            return None;
        }
        let (stream, gone) = patient(stream);
        if !is_hello(first[0]) {
            tell(format!("{peer} came in clear, and this port speaks TLS only"));
            return Some((Opened::Clear(stream), gone));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let why = match timeout(left, self.server.accept(stream)).await {
            Ok(Ok(stream)) => return Some((Opened::Secret(Box::new(stream)), gone)),
            Ok(Err(why)) => why,
            Err(_) => format!("its TLS handshake took more than {time_max:?}"),
        };
        if !why.is_empty() {
            tell(format!("{peer} is not let in: {why}"));
        }
        None
    }
}

/// The same answer to every request.
fn refusing(protocol: Protocol, says: &'static str) -> Router {
    match protocol {
        Protocol::Http1 => {
            Router::new().fallback(move || async move { ApiError::new(ErrorKind::Invalid, says) })
        }
        Protocol::Http2 => Router::new()
            .fallback(move || async move { Status::failed_precondition(says).into_http::<Body>() }),
    }
}

/// Tells an operator what strangers do, and not too often.
pub struct Teller {
    note: Box<dyn Fn(String) + Send + Sync>,
    told: Mutex<VecDeque<(String, Instant)>>,
}

impl Teller {
    pub fn new(note: impl Fn(String) + Send + Sync + 'static) -> Teller {
        Teller { note: Box::new(note), told: Mutex::default() }
    }

    pub fn tell(&self, line: String) {
        self.tell_at(line, Instant::now());
    }

    fn tell_at(&self, line: String, now: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        while told.front().is_some_and(|(_, at)| now.duration_since(*at) >= TELL_EVERY) {
            told.pop_front();
        }
        if told.len() < TOLD_MAX && told.iter().all(|(other, _)| *other != line) {
            told.push_back((line.clone(), now));
            drop(told);
            (self.note)(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn strangers_do_not_fill_the_log() {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = lines.clone();
        let teller = Teller::new(move |line| seen.lock().unwrap().push(line));
        let start = Instant::now();
        (0..3).for_each(|_| teller.tell_at("the same".to_string(), start));
        assert_eq!(lines.lock().unwrap().len(), 1);
        (0..100).for_each(|stranger| teller.tell_at(stranger.to_string(), start));
        assert_eq!(lines.lock().unwrap().len(), TOLD_MAX);
        teller.tell_at("the same".to_string(), start + TELL_EVERY);
        assert_eq!(lines.lock().unwrap().len(), TOLD_MAX + 1);
    }
}
