//! `/cluster`: who computes for this server, and where its steps spend their time; `/cluster/rebalance`: another spread of its
//! experts, while it serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::response::Response;
use gaterail_cluster::membership::{Refused, Wish};
use gaterail_cluster::placement::Mode;
use gaterail_model::walk::LayerHits;
use serde::{Deserialize, Serialize};

use super::answer::json_response;
use super::body;
use super::layers::caller;
use crate::cluster::{ClusterStatus, RebalanceError, Rebalancing};
use crate::openai::{ApiError, ErrorKind, Fields, RequestLimits};
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
    /// Which experts rows went to since the start; with `?experts` only, where somebody counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<LayerHits>>,
}

/// Which experts rows went to tells of their texts, step by step: it is for operators.
pub async fn show(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ApiError> {
    let experts = request.uri().query().is_some_and(|query| query.split('&').any(|word| word == "experts"));
    if experts && !caller(&request).0.is_operator() {
        return Err(ApiError::new(ErrorKind::Forbidden, NO_LOOK));
    }
    let load = server.served.engine.load();
    let cluster = server.cluster_status();
    let page = ClusterPage {
        model: server.served.name().to_string(),
        status: server.readiness_with(cluster.as_ref()).word().to_string(),
        cluster,
        step: server.rig.steps.status(),
        totals: server.rig.steps.totals(),
        last_step_ms: load.last_step.as_secs_f64() * 1e3,
        running_sequences: load.running,
        waiting_sequences: load.waiting,
        experts: if experts { server.rig.steps.hits() } else { None },
    };
    // Plain values, which all have a place in JSON.
    Ok(json_response(&serde_json::to_value(page).unwrap_or_default()))
}

/// More is a slip of the finger.
const COPIES_MAX: u64 = 64;
const BYTES_MAX: u64 = 1 << 60;
/// Who asks too early asks again after this.
const AGAIN: Duration = Duration::from_secs(1);

const NO_LOOK: &str = "this key may not see where rows went; one made with gaterail keys add --operator may";
const NO_OPERATOR: &str =
    "this key may not spread the experts in another way; one made with gaterail keys add --operator may";

/// What `/cluster/rebalance` answers: what follows is on `/cluster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalancePage {
    /// The plan that is being prepared; `None` where nothing has to be done, or not yet.
    pub epoch: Option<u64>,
    /// The plan in force.
    pub from: Option<u64>,
    /// The last plan before the wish, whatever became of it: those for the wish are above.
    pub planned: u64,
}

/// Spreads the experts in another way while requests are served; refused before anything is loaded if they would not fit.
///
/// It changes no answer, but takes memory and time from all of them: it is for operators.
pub async fn rebalance(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ApiError> {
    let caller = caller(&request).0;
    let allowed = caller.count_request(Instant::now()).and_then(|()| match caller.is_operator() {
        true => Ok(()),
        false => Err(ApiError::new(ErrorKind::Forbidden, NO_OPERATOR)),
    });
    let request = body::unless(request, allowed)?;
    let wish = body::parsed(&server, request, wish).await?;
    let Some(cluster) = &server.rig.cluster else {
        let message = "this server has no workers that experts could be spread over";
        return Err(ApiError::new(ErrorKind::Invalid, message));
    };
    match cluster.rebalance(wish).await {
        Ok(Rebalancing { epoch, from, planned }) => {
            let page =
                RebalancePage { epoch: epoch.map(|at| at.0), from: from.map(|at| at.0), planned: planned.0 };
            Ok(json_response(&page))
        }
        Err(why) => Err(refused(&why)),
    }
}

fn refused(why: &RebalanceError) -> ApiError {
    use RebalanceError::{Another, Busy, Refused as No};
    match why {
        No(Refused::Nobody | Refused::Changed) | Another | Busy => {
            ApiError::new(ErrorKind::Overloaded, why.to_string()).retry_after(AGAIN)
        }
        No(Refused::Misfit(_) | Refused::Beside(_) | Refused::Workers { .. }) => {
            ApiError::new(ErrorKind::Invalid, why.to_string())
        }
    }
}

fn wish(body: &[u8], limits: &RequestLimits) -> Result<Wish, ApiError> {
    let mut fields = Fields::parse(body, limits.values_max)?;
    let mode = fields.string("parallel", limits.name_bytes_max)?;
    let mode = mode.map(|text| text.parse::<Mode>().map_err(|_| text)).transpose();
    let mode = mode.map_err(|text| {
        ApiError::invalid("parallel", format!("parallel is {text:?}; it has to be ep, tp or ep:N,tp:M"))
    })?;
    let copies = fields.count("expert_copies", 1..=COPIES_MAX)?;
    let replica_bytes = fields.count("replica_memory", 0..=BYTES_MAX)?;
    Ok(Wish { mode, copies: copies.map(|copies| copies as u32), replica_bytes })
}
