//! What a client is told when a request is refused or fails: status, OpenAI's error object, and when to come again.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// The closed set of ways in which a request ends badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    Invalid,
    ContextLength,
    BadKey,
    Forbidden,
    NoSuchModel,
    NoSuchRoute,
    Method,
    Timeout,
    BodyTooLarge,
    HeadersTooLarge,
    RateLimit,
    Overloaded,
    Draining,
    Loading,
    Internal,
    Deadline,
}

impl ErrorKind {
    pub fn status(self) -> StatusCode {
        match self {
            ErrorKind::Invalid | ErrorKind::ContextLength => StatusCode::BAD_REQUEST,
            ErrorKind::BadKey => StatusCode::UNAUTHORIZED,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::NoSuchModel | ErrorKind::NoSuchRoute => StatusCode::NOT_FOUND,
            ErrorKind::Method => StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ErrorKind::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Overloaded | ErrorKind::Draining | ErrorKind::Loading => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Deadline => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// OpenAI's `code`: a word for programs, or nothing.
    pub fn code(self) -> Option<&'static str> {
        match self {
            ErrorKind::Invalid | ErrorKind::Method => None,
            ErrorKind::ContextLength => Some("context_length_exceeded"),
            ErrorKind::BadKey => Some("invalid_api_key"),
            ErrorKind::Forbidden => Some("forbidden"),
            ErrorKind::NoSuchModel => Some("model_not_found"),
            ErrorKind::NoSuchRoute => Some("unknown_url"),
            ErrorKind::Timeout => Some("request_timeout"),
            ErrorKind::BodyTooLarge => Some("request_too_large"),
            ErrorKind::HeadersTooLarge => Some("headers_too_large"),
            ErrorKind::RateLimit => Some("rate_limit_exceeded"),
            ErrorKind::Overloaded => Some("overloaded"),
            ErrorKind::Draining => Some("draining"),
            ErrorKind::Loading => Some("loading"),
            ErrorKind::Internal => Some("internal_error"),
            ErrorKind::Deadline => Some("timeout"),
        }
    }

    /// OpenAI's `type`.
    pub fn family(self) -> &'static str {
        match self {
            ErrorKind::RateLimit => "rate_limit_error",
            ErrorKind::Overloaded | ErrorKind::Draining | ErrorKind::Loading => "service_unavailable_error",
            ErrorKind::Internal => "server_error",
            ErrorKind::Deadline => "timeout_error",
            _ => "invalid_request_error",
        }
    }
}

/// A refusal or a failure.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// When the same request may succeed.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into(), param: None, retry_after: None }
    }

    /// A field has a value that it cannot have.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::new(ErrorKind::Invalid, message) }
    }

    /// Something of ours broke; what exactly is for the log, not for the client.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::Internal, message)
    }

    pub fn retry_after(self, wait: Duration) -> ApiError {
        ApiError { retry_after: Some(wait), ..self }
    }

    /// `{"error": {…}}`, as a body or as the last event of a stream.
    pub fn object(&self) -> Value {
        json!({"error": {
            "message": self.told(),
            "type": self.kind.family(),
            "param": self.param,
            "code": self.kind.code(),
        }})
    }
}

impl ApiError {
    /// What a client is told.
    pub fn told(&self) -> &str {
        match self.kind {
            ErrorKind::Internal => "the server failed to answer this request; its log says why",
            _ => &self.message,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.object().to_string();
        let mut response = (self.kind.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, at least one: a client that comes at once comes too early.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
        }
        if self.kind == ErrorKind::BadKey {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}
