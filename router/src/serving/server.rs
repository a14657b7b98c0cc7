//! Everything that a request needs, shared by all of them; and the state of the server as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::log::RequestLog;
use super::model::Served;
use super::room::BodyRoom;
use super::steps::StepMeter;
use crate::auth::Gate;
use crate::cluster::{Cluster, ClusterStatus};
use crate::http::Hosts;
use crate::metrics::Metrics;
use crate::openai::RequestLimits;

/// What an operator decides.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub requests: RequestLimits,
    /// Bytes of all bodies that are being read; never less than two of the largest take.
    pub bodies_bytes_max: usize,
    /// A body has to arrive in this time.
    pub body_time_max: Duration,
    /// Within this time `body_bytes_min` of it have to, or all that there are.
    pub body_stall_max: Duration,
    pub body_bytes_min: usize,
    /// An answer has to be whole in this time.
    pub request_time_max: Duration,
    /// A stream that has nothing to say sends a comment this often, so that no proxy takes it for dead.
    pub keep_alive: Duration,
    /// An engine with work that has not moved for so long, and for 20 of its last steps, is stuck.
    pub stuck_after: Duration,
    /// Web pages of these origins may call; `*` is all. Empty: all if keys are needed, else those of this machine.
    pub origins: Vec<String>,
    /// Names by which a client without a key has to call; `None` is any.
    pub hosts: Option<Hosts>,
    /// vLLM's names in `/metrics`.
    pub metric_aliases: bool,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            requests: RequestLimits::default(),
            bodies_bytes_max: 256 << 20,
            body_time_max: Duration::from_secs(60),
            body_stall_max: Duration::from_secs(10),
            body_bytes_min: 64 << 10,
            request_time_max: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(15),
            stuck_after: Duration::from_secs(60),
            origins: Vec::new(),
            hosts: None,
            metric_aliases: true,
        }
    }
}

/// What is there before the model is: who may come in, and what is counted.
#[derive(Clone)]
pub struct Entrance {
    pub gate: Arc<Gate>,
    pub metrics: Arc<Metrics>,
    /// As `ServerOptions::origins`.
    pub origins: Arc<[String]>,
    /// As `ServerOptions::hosts`.
    pub hosts: Option<Arc<Hosts>>,
}

/// What computes behind the front.
pub struct Rig {
    pub steps: StepMeter,
    /// `None` where this process computes everything itself.
    pub cluster: Option<Arc<Cluster>>,
}

pub struct Server {
    pub served: Served,
    pub rig: Rig,
    pub entrance: Entrance,
    pub log: RequestLog,
    pub options: ServerOptions,
    pub bodies: Arc<BodyRoom>,
    /// Whether the server says that it is ready; off before it stops taking requests.
    announced: AtomicBool,
}

/// Whether requests should come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// It is about to stop.
    Draining,
    /// For workers: too few of them are left to hold all experts, and requests wait.
    Waiting,
    /// There is work, and it does not move.
    Stuck,
    /// The engine's thread has ended, or control's.
    Dead,
}

impl Entrance {
    pub fn new(gate: Gate, options: &ServerOptions) -> Entrance {
        Entrance {
            gate: Arc::new(gate),
            metrics: Arc::new(Metrics::default()),
            origins: options.origins.as_slice().into(),
            hosts: options.hosts.clone().map(Arc::new),
        }
    }
}

impl Server {
    pub fn new(
        served: Served,
        rig: Rig,
        entrance: Entrance,
        log: RequestLog,
        options: ServerOptions,
    ) -> Server {
        let bodies = Arc::new(BodyRoom::new(options.bodies_bytes_max, options.requests.body_bytes_max));
        Server { served, rig, entrance, log, options, bodies, announced: AtomicBool::new(true) }
    }

    /// Says "not ready" from now on, while requests are still taken.
    pub fn retire(&self) {
        self.announced.store(false, Relaxed);
    }

    pub fn is_retired(&self) -> bool {
        !self.announced.load(Relaxed)
    }

    /// Who computes for this server, if it has workers.
    pub fn cluster_status(&self) -> Option<ClusterStatus> {
        self.rig.cluster.as_ref()?.status()
    }

    pub fn readiness(&self) -> Readiness {
        self.readiness_with(self.cluster_status().as_ref())
    }

    /// The same for whoever has asked after the workers already.
    pub fn readiness_with(&self, cluster: Option<&ClusterStatus>) -> Readiness {
        let load = self.served.engine.load();
        if load.draining || self.is_retired() {
            return Readiness::Draining;
        }
        if !load.alive {
            return Readiness::Dead;
        }
        match (&self.rig.cluster, cluster) {
            // Nobody knows any more who is there.
            (Some(_), None) => return Readiness::Dead,
            (_, Some(cluster)) if !cluster.serving => return Readiness::Waiting,
            _ => {}
        }
        let patience = self.options.stuck_after.max(load.last_step * 20);
        if load.is_busy() && load.last_step_age > patience { Readiness::Stuck } else { Readiness::Ready }
    }
}

impl Readiness {
    pub fn word(self) -> &'static str {
        match self {
            Readiness::Ready => "ready",
            Readiness::Draining => "draining",
            Readiness::Waiting => "waiting for workers",
            Readiness::Stuck => "stuck",
            Readiness::Dead => "dead",
        }
    }
}
