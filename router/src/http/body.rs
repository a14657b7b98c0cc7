//! A body, whole in memory: within its size, its time, and what all bodies together may take.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::SemaphorePermit;

use crate::openai::{ApiError, ErrorKind, RequestLimits};
use crate::serving::Server;
use crate::serving::server::BODY_UNIT;

/// A body longer than this is parsed where it holds up nobody's stream.
const PARSED_AT_ONCE_BYTES: usize = 64 << 10;

/// The bytes, and the room that they take until the request is parsed.
struct Read<'a> {
    bytes: Bytes,
    _room: Vec<SemaphorePermit<'a>>,
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
    request: Request,
    parse: fn(&[u8], &RequestLimits) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let read = read(server, request).await?;
    let limits = &server.options.requests;
    if read.bytes.len() <= PARSED_AT_ONCE_BYTES {
        return parse(&read.bytes, limits);
    }
    let (bytes, limits) = (read.bytes.clone(), limits.clone());
    let job = tokio::task::spawn_blocking(move || parse(&bytes, &limits));
    job.await.unwrap_or_else(|error| Err(ApiError::internal(format!("reading the request failed: {error}"))))
}

async fn read<'a>(server: &'a Server, request: Request) -> Result<Read<'a>, ApiError> {
    let max = server.options.requests.body_bytes_max;
    let too_large = || ApiError::new(ErrorKind::BodyTooLarge, format!("the body has more than {max} bytes"));
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if declared.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > max as u64) {
        return Err(too_large());
    }
    let time = server.options.body_time_max;
    match tokio::time::timeout(time, collect(server, request.into_body(), max)).await {
        Ok(Ok(Some(read))) => Ok(read),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let message = format!("the body did not arrive in {} s", time.as_secs());
            Err(ApiError::new(ErrorKind::Timeout, message))
        }
    }
}

/// `None` when there are more than `max` bytes.
async fn collect(server: &Server, mut body: Body, max: usize) -> Result<Option<Read<'_>>, ApiError> {
    let (mut bytes, mut room) = (BytesMut::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::invalid("", format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
        while room.len() * BODY_UNIT < bytes.len() {
            let full = |_| {
                let message = "too many large requests are being read";
                ApiError::new(ErrorKind::Overloaded, message).retry_after(Duration::from_secs(1))
            };
            room.push(server.bodies.try_acquire().map_err(full)?);
        }
    }
    Ok(Some(Read { bytes: bytes.freeze(), _room: room }))
}
