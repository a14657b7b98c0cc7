//! What `gaterail status` shows: who is there, what each holds and does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::ExchangeKind;
use gaterail_cluster::membership::{RosterView, WorkerState, WorkerView};
use gaterail_proto::grpc::v1::Model;
use gaterail_proto::{RouterId, WorkerId};
use serde::{Deserialize, Serialize};

use super::change::ChangeStatus;
use super::hits::HeatStatus;
use super::stats::{ExchangeStats, LinkStats};

/// Rates are taken over this.
const WINDOW: Duration = Duration::from_secs(1);

/// All workers of a router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// In hexadecimal; another one after every start.
    pub router: String,
    pub model: String,
    pub digest: String,
    pub precision: String,
    /// As `--parallel` writes it.
    pub mode: String,
    pub copies_wanted: u32,
    /// Of every expert, at least.
    pub copies: u32,
    /// Further copies of hot experts, and their bytes.
    #[serde(default)]
    pub replicas: u64,
    #[serde(default)]
    pub replica_bytes: u64,
    /// The slowest worker's time over an even one's, as what was hit lately says; `None` before that is known.
    #[serde(default)]
    pub imbalance: Option<f64>,
    /// Which experts rows go to; `None` before that is known.
    #[serde(default)]
    pub heat: Option<HeatStatus>,
    /// The last change of plans.
    #[serde(default)]
    pub change: Option<ChangeStatus>,
    pub epoch: Option<u64>,
    /// Whether the plan is whole; if not, requests wait.
    pub serving: bool,
    pub pending: Option<PendingStatus>,
    pub exchange: ExchangeStatus,
    /// In the order in which they joined.
    pub workers: Vec<WorkerStatus>,
}

/// A plan that is being prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingStatus {
    pub epoch: u64,
    /// Ids of those who have not answered.
    pub waits_for: Vec<String>,
}

/// Where a layer's time went lately; all zero where no layer was computed. Milliseconds of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExchangeStatus {
    pub layers_per_second: f64,
    pub dispatch_ms: f64,
    pub wait_ms: f64,
    pub combine_ms: f64,
    /// That the slowest worker of a layer computed; and all of them on average.
    pub slowest_ms: f64,
    pub mean_ms: f64,
    /// Layers that were computed again because a worker failed, since the start.
    pub again: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// In hexadecimal; another one after every start.
    pub id: String,
    pub name: String,
    pub host: String,
    pub pid: u32,
    pub device: String,
    pub threads: u32,
    /// What experts may take.
    pub memory_bytes: u64,
    pub read_bytes_per_second: f64,
    pub int8_operations_per_second: f64,
    /// "joined", "preparing", "serving", "left out", "leaving"
    pub state: String,
    /// "shared memory", "gRPC"
    pub exchange: String,
    /// Of the active plan: experts of which it holds something, and their bytes.
    pub experts: u64,
    pub bytes: u64,
    /// Of the work, from 0 to 1: as planned, and as it was lately.
    pub share: f64,
    pub share_lately: f64,
    pub held_bytes: u64,
    /// Experts of which something lies packed on its host: it would have them soon.
    #[serde(default)]
    pub packed_experts: u64,
    pub loading: Option<LoadingStatus>,
    /// How often it could not load what it should since it last could, and for how much longer it is left out of plans.
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub left_out_seconds: f64,
    pub heard_ms_ago: u64,
    /// Since it joined.
    pub calls: u64,
    pub calls_per_second: f64,
    pub rows_per_second: f64,
    /// The share of the time in which it computed, lately.
    pub busy: f64,
    pub bytes_out_per_second: f64,
    pub bytes_in_per_second: f64,
    /// Since it joined: calls for which rows were picked out of a batch, those whose rows were int8, and how many bytes more all rows
    /// of those batches would have been in f32.
    #[serde(default)]
    pub calls_gathered: u64,
    #[serde(default)]
    pub calls_int8: u64,
    #[serde(default)]
    pub bytes_spared: u64,
}

/// How far a worker is with what an epoch wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadingStatus {
    pub epoch: u64,
    pub bytes: u64,
    pub bytes_total: u64,
}

impl ClusterStatus {
    /// `exchange` says how a worker's rows travel, and how long ago it was heard.
    pub(super) fn new(
        router: RouterId,
        model: &Model,
        view: RosterView,
        exchange: impl Fn(&WorkerId) -> Option<(ExchangeKind, Duration)>,
        rates: &Rates,
    ) -> ClusterStatus {
        ClusterStatus {
            router: router.to_string(),
            model: model.path.clone(),
            digest: model.digest.clone(),
            precision: model.precision.clone(),
            mode: view.mode,
            copies_wanted: view.copies_wanted,
            copies: view.copies,
            replicas: view.replicas,
            replica_bytes: view.replica_bytes,
            imbalance: view.imbalance,
            heat: None,
            change: None,
            epoch: view.epoch.map(|epoch| epoch.0),
            serving: view.serving,
            pending: view.pending.map(|pending| PendingStatus {
                epoch: pending.epoch.0,
                waits_for: pending.waits_for.iter().map(WorkerId::to_string).collect(),
            }),
            exchange: rates.exchange,
            workers: view
                .workers
                .into_iter()
                .map(|worker| {
                    let exchange = exchange(&worker.about.id);
                    WorkerStatus::new(worker, exchange, rates)
                })
                .collect(),
        }
    }
}

impl WorkerStatus {
    fn new(view: WorkerView, exchange: Option<(ExchangeKind, Duration)>, rates: &Rates) -> WorkerStatus {
        let WorkerView {
            about,
            state,
            experts,
            bytes,
            share,
            packed,
            held_bytes,
            calls,
            loading,
            failures,
            left_out,
        } = view;
        let rate = rates.workers.get(&about.id).copied().unwrap_or_default();
        let computed: f64 = rates.workers.values().map(|rate| rate.busy).sum();
        WorkerStatus {
            id: about.id.to_string(),
            name: about.name,
            host: about.host,
            pid: about.machine.pid,
            device: about.machine.named_device(),
            threads: about.machine.threads,
            memory_bytes: about.machine.memory_bytes,
            read_bytes_per_second: about.machine.read_bytes_per_second,
            int8_operations_per_second: about.machine.int8_operations_per_second,
            state: state_word(state).to_string(),
            exchange: exchange.map_or_else(String::new, |(kind, _)| kind.to_string()),
            experts,
            bytes,
            share,
            share_lately: if computed > 0.0 { rate.busy / computed } else { 0.0 },
            held_bytes,
            packed_experts: packed,
            loading: loading.map(|at| LoadingStatus {
                epoch: at.epoch.0,
                bytes: at.bytes,
                bytes_total: at.total,
            }),
            failures,
            left_out_seconds: left_out.as_secs_f64(),
            heard_ms_ago: exchange.map_or(0, |(_, ago)| ago.as_millis() as u64),
            calls,
            calls_per_second: rate.calls,
            rows_per_second: rate.rows,
            busy: rate.busy,
            bytes_out_per_second: rate.bytes_out,
            bytes_in_per_second: rate.bytes_in,
            calls_gathered: rate.gathered,
            calls_int8: rate.int8,
            bytes_spared: rate.spared,
        }
    }
}

fn state_word(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Joined => "joined",
        WorkerState::Preparing => "preparing",
        WorkerState::Serving => "serving",
        WorkerState::LeftOut => "left out",
        WorkerState::Leaving => "leaving",
    }
}

/// What the engine's totals became in the last window.
#[derive(Default)]
pub(super) struct Rates {
    exchange: ExchangeStatus,
    workers: HashMap<WorkerId, WorkerRate>,
    before: Option<Sample>,
}

/// Per second, and totals.
#[derive(Clone, Copy, Default)]
struct WorkerRate {
    calls: f64,
    rows: f64,
    busy: f64,
    bytes_out: f64,
    bytes_in: f64,
    gathered: u64,
    int8: u64,
    spared: u64,
}

struct Sample {
    at: Instant,
    /// Layers, then nanoseconds: dispatch, wait, combine, slowest, mean.
    layers: [u64; 6],
    /// Calls, rows, computed, out, in; gathered, int8, spared.
    workers: HashMap<WorkerId, [u64; 8]>,
}

impl Rates {
    /// Looks at the totals, once a window.
    pub fn sample(&mut self, stats: &ExchangeStats, now: Instant) {
        let since = self.before.as_ref().map(|before| now.duration_since(before.at));
        if since.is_some_and(|since| since < WINDOW) {
            return;
        }
        let sample = Sample::of(stats, now);
        if let Some((before, since)) = self.before.take().zip(since) {
            let seconds = since.as_secs_f64();
            let layers = difference(&sample.layers, &before.layers);
            let each = |total: f64| if layers[0] > 0.0 { total / 1e6 / layers[0] } else { 0.0 };
            self.exchange = ExchangeStatus {
                layers_per_second: layers[0] / seconds,
                dispatch_ms: each(layers[1]),
                wait_ms: each(layers[2]),
                combine_ms: each(layers[3]),
                slowest_ms: each(layers[4]),
                mean_ms: each(layers[5]),
                again: stats.again.load(Ordering::Relaxed),
            };
            let rate = |(worker, now): (&WorkerId, &[u64; 8])| {
                let moved = difference(now, before.workers.get(worker).unwrap_or(&[0; 8]));
                let [calls, rows, computed, bytes_out, bytes_in, ..] = moved.map(|moved| moved / seconds);
                let [.., gathered, int8, spared] = *now;
                let busy = computed / 1e9;
                (*worker, WorkerRate { calls, rows, busy, bytes_out, bytes_in, gathered, int8, spared })
            };
            self.workers = sample.workers.iter().map(rate).collect();
        }
        self.before = Some(sample);
    }
}

impl Sample {
    fn of(stats: &ExchangeStats, at: Instant) -> Sample {
        let get = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let ExchangeStats { layers, dispatch_ns, wait_ns, combine_ns, slowest_ns, mean_ns, .. } = stats;
        let totals = [layers, dispatch_ns, wait_ns, combine_ns, slowest_ns, mean_ns];
        let worker = |link: &LinkStats| {
            let LinkStats { calls, rows, computed_ns, bytes_out, bytes_in, gathered, int8, spared } = link;
            [calls, rows, computed_ns, bytes_out, bytes_in, gathered, int8, spared].map(get)
        };
        let workers = stats.links().iter().map(|(id, link)| (*id, worker(link))).collect();
        Sample { at, layers: totals.map(get), workers }
    }
}

/// What was added; a worker that came again began anew.
fn difference<const N: usize>(now: &[u64; N], before: &[u64; N]) -> [f64; N] {
    std::array::from_fn(|i| now[i].checked_sub(before[i]).unwrap_or(now[i]) as f64)
}
