//! `/cluster`: who computes for this server, and where its steps spend their time.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::answer::json_response;
use crate::cluster::ClusterStatus;
use crate::serving::{Server, StepStatus, StepTotals};

/// What `/cluster` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPage {
    pub model: String,
    /// `ready`, or why not.
    pub status: String,
    /// `None` where the server's process computes everything itself.
    pub cluster: Option<ClusterStatus>,
    pub step: StepStatus,
    /// Since the start.
    pub totals: StepTotals,
    /// Milliseconds of the last step.
    pub last_step_ms: f64,
    pub running_sequences: usize,
    pub waiting_sequences: usize,
}

pub async fn show(State(server): State<Arc<Server>>) -> Response {
    let load = server.served.engine.load();
    let cluster = server.cluster_status().await;
    let page = ClusterPage {
        model: server.served.name().to_string(),
        status: server.readiness_with(cluster.as_ref()).word().to_string(),
        cluster,
        step: server.rig.steps.status(),
        totals: server.rig.steps.totals(),
        last_step_ms: load.last_step.as_secs_f64() * 1e3,
        running_sequences: load.running,
        waiting_sequences: load.waiting,
    };
    // Plain values, which all have a place in JSON.
    json_response(&serde_json::to_value(page).unwrap_or_default())
}
