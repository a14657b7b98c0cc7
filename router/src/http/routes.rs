//! Which path is answered where. What is not named here is a 404 in OpenAI's words, and behind the door like all else.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::routing::{MethodRouter, get, post};

use super::listen::Protocol;
use super::{chat, completions, health, layers, models, tokens, workers};
use crate::openai::{ApiError, ErrorKind};
use crate::serving::Server;

/// Every route with the layers around it.
pub fn routes(server: Arc<Server>) -> Router {
    let get =
        |route: MethodRouter<Arc<Server>>| route.fallback(|request: Request| wrong_method(request, "GET"));
    let post =
        |route: MethodRouter<Arc<Server>>| route.fallback(|request: Request| wrong_method(request, "POST"));
    let routes = Router::new()
        .route("/v1/chat/completions", post(self::post(chat::answer)))
        .route("/v1/completions", post(self::post(completions::answer)))
        .route("/v1/models", get(self::get(models::list)))
        .route("/v1/models/{*id}", get(self::get(models::one)))
        .route("/tokenize", post(self::post(tokens::tokenize)))
        .route("/detokenize", post(self::post(tokens::detokenize)))
        .route("/health", get(self::get(health::health)))
        .route("/livez", get(self::get(health::live)))
        .route("/readyz", get(self::get(health::ready)))
        .route("/metrics", get(self::get(health::metrics)))
        .route("/version", get(self::get(health::version)))
        .route("/cluster", get(self::get(workers::show)))
        .route("/cluster/rebalance", post(self::post(workers::rebalance)))
        .fallback(no_route)
        .with_state(server.clone());
    layers::guarded(routes, &server.entrance, Protocol::Http1)
}

/// What a path is called in logs and metrics: one of few, whatever clients send.
pub fn route_name(path: &str) -> &'static str {
    const KNOWN: [&str; 12] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/health",
        "/livez",
        "/readyz",
        "/metrics",
        "/version",
        "/cluster",
        "/cluster/rebalance",
    ];
    match KNOWN.iter().find(|known| **known == path) {
        Some(known) => known,
        None if path.starts_with("/v1/models/") => "/v1/models/{id}",
        None if path.starts_with("/gaterail.v1.") => "grpc",
        None if path.starts_with("/grpc.") => "grpc-service",
        None => "other",
    }
}

async fn no_route(request: Request) -> ApiError {
    let path = shortened(request.uri().path());
    ApiError::new(ErrorKind::NoSuchRoute, format!("there is no {} {path}", request.method()))
}

async fn wrong_method(request: Request, right: &'static str) -> ApiError {
    let (method, path) = (request.method(), shortened(request.uri().path()));
    debug_assert_ne!(method, Method::OPTIONS, "answered in front");
    ApiError::new(ErrorKind::Method, format!("{path} is for {right}, not for {method}"))
}

fn shortened(path: &str) -> &str {
    &path[..path.floor_char_boundary(200)]
}
