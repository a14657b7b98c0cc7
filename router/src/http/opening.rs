//! What a port answers while its model is loaded, and that it answers as the server from then on. In: the routes of both
//! times. Out: one router for a port that is bound once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::json;

use super::answer::json_response;
use super::listen::Protocol;
use super::{health, layers};
use crate::openai::{ApiError, ErrorKind};
use crate::serving::Entrance;

/// How long loading takes nobody knows: come and see.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A port whose answers change once.
#[derive(Clone)]
pub struct Opening {
    before: Router,
    after: Arc<OnceLock<Router>>,
}

impl Opening {
    /// Answers with `before` until it is opened.
    pub fn new(before: Router) -> Opening {
        Opening { before, after: Arc::new(OnceLock::new()) }
    }

    /// Every request from now on goes to `routes`. Only the first call counts.
    pub fn open(&self, routes: Router) {
        let _ = self.after.set(routes);
    }

    /// What the port is served with.
    pub fn routes(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }
}

async fn answer(State(opening): State<Opening>, request: Request) -> Response {
    let routes = opening.after.get().unwrap_or(&opening.before).clone();
    match TowerToHyperService::new(routes).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// HTTP before there is a model: alive, not ready, and all else has to come again. Behind the same door.
pub fn before(entrance: &Entrance) -> Router {
    let routes = Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(not_ready))
        .route("/health", get(not_ready))
        .route("/version", get(health::version))
        .fallback(loading);
    layers::guarded(routes, entrance, Protocol::Http1)
}

async fn not_ready() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, json_response(&json!({"status": "loading"}))).into_response()
}

async fn loading() -> ApiError {
    error()
}

/// What a request is told before there is a model.
pub fn error() -> ApiError {
    ApiError::new(ErrorKind::Loading, "the model is being loaded").retry_after(RETRY_AFTER)
}
