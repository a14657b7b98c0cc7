//! For probes and operators: `/livez`, `/readyz`, `/health`, `/metrics`, `/version`.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gaterail_kernels::ops::PAGE_POSITIONS;
use serde_json::json;

use super::answer::json_response;
use crate::metrics::About;
use crate::serving::{Readiness, Server};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The process answers; nothing else is meant.
pub async fn live() -> Response {
    json_response(&json!({"status": "alive"}))
}

/// Whether requests should come here, and with `?verbose` why.
pub async fn ready(State(server): State<Arc<Server>>, RawQuery(query): RawQuery) -> Response {
    let cluster = server.cluster_status();
    let readiness = server.readiness_with(cluster.as_ref());
    let mut body = json!({"status": readiness.word()});
    if query.is_some_and(|query| query.split('&').any(|word| word == "verbose" || word == "verbose=true")) {
        let load = server.served.engine.load();
        body["model"] = json!(server.served.name());
        body["engine"] = json!({
            "alive": load.alive,
            "draining": load.draining,
            "steps": load.steps,
            "failed_steps": load.failed_steps,
            "last_step_age_seconds": load.last_step_age.as_secs_f64(),
            "queued_requests": load.queued_requests,
            "waiting_sequences": load.waiting,
            "running_sequences": load.running,
            "paused_sequences": load.paused,
            "kv_pages": load.pages_total,
            "kv_pages_used": load.pages_used,
            "kv_pages_cached": load.pages_cached,
        });
        if let Some(cluster) = cluster {
            body["workers"] = json!({
                "there": cluster.workers.len(),
                "epoch": cluster.epoch,
                "whole": cluster.serving,
                "copies": cluster.copies,
            });
        }
    }
    with_status(readiness, json_response(&body))
}

/// The same without words, as load balancers ask for it.
pub async fn health(State(server): State<Arc<Server>>) -> Response {
    let readiness = server.readiness();
    with_status(readiness, json_response(&json!({"status": readiness.word()})))
}

fn with_status(readiness: Readiness, mut response: Response) -> Response {
    if readiness != Readiness::Ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// Prometheus' page; `?aliases=off` leaves vLLM's names out.
pub async fn metrics(State(server): State<Arc<Server>>, RawQuery(query): RawQuery) -> Response {
    let without = query.is_some_and(|query| query.split('&').any(|word| word == "aliases=off"));
    let cluster = server.cluster_status();
    let about = About {
        model: server.served.name(),
        version: VERSION,
        page_positions: PAGE_POSITIONS,
        ready: server.readiness_with(cluster.as_ref()) == Readiness::Ready,
        aliases: server.options.metric_aliases && !without,
        steps: server.rig.steps.totals(),
        stalls: server.rig.steps.status(),
        cluster: cluster.as_ref(),
    };
    let page = server.entrance.metrics.page(&server.served.engine.load(), &about);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], page).into_response()
}

pub async fn version() -> Response {
    json_response(&json!({"version": VERSION}))
}
