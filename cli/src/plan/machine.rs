//! What this machine reaches, and what that makes of workers here and elsewhere.

use gaterail_cluster::placement::Seat;
use gaterail_cluster::predict::{Compute, Hop, Rates, WorkerRate};
use gaterail_kernels::{Device, measure as raw};
use gaterail_proto::WorkerId;
use serde::Serialize;
use std::time::Duration;

use super::args::{Crew, WorkerSpec};
use super::measure::{self, hop};
use super::subject::Subject;
use crate::cores::Cores;
use crate::error::CliError;
use crate::machine;
use crate::serve::workers::share::{WORKER_RESERVE, shares};

/// Times in a layer that a step's threads wait for each other: norms, projections, rotation, KV, attention, output, gate,
/// and twice in the experts. Counted in the walk over a layer.
const WAITS_OF_TRUNK: f64 = 8.0;
const WAITS_OF_EXPERTS: f64 = 3.0;
/// A frame's way to another host, where nobody says: over gRPC on a fast network, by the design's budget, and what a link of
/// ten gigabits carries.
const FAR: Hop = Hop { seconds: 150e-6, bytes_per_second: 1.25e9 };
/// What the process needs beside weights, KV and experts: as `gaterail serve` plans it.
const ROUTER_RESERVE: u64 = 512 << 20;

/// Measured here.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub device: String,
    pub threads: usize,
    /// Of one worker's process.
    pub worker_threads: usize,
    pub available_bytes: Option<u64>,
    /// What the memory and the arithmetic units give at best.
    pub read_bytes_per_second: f64,
    pub int8_operations_per_second: f64,
    pub trunk: Compute,
    pub attention: Compute,
    /// Experts on all threads, and on those of one worker.
    pub experts: Compute,
    pub worker: Compute,
    pub hop: Hop,
}

impl Measured {
    /// Measures; `workers` processes are to share this machine.
    pub fn now(
        subject: &Subject,
        threads: Option<usize>,
        workers: usize,
        mut show: impl FnMut(&str),
    ) -> Result<Measured, CliError> {
        show("memory and arithmetic");
        let device = machine::cpu(threads)?;
        let read = raw::read_bandwidth(&device, 256 << 20, Duration::from_millis(300))?;
        let int8 = raw::int8_peak(&device, Duration::from_millis(50));
        let wait = raw::fork_seconds(&device);
        show("the trunk");
        let mut trunk = measure::products(&device, subject.trunk, subject.hidden)?;
        trunk.call_seconds = WAITS_OF_TRUNK * wait;
        let attention = measure::attention(&device, subject.attention, subject.kv)?;
        show("the experts");
        let shape = (subject.hidden, subject.width);
        let mut experts = measure::experts(&device, subject.experts, shape)?;
        experts.call_seconds = WAITS_OF_EXPERTS * wait;
        let text = device.to_string();
        let all = device.threads();
        drop(device);
        let each = shares(workers, threads, &Cores::allowed(), 0).first().map_or(1, |share| share.threads);
        let worker = if each == all { experts } else { Measured::worker(subject, each)? };
        show("hops between processes");
        Ok(Measured {
            device: text,
            threads: all,
            worker_threads: each,
            available_bytes: machine::available_memory_bytes(),
            read_bytes_per_second: read,
            int8_operations_per_second: int8,
            trunk,
            attention,
            experts,
            worker,
            hop: hop::hop()?,
        })
    }

    /// One worker's process while the others rest.
    fn worker(subject: &Subject, threads: usize) -> Result<Compute, CliError> {
        let device = Device::cpu(gaterail_kernels::CpuOptions { threads, pin: false, ..Default::default() })?;
        let mut compute = measure::experts(&device, subject.experts, (subject.hidden, subject.width))?;
        compute.call_seconds = WAITS_OF_EXPERTS * raw::fork_seconds(&device);
        Ok(compute)
    }

    /// Rates with all of a crew.
    pub fn rates(&self, crew: &Crew) -> Rates {
        let (workers, hosts) = match crew {
            Crew::Here(count) => {
                let one =
                    |at| WorkerRate { worker: WorkerId(at), compute: self.worker, host: 0, hop: self.hop };
                ((0..*count as u64).map(one).collect(), vec![self.experts.read_bytes_per_second])
            }
            Crew::Elsewhere(all) => self.elsewhere(all),
        };
        Rates { router: self.trunk, attention: self.attention, own: self.experts, workers, hosts }
    }

    /// Workers that are not here reach that part of their memory and arithmetic that this machine reaches of its own.
    fn elsewhere(&self, all: &[WorkerSpec]) -> (Vec<WorkerRate>, Vec<f64>) {
        let mut names: Vec<String> = Vec::new();
        let mut hosts: Vec<f64> = Vec::new();
        let mut workers = Vec::new();
        for (at, spec) in all.iter().enumerate() {
            let name = spec.host.clone().unwrap_or_else(|| format!("\u{0}{at}"));
            let host = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                hosts.push(0.0);
                hosts.len() - 1
            });
            let reading = spec.read.map_or(1.0, |read| read / self.read_bytes_per_second);
            let computing = spec.int8.map_or(1.0, |int8| int8 / self.int8_operations_per_second);
            let compute = scaled(&self.experts, reading, computing);
            hosts[host] = f64::max(hosts[host], compute.read_bytes_per_second);
            let hop = Hop {
                seconds: spec.hop.map_or(FAR.seconds, |hop| hop.as_secs_f64()),
                bytes_per_second: spec.link.unwrap_or(FAR.bytes_per_second),
            };
            workers.push(WorkerRate { worker: WorkerId(at as u64), compute, host, hop });
        }
        (workers, hosts)
    }

    /// What experts may take on each, beside what the router's process takes here.
    pub fn seats(&self, crew: &Crew, subject: &Subject, positions: u64) -> Vec<Seat> {
        let rates = self.rates(crew);
        let beside = self.router_bytes(subject, positions);
        let here = self.available_bytes.unwrap_or(u64::MAX >> 1);
        let seat = |(at, rate): (usize, &WorkerRate)| Seat {
            worker: rate.worker,
            memory_bytes: match crew {
                Crew::Here(count) => {
                    (here.saturating_sub(beside) / *count as u64).saturating_sub(WORKER_RESERVE)
                }
                Crew::Elsewhere(all) => all[at].memory.unwrap_or(here),
            },
            read_bytes_per_second: rate.compute.read_bytes_per_second,
        };
        rates.workers.iter().enumerate().map(seat).collect()
    }

    /// Trunk, KV and work.
    pub fn router_bytes(&self, subject: &Subject, positions: u64) -> u64 {
        subject.trunk_bytes + positions * subject.kv_bytes_per_position + ROUTER_RESERVE
    }
}

/// The same kernels where memory and arithmetic are so many times as fast.
fn scaled(here: &Compute, reading: f64, computing: f64) -> Compute {
    // What few rows reach is bound by either; the curve says more only where it is arithmetic that binds.
    let few = here.few_rows.map(|few| {
        let bound = |rate: f64| rate / here.operations_per_second < 0.5;
        few.map(|rate| if bound(rate) { here.operations_per_second * computing } else { rate * computing })
    });
    Compute {
        read_bytes_per_second: here.read_bytes_per_second * reading,
        operations_per_second: here.operations_per_second * computing,
        few_rows: few,
        call_seconds: here.call_seconds,
    }
}
