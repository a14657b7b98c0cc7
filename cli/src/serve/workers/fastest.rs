//! `--parallel auto` where workers are asked for: the way to spread the experts that is predicted to be fastest, of those that
//! fit. In: a model's shape, and what this machine's memory and arithmetic give, measured for a moment. Out: a mode, and why.
//!
//! It is fast for a full batch of answers at half the context that a sequence may have, and for prompts, a token of either
//! counting as much. Workers that come from other machines are not known yet: they are taken to be as fast as this one, behind a
//! network of ten gigabits.

use std::time::Duration;

use gaterail_cluster::placement::{Mode, Seat, Wanted};
use gaterail_cluster::predict::{Compute, Hop, Prediction, Rates, Step, WorkerRate, choose, compare};
use gaterail_kernels::measure;
use gaterail_proto::WorkerId;

use super::Team;
use super::share::shares;
use crate::cores::Cores;
use crate::device::DeviceArg;
use crate::error::CliError;
use crate::plan::forecast::term_name;
use crate::plan::subject::Subject;

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
    pub subject: &'a Subject,
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
    let rates = rates(on)?;
    let seat = |rate: &WorkerRate| Seat {
        worker: rate.worker,
        memory_bytes: if on.team.spawn > 0 { on.memory } else { u64::MAX >> 20 },
        read_bytes_per_second: rate.compute.read_bytes_per_second,
    };
    let seats: Vec<Seat> = rates.workers.iter().map(seat).collect();
    let wanted = Wanted {
        inventory: &on.subject.inventory,
        seats: &seats,
        mode: on.team.mode,
        copies: on.copies,
        replica_bytes: 0,
        popularity: None,
        current: None,
        beside: false,
        smaller: &[],
    };
    let context = CONTEXT.min(on.context as u32 / 2).max(1);
    let steps = [(Step::decode(on.batch as u32, context), 1.0), (Step::prefill(PROMPT), 1.0)];
    let ranked = choose(&wanted, &on.subject.shape, &rates, &steps);
    let mode = ranked.first().map_or(on.team.mode, |(mode, _)| *mode);
    Ok((mode, why(&ranked, on.batch)))
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

fn rates(on: &Circumstances<'_>) -> Result<Rates, CliError> {
    let cores = Cores::allowed();
    let (device, threads, workers) = (on.device, on.threads, on.team.expected);
    let each = shares(workers, threads, &cores, 0).first().map_or(1, |share| share.threads);
    // On a thread of its own, which the device may bind to a core.
    let measured = std::thread::spawn(move || -> Result<(Compute, Compute), CliError> {
        let all = device.open(threads)?;
        let one = |device: &gaterail_kernels::Device| -> Result<Compute, CliError> {
            Ok(Compute {
                read_bytes_per_second: measure::read_bandwidth(device, READ_BYTES, READING)?,
                operations_per_second: REACHED * measure::int8_peak(device, MULTIPLYING),
                few_rows: None,
                call_seconds: 0.0,
            })
        };
        let together = one(&all)?;
        drop(all);
        let alone = if each == 0 { together } else { one(&device.open(Some(each))?)? };
        Ok((together, alone))
    });
    let (together, alone) = measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let is_here = on.team.spawn > 0;
    let worker = |at: usize| WorkerRate {
        worker: WorkerId(at as u64),
        compute: if is_here { alone } else { together },
        cuts: Vec::new(),
        host: if is_here { 0 } else { at },
        hop: if is_here { HERE } else { FAR },
    };
    Ok(Rates {
        router: together,
        attention: together,
        walked: Vec::new(),
        own: together,
        workers: (0..workers).map(worker).collect(),
        hosts: vec![together.read_bytes_per_second; if is_here { 1 } else { workers }],
    })
}
