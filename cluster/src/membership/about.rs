//! What is known of a worker, and what is wanted of all of them.

use std::sync::Arc;
use std::time::Duration;

use gaterail_proto::{ShardSpec, WorkerId};
use serde::Serialize;

use crate::placement::{Mode, Seat};

/// What a worker runs on, measured when it started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// "CPU (2 threads, AVX-512)", "NVIDIA H200 (sm_90)"
    pub device: String,
    /// Which of its host's cards it is: the N of `cuda:N`.
    pub card: Option<u32>,
    pub threads: u32,
    /// What experts may take.
    pub memory_bytes: u64,
    pub read_bytes_per_second: f64,
    pub int8_operations_per_second: f64,
    pub pid: u32,
}

/// A worker that joins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerAbout {
    pub id: WorkerId,
    /// For people: "worker-0".
    pub name: String,
    pub machine: Machine,
    /// Those of one host may share memory, and have the same rates if their devices are the same; empty: with nobody.
    pub host: String,
    /// What of the model lies packed on its host.
    #[serde(skip)]
    pub packed: Arc<ShardSpec>,
}

impl From<&WorkerAbout> for Seat {
    fn from(about: &WorkerAbout) -> Seat {
        Seat {
            worker: about.id,
            memory_bytes: about.machine.memory_bytes,
            read_bytes_per_second: about.machine.read_bytes_per_second,
        }
    }
}

impl Machine {
    /// Its device with its number, which tells a host's cards apart.
    pub fn named_device(&self) -> String {
        match self.card {
            Some(ordinal) => format!("cuda:{ordinal} {}", self.device),
            None => self.device.clone(),
        }
    }
}

impl WorkerAbout {
    /// Whether both run on as many threads of the same device of one host.
    fn is_alike(&self, other: &WorkerAbout) -> bool {
        let same =
            self.machine.device == other.machine.device && self.machine.threads == other.machine.threads;
        same && self.host == other.host && !self.host.is_empty()
    }
}

/// Workers as placement sees them. Those that are alike get one rate, the mean of theirs: they were measured while the others
/// started, and what differs is who disturbed whom.
pub(super) fn seats(workers: &[&WorkerAbout]) -> Vec<Seat> {
    let rate = |about: &WorkerAbout| {
        let alike = workers.iter().filter(|other| other.id == about.id || other.is_alike(about));
        let rates: Vec<f64> = alike.map(|other| other.machine.read_bytes_per_second).collect();
        rates.iter().sum::<f64>() / rates.len() as f64
    };
    workers.iter().map(|about| Seat { read_bytes_per_second: rate(about), ..Seat::from(*about) }).collect()
}

/// What is wanted, and how long anything may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub mode: Mode,
    /// Copies of every expert; with fewer workers than that, as many as there is room for.
    pub copies: u32,
    /// For further copies of hot experts, over all workers together.
    pub replica_bytes: u64,
    /// A plan that only follows what is hot has to shorten the slowest worker's time by more than this part of it.
    pub rebalance_gain_min: f64,
    /// And is looked for this often.
    pub rebalance_every: Duration,
    /// Workers to wait for before the first plan.
    pub expected: usize,
    /// So long after the first worker joined, those who are there begin if they suffice.
    pub join_wait: Duration,
    /// A worker that is not heard for so long is dead.
    pub silence_max: Duration,
    /// A worker that the engine waits for, and that computes nothing for so long and four times as long as the slowest call of
    /// all workers took, is stuck.
    pub stuck_max: Duration,
    /// A worker that prepares, and loads nothing more for so long, has failed.
    pub prepare_max: Duration,
    /// After a failure that left a whole plan: so long until the next attempt; twice as long after each.
    pub retry_wait: Duration,
    /// What an epoch replaced is kept for so long if nobody says that the engine has switched.
    pub retire_max: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            mode: Mode::Ep,
            copies: 1,
            replica_bytes: 0,
            rebalance_gain_min: 0.05,
            rebalance_every: Duration::from_secs(30),
            expected: 1,
            join_wait: Duration::from_secs(30),
            silence_max: Duration::from_millis(800),
            stuck_max: Duration::from_secs(10),
            prepare_max: Duration::from_secs(60),
            retry_wait: Duration::from_secs(2),
            retire_max: Duration::from_secs(2),
        }
    }
}
