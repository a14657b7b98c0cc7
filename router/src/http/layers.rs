//! What surrounds every route, from the outside in: request id and account; names that are not ours; web pages of other
//! origins; the key.

use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use super::hosts::hosts;
use super::listen::Protocol;
use super::routes::route_name;
use crate::api::RequestId;
use crate::auth::Caller;
use crate::openai::{ApiError, ErrorKind};
use crate::serving::Entrance;
use crate::serving::scope::Meta;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// A header block that hyper could read, but that is more than anybody needs.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// A web page may call and need not ask again for so many seconds.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// Puts the door and all that belongs to it in front of `routes`. The same for HTTP and gRPC, but for `hosts`, which is for
/// ports that browsers can reach.
pub fn guarded(routes: Router, entrance: &Entrance, protocol: Protocol) -> Router {
    let routes = routes
        .layer(from_fn_with_state(entrance.clone(), door))
        .layer(from_fn_with_state(entrance.clone(), origins));
    let routes = match protocol {
        Protocol::Http1 => routes.layer(from_fn_with_state(entrance.clone(), hosts)),
        Protocol::Http2 => routes,
    };
    routes.layer(from_fn_with_state(entrance.clone(), account))
}

/// Who asks and what the request is called; the layers have put it there.
pub fn caller(request: &Request) -> (Caller, Meta) {
    let extensions = request.extensions();
    let caller = extensions.get::<Caller>().expect("the door lets nobody in without a name");
    let meta = extensions.get::<Meta>().expect("every request has a name");
    (caller.clone(), meta.clone())
}

async fn account(State(entrance): State<Entrance>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let id = request_id(headers);
    let trace = headers.get(TRACE).and_then(|value| value.to_str().ok()).filter(|trace| is_trace(trace));
    let route = route_name(request.uri().path());
    let meta = Meta { id: id.clone(), trace: trace.map(Into::into), route, started: Instant::now() };
    let header_bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    request.extensions_mut().insert(meta);
    let mut response = if header_bytes > HEADER_BYTES_MAX {
        let message = format!("the headers have {header_bytes} bytes, more than {HEADER_BYTES_MAX}");
        ApiError::new(ErrorKind::HeadersTooLarge, message).into_response()
    } else {
        next.run(request).await
    };
    // Made of visible ASCII above.
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    entrance.metrics.response(route, response.status().as_u16());
    response
}

/// Answers browsers that ask first, and refuses pages that may not call.
async fn origins(State(entrance): State<Entrance>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        if request.method() == Method::OPTIONS {
            return StatusCode::NO_CONTENT.into_response();
        }
        return next.run(request).await;
    };
    if !is_allowed(&entrance, origin.to_str().unwrap_or_default()) {
        let message = "web pages of this origin may not call this server; see --cors-origin";
        return ApiError::new(ErrorKind::Forbidden, message).into_response();
    }
    let preflight = request.method() == Method::OPTIONS;
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers
        .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
        if let Some(wanted) = wanted {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
        }
    }
    response
}

/// An open door is for this machine only, so only this machine's pages may use it unless the operator says otherwise.
fn is_allowed(entrance: &Entrance, origin: &str) -> bool {
    let listed = &entrance.origins;
    if !listed.is_empty() {
        return listed.iter().any(|allowed| allowed == "*" || allowed == origin);
    }
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    !entrance.gate.is_open() || matches!(name, "localhost" | "127.0.0.1" | "::1")
}

async fn door(State(entrance): State<Entrance>, mut request: Request, next: Next) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    // Bytes that are no text are no key.
    let authorization = authorization.map(|value| value.to_str().unwrap_or("?"));
    match entrance.gate.authenticate(authorization) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            entrance.metrics.refusal("invalid_api_key");
            match is_grpc(request.headers()) {
                true => grpc_refusal(&error),
                false => error.into_response(),
            }
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

fn grpc_refusal(error: &ApiError) -> Response {
    let status = tonic::Status::unauthenticated(error.message.clone());
    status.into_http::<Body>()
}

/// The client's own, if it can stand in a header and a log; else one is made.
fn request_id(headers: &HeaderMap) -> RequestId {
    let own = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match own.filter(usable) {
        Some(id) => RequestId(id.into()),
        None => RequestId(format!("req-{}", random_hex()).into()),
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`.
fn is_trace(trace: &str) -> bool {
    let parts: Vec<&str> = trace.split('-').collect();
    let hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    matches!(parts[..], [version, id, span, flags]
        if hex(version, 2) && hex(id, 32) && hex(span, 16) && hex(flags, 2) && version != "ff")
}

/// 96 bits that nobody else has.
pub fn random_hex() -> String {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Relaxed);
    let random = getrandom::u64().unwrap_or_else(|_| count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    format!("{random:016x}{:08x}", count as u32)
}
