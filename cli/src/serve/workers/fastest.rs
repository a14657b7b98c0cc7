//! `--parallel auto` where workers are asked for: the way to spread the experts that is predicted to be fastest, of those that
//! fit. In: a model's shape, and what this machine's memory and arithmetic give, measured for a moment. Out: a mode, and why.
//!
//! It is fast for a full batch of answers at half the context that a sequence may have, and for prompts, a token of either
//! counting as much. Workers that come from other machines are not known yet: they are taken to be as fast as this one, behind a
//! network of ten gigabits.

use std::time::Duration;

use gaterail_cluster::placement::{Mode, Seat, Wanted};
use gaterail_cluster::predict::{Compute, Hop, Prediction, Rates, Shape, Step, WorkerRate, choose, compare};
use gaterail_kernels::{CpuOptions, Device, measure};
use gaterail_proto::{ExpertInventory, WorkerId};

use super::Team;
use super::share::{Share, shares};
use crate::cores::Cores;
use crate::device::DeviceArg;
use crate::error::CliError;
use crate::plan::forecast::term_name;

/// What is read to measure this process, and for how long; all of it together is a seventh of a second.
const READ_BYTES: usize = 64 << 20;
const READING: Duration = Duration::from_millis(40);
const MULTIPLYING: Duration = Duration::from_millis(10);
/// What the kernels reach of it where many rows meet every weight: router/notes/2026-11-20-prediction.md.
const REACHED: f64 = 0.6;
/// Between processes of one machine (the same note), and over a network, by the design's budget.
const HERE: Hop = Hop { seconds: 20e-6, bytes_per_second: 5e9, home_bytes_per_second: 5e9 };
const FAR: Hop = Hop { seconds: 150e-6, bytes_per_second: 1.25e9, home_bytes_per_second: 1.25e9 };
/// Rows of a prompt's step, and positions of a sequence in its middle, at most.
const PROMPT: u32 = 512;
const CONTEXT: u32 = 2048;

/// What has to be known.
pub struct Circumstances<'a> {
    pub shape: &'a Shape,
    pub inventory: &'a ExpertInventory,
    pub team: &'a Team,
    pub copies: u32,
    pub device: DeviceArg,
    pub threads: Option<usize>,
    /// What the experts of each worker of this machine may take.
    pub memory: u64,
    pub batch: usize,
    pub context: usize,
}

/// The mode, and a line that says why. The team's own where no mode fits: whoever places experts says what would.
pub fn fastest(on: &Circumstances<'_>) -> Result<(Mode, String), CliError> {
    Ok(on.chosen(&on.rates(Reached::now(on)?)))
}

/// What this machine gives.
#[derive(Clone, Copy, Debug)]
struct Reached {
    /// All threads of this process, and those of one worker beside it.
    together: Compute,
    alone: Compute,
}

impl Reached {
    fn now(on: &Circumstances<'_>) -> Result<Reached, CliError> {
        let cores = Cores::allowed();
        let (device, threads) = (on.device, on.threads);
        let together = apart(move || reached(&device.open(threads)?))?;
        let shares = shares(on.team.expected, threads, &cores, 0);
        let Some(Share { cores, threads, .. }) = shares.into_iter().next() else {
            return Ok(Reached { together, alone: together });
        };
        // As a worker is started: on cores of its own, or anywhere.
        let alone = apart(move || {
            if let Some(cores) = cores {
                cores.bind()?;
            }
            reached(&Device::cpu(CpuOptions { threads, pin: false, ..CpuOptions::default() })?)
        })?;
        Ok(Reached { together, alone })
    }
}

/// On a thread of its own: what binds it to cores binds nobody else, and is gone with it.
fn apart(measure: impl FnOnce() -> Result<Compute, CliError> + Send + 'static) -> Result<Compute, CliError> {
    std::thread::spawn(measure).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn reached(device: &Device) -> Result<Compute, CliError> {
    Ok(Compute {
        read_bytes_per_second: measure::read_bandwidth(device, READ_BYTES, READING)?,
        operations_per_second: REACHED * measure::int8_peak(device, MULTIPLYING),
        few_rows: None,
        call_seconds: 0.0,
    })
}

impl Circumstances<'_> {
    fn rates(&self, Reached { together, alone }: Reached) -> Rates {
        let (workers, is_here) = (self.team.expected, self.team.spawn > 0);
        let worker = |at: usize| WorkerRate {
            worker: WorkerId(at as u64),
            compute: if is_here { alone } else { together },
            cuts: Vec::new(),
            host: if is_here { 0 } else { at },
            hop: if is_here { HERE } else { FAR },
        };
        Rates {
            router: together,
            attention: together,
            walked: Vec::new(),
            own: together,
            workers: (0..workers).map(worker).collect(),
            hosts: vec![together.read_bytes_per_second; if is_here { 1 } else { workers }],
        }
    }

    /// The best of what fits at such rates.
    fn chosen(&self, rates: &Rates) -> (Mode, String) {
        let seat = |rate: &WorkerRate| Seat {
            worker: rate.worker,
            memory_bytes: if self.team.spawn > 0 { self.memory } else { u64::MAX >> 20 },
            read_bytes_per_second: rate.compute.read_bytes_per_second,
        };
        let seats: Vec<Seat> = rates.workers.iter().map(seat).collect();
        let wanted = Wanted { copies: self.copies, ..Wanted::new(self.inventory, &seats, self.team.mode) };
        let context = CONTEXT.min(self.context as u32 / 2).max(1);
        let steps = [(Step::decode(self.batch as u32, context), 1.0), (Step::prefill(PROMPT), 1.0)];
        let ranked = choose(&wanted, self.shape, rates, &steps);
        let mode = ranked.first().map_or(self.team.mode, |(mode, _)| *mode);
        (mode, why(&ranked, self.batch))
    }
}

/// `ep is predicted to be 12 % faster than tp at 16 streams (3.20 ms of a step less dispatch)`
fn why(ranked: &[(Mode, Vec<Prediction>)], batch: usize) -> String {
    let names = [format!("at {batch} streams"), "for prompts".to_string()];
    let [(mode, best), others @ ..] = ranked else { return "nothing fits".to_string() };
    let Some((second, worse)) = others.first() else {
        return format!("{mode}, the only way that fits so many workers");
    };
    let said = best.iter().zip(worse).zip(names).map(|((best, worse), name)| {
        let verdict = compare(best, worse);
        let (faster, than) = if verdict.first_wins { (mode, second) } else { (second, mode) };
        let (term, seconds) = verdict.because;
        let percent = (verdict.factor - 1.0) * 100.0;
        let (ms, term) = (seconds * 1e3, term_name(term));
        if percent < 0.5 {
            return format!("{name} it is as fast as {second}");
        }
        format!("{name} {faster} is {percent:.0} % faster than {than}, because of {ms:.2} ms of a step less {term}")
    });
    format!("{mode}; predicted: {}", said.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use gaterail_cluster::predict::LayerShape;
    use gaterail_proto::{LayerExperts, LayerId};

    use super::*;

    const EXPERT_BYTES: u64 = 12 << 20;

    fn model(experts: u32) -> (Shape, ExpertInventory) {
        let layer = LayerShape {
            hidden: 2048,
            experts,
            top_k: 2,
            width: 1024,
            units: 32,
            expert_bytes: EXPERT_BYTES as f64,
            gate_bytes: 4096.0,
            row_group: Some(64),
        };
        let held = |at| LayerExperts { layer: LayerId(at), experts, units: 32, expert_bytes: EXPERT_BYTES };
        let shape = Shape { layers: vec![layer; 2], trunk_bytes: 1e7, head_bytes: 1e7, ..Shape::default() };
        (shape, ExpertInventory { layers: (0..2).map(held).collect() })
    }

    fn reaches(read: f64) -> Compute {
        Compute {
            read_bytes_per_second: read,
            operations_per_second: read * 50.0,
            few_rows: None,
            call_seconds: 0.0,
        }
    }

    fn chosen(spawn: usize, experts: u32, memory: u64, reached: Reached) -> (Mode, String) {
        let (shape, inventory) = model(experts);
        let on = Circumstances {
            shape: &shape,
            inventory: &inventory,
            team: &Team { spawn, expected: 2, mode: Mode::Ep },
            copies: 1,
            device: DeviceArg::Cpu,
            threads: None,
            memory,
            batch: 1,
            context: 64,
        };
        on.chosen(&on.rates(reached))
    }

    #[test]
    fn what_is_slow_at_rates_is_not_chosen() {
        // Far workers of slow memory: one stream's two experts are as often on one worker as on both, and halves never wait.
        let slow = Reached { together: reaches(2e9), alone: reaches(1e9) };
        let (mode, why) = chosen(0, 8, 0, slow);
        assert_eq!(mode, Mode::Tp, "{why}");
        assert!(why.contains("at 1 streams tp is") && why.contains("faster than ep"), "{why}");
        // Where reading takes no time, all that is left are the frames, of which whole experts need fewer.
        let fast = Reached { together: reaches(1e15), alone: reaches(1e15) };
        let (mode, why) = chosen(0, 8, 0, fast);
        assert_eq!(mode, Mode::Ep, "{why}");
    }

    #[test]
    fn what_does_not_fit_is_not_chosen() {
        let fast = Reached { together: reaches(1e15), alone: reaches(1e15) };
        // Three experts in each of two layers, and room for half of them on each worker; then for one byte less.
        assert_ne!(chosen(2, 3, 3 * EXPERT_BYTES, fast).1, "nothing fits");
        let (mode, why) = chosen(2, 3, 3 * EXPERT_BYTES - 1, fast);
        assert_eq!((mode, why.as_str()), (Mode::Ep, "nothing fits"));
        // One expert a layer and room for one and a half: two whole ones fit, each on a worker of its own.
        let one = chosen(2, 1, EXPERT_BYTES * 3 / 2, fast);
        assert_ne!(one.1, "nothing fits");
    }

    #[test]
    fn one_worker_is_measured_on_all_of_its_cores() {
        let (shape, inventory) = model(8);
        let before = Cores::allowed();
        let on = Circumstances {
            shape: &shape,
            inventory: &inventory,
            team: &Team { spawn: 1, expected: 1, mode: Mode::Ep },
            copies: 1,
            device: DeviceArg::Cpu,
            threads: None,
            memory: 0,
            batch: 1,
            context: 64,
        };
        // Both have all cores: on one of them alone it would be a part as large as they are many.
        let cores = before.count() as f64;
        let mut largest: f64 = 0.0;
        // Somebody else may use a core for a moment: it is measured again.
        let is_all = (0..20).any(|_| {
            let Reached { together, alone } = Reached::now(&on).expect("a measurement");
            assert_eq!(Cores::allowed(), before);
            largest = largest.max(alone.operations_per_second / together.operations_per_second);
            before.count() == 1 || largest > 0.5 * (1.0 + 1.0 / cores)
        });
        assert!(is_all, "{largest} of {cores} cores");
    }
}
