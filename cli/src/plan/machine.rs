//! What this machine reaches, and what that makes of workers here and elsewhere.

use gaterail_cluster::placement::Seat;
use gaterail_cluster::predict::{Compute, Cut, Hop, Rates, Step, Walked, WorkerRate};
use gaterail_kernels::ops::UNIT_MIN;
use gaterail_kernels::{Device, measure as raw};
use gaterail_proto::WorkerId;
use serde::Serialize;
use std::time::Duration;

use super::args::{Crew, WorkerSpec};
use super::measure::{self, Member, hop};
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
const FAR: Hop = Hop { seconds: 150e-6, bytes_per_second: 1.25e9, home_bytes_per_second: 1.25e9 };
/// What the process needs beside weights, KV and experts: as `gaterail serve` plans it.
const ROUTER_RESERVE: u64 = 512 << 20;
/// More than caches hold.
const READ_BYTES: usize = 256 << 20;

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
    /// Parts of experts on one worker, alone and beside the others.
    pub cuts: Vec<Cut>,
    /// Steps of the trunk.
    pub walked: Vec<Walked>,
    pub hop: Hop,
}

impl Measured {
    /// Measures; `workers` processes are to share this machine, with whole experts or such parts of them.
    pub fn now(
        subject: &Subject,
        threads: Option<usize>,
        (workers, parts): (usize, &[usize]),
        steps: &[Step],
        mut show: impl FnMut(&str),
    ) -> Result<Measured, CliError> {
        show("memory and arithmetic");
        // Before the device binds this thread to one of them.
        let cores = Cores::allowed();
        let device = machine::cpu(threads)?;
        let read = read(&device)?;
        let int8 = raw::int8_peak(&device, Duration::from_millis(50));
        let wait = raw::fork_seconds(&device);
        show("the trunk");
        let mut trunk = measure::products(&device, subject.trunk, subject.hidden)?;
        trunk.call_seconds = WAITS_OF_TRUNK * wait;
        let attention = measure::attention(&device, subject.attention, subject.kv)?;
        let walked = measure::walked(&device, &subject.spec, &subject.blank, subject.kv, steps)
            .map_err(|error| CliError::Refused(error.to_string()))?;
        show("the experts");
        let shape = (subject.hidden, subject.width);
        let mut experts = measure::experts(&device, subject.experts, shape)?;
        experts.call_seconds = WAITS_OF_EXPERTS * wait;
        let text = device.to_string();
        let all = device.threads();
        drop(device);
        let each = shares(workers, threads, &cores, 0).first().map_or(1, |share| share.threads);
        let mut cuts = Vec::new();
        for &parts in parts {
            let alone = Measured::workers(subject, (&cores, each), 1, parts)?;
            let beside =
                if workers > 1 { Measured::workers(subject, (&cores, each), workers, parts)? } else { alone };
            cuts.push(Cut { part: 1.0 / parts as f64, alone, beside });
        }
        let worker = cuts.first().map_or(experts, |cut| cut.alone);
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
            cuts,
            walked,
            hop: hop::hop(workers, all, subject.hidden, cores)?,
        })
    }

    /// What one of so many workers' processes reaches with a part of every expert while all compute.
    fn workers(
        subject: &Subject,
        (cores, threads): (&Cores, usize),
        count: usize,
        parts: usize,
    ) -> Result<Compute, CliError> {
        let width = (subject.width / parts).max(1).next_multiple_of(UNIT_MIN).min(subject.width);
        let shape = (subject.hidden, width);
        let weights = measure::weights(count, subject.experts, shape);
        // A member that fails is gone, and the others do not wait for it.
        let one = |index: usize, ready: Member| {
            // A thread of its own is bound to its cores, and gone with them.
            if let Some(cores) = cores.share(index, threads) {
                cores.bind()?;
            }
            let options = gaterail_kernels::CpuOptions { threads, pin: false, ..Default::default() };
            let device = Device::cpu(options);
            let found = device.and_then(|device| {
                let mut compute = measure::together(&device, subject.experts, shape, &weights, ready)?;
                compute.call_seconds = WAITS_OF_EXPERTS * raw::fork_seconds(&device);
                Ok(compute)
            });
            found.map_err(CliError::from)
        };
        let all: Vec<Result<Compute, CliError>> = std::thread::scope(|scope| {
            let one = &one;
            let members = measure::members(count).into_iter().enumerate();
            let threads: Vec<_> =
                members.map(|(index, member)| scope.spawn(move || one(index, member))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let all = all.into_iter().collect::<Result<Vec<Compute>, CliError>>()?;
        Ok(mean(&all))
    }

    /// Rates with all of a crew.
    pub fn rates(&self, crew: &Crew) -> Rates {
        let (workers, hosts) = match crew {
            Crew::Here(count) => {
                let one = |at| WorkerRate {
                    worker: WorkerId(at),
                    compute: self.worker,
                    cuts: self.cuts.clone(),
                    host: 0,
                    hop: self.hop,
                };
                ((0..*count as u64).map(one).collect(), vec![self.experts.read_bytes_per_second])
            }
            Crew::Elsewhere(all) => self.elsewhere(all),
        };
        Rates {
            router: self.trunk,
            attention: self.attention,
            walked: self.walked.clone(),
            own: self.experts,
            workers,
            hosts,
        }
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
                home_bytes_per_second: spec.link.unwrap_or(FAR.home_bytes_per_second),
            };
            let (worker, cuts) = (WorkerId(at as u64), Vec::new());
            workers.push(WorkerRate { worker, compute, cuts, host, hop });
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

/// What this machine's memory gives now: it need not be what it gave a minute ago.
pub fn read_now(threads: Option<usize>) -> Result<f64, CliError> {
    let now = || read(&machine::cpu(threads)?);
    // On a thread of its own, which the device binds to a core.
    std::thread::scope(|scope| {
        scope.spawn(now).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn read(device: &Device) -> Result<f64, CliError> {
    Ok(raw::read_bandwidth(device, READ_BYTES, Duration::from_millis(300))?)
}

/// Of several that did the same at the same time.
fn mean(all: &[Compute]) -> Compute {
    let of = |value: &dyn Fn(&Compute) -> f64| all.iter().map(value).sum::<f64>() / all.len().max(1) as f64;
    let few = |at: usize| of(&|one| one.few_rows.map_or(one.operations_per_second, |few| few[at]));
    Compute {
        read_bytes_per_second: of(&|one| one.read_bytes_per_second),
        operations_per_second: of(&|one| one.operations_per_second),
        few_rows: all.first().and_then(|one| one.few_rows).map(|_| std::array::from_fn(few)),
        call_seconds: of(&|one| one.call_seconds),
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
