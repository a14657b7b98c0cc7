//! A body, whole in memory: within its size, its time, and what all bodies together may take.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::layers::caller;
use super::listen::Peer;
use crate::openai::{ApiError, ErrorKind, RequestLimits};
use crate::serving::room::BodyPermit;
use crate::serving::{Server, ServerOptions};

/// A body longer than this is parsed where it holds up nobody's stream.
const PARSED_AT_ONCE_BYTES: usize = 64 << 10;

/// The bytes, and the room that they take until the request is parsed.
pub struct Read {
    pub bytes: Bytes,
    _room: BodyPermit,
}

/// What is left of the body of a request that was refused without it: a client that is at sending reads the answer only if
/// somebody takes so much.
const LEFT_BYTES_MAX: usize = 64 << 10;
const LEFT_TIME_MAX: Duration = Duration::from_secs(1);

/// The request, unless it is refused by what was known before its body.
pub fn unless(request: Request, known: Result<(), ApiError>) -> Result<Request, ApiError> {
    match known {
        Ok(()) => Ok(request),
        Err(error) => {
            tokio::spawn(tokio::time::timeout(LEFT_TIME_MAX, leave(request.into_body())));
            Err(error)
        }
    }
}

async fn leave(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > LEFT_BYTES_MAX {
            return;
        }
    }
}

/// Reads a body and makes a request of it.
pub async fn parsed<T: Send + 'static>(
    server: &Server,
    mut request: Request,
    parse: fn(&[u8], &RequestLimits) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let read = read(server, &mut request).await?;
    let limits = &server.options.requests;
    if read.bytes.len() <= PARSED_AT_ONCE_BYTES {
        return parse(&read.bytes, limits);
    }
    let limits = limits.clone();
    // With its room: the work goes on when the client does not.
    let job = tokio::task::spawn_blocking(move || parse(&read.bytes, &limits));
    job.await.unwrap_or_else(|error| Err(ApiError::internal(format!("reading the request failed: {error}"))))
}

/// Takes the body out of a request: all of it, within the limits of its size and time and of the room that there is.
pub async fn read(server: &Server, request: &mut Request) -> Result<Read, ApiError> {
    let max = server.options.requests.body_bytes_max;
    let too_large = || ApiError::new(ErrorKind::BodyTooLarge, format!("the body has more than {max} bytes"));
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if declared.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > max as u64) {
        return Err(too_large());
    }
    let address = request.extensions().get::<Peer>().map(|peer| peer.0);
    let room = server.bodies.enter(caller(request).0.sender(address));
    let time = server.options.body_time_max;
    let body = std::mem::take(request.body_mut());
    match tokio::time::timeout(time, collect(&server.options, body, room)).await {
        Ok(Ok(Some(read))) => Ok(read),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let message = format!("the body did not arrive in {} s", time.as_secs_f64());
            Err(ApiError::new(ErrorKind::Timeout, message))
        }
    }
}

/// `None` when there are more bytes than there may be.
async fn collect(
    options: &ServerOptions,
    mut body: Body,
    mut room: BodyPermit,
) -> Result<Option<Read>, ApiError> {
    let mut bytes = BytesMut::new();
    let mut pulse = Pulse::new(options);
    while let Some(frame) = pulse.within(body.frame()).await? {
        let frame = frame.map_err(|error| ApiError::invalid("", format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > options.requests.body_bytes_max {
            return Ok(None);
        }
        if !room.grow(bytes.len() + data.len()) {
            let message = "too many large requests are being read";
            let full = ApiError::new(ErrorKind::Overloaded, message);
            return Err(full.retry_after(Duration::from_secs(1)));
        }
        bytes.extend_from_slice(&data);
        pulse.came(data.len());
    }
    Ok(Some(Read { bytes: bytes.freeze(), _room: room }))
}

/// Whether a body comes fast enough: whoever sends it drop by drop holds room that others need.
struct Pulse<'a> {
    options: &'a ServerOptions,
    /// When enough has to have come.
    until: Instant,
    bytes: usize,
}

impl Pulse<'_> {
    fn new(options: &ServerOptions) -> Pulse<'_> {
        Pulse { options, until: Instant::now() + options.body_stall_max, bytes: 0 }
    }

    async fn within<T>(&self, next: impl Future<Output = T>) -> Result<T, ApiError> {
        let ServerOptions { body_stall_max, body_bytes_min, .. } = self.options;
        tokio::time::timeout_at(self.until, next).await.map_err(|_| {
            let seconds = body_stall_max.as_secs_f64();
            let message =
                format!("the body comes too slowly: fewer than {body_bytes_min} bytes of it in {seconds} s");
            ApiError::new(ErrorKind::Timeout, message)
        })
    }

    fn came(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= self.options.body_bytes_min {
            *self = Pulse::new(self.options);
        }
    }
}
