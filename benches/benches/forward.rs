//! The forward pass of a model folder: prefill, and decode with 1 to 16 streams at two contexts, beside the read
//! bandwidth of this machine, measured in the same run with the same threads, in turns.
//!
//! `cargo bench -p gaterail-benches --bench forward -- MODEL [rounds] [stored|f32|bf16|int8|int4] [avx512|avx2]`;
//! `gaterail synth` writes models.

use std::path::Path;
use std::time::{Duration, Instant};

use gaterail_benches::{Spread, row};
use gaterail_kernels::{CpuOptions, Device, Isa, measure};
use gaterail_model::kv::PageTable;
use gaterail_model::walk::{Batch, Runner, RunnerOptions};
use gaterail_model::weights::{Precision, Role, account};

const STREAMS: [usize; 5] = [1, 2, 4, 8, 16];
const CONTEXTS: [usize; 2] = [128, 2048];
const PREFILL: usize = 512;
const ROWS_MAX: usize = 512;
const DECODE_STEPS: usize = 8;

fn main() {
    // `cargo bench` passes `--bench` as well.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let Some(folder) = args.first() else {
        println!(
            "usage: cargo bench -p gaterail-benches --bench forward -- MODEL [rounds] [PRECISION] [ISA]"
        );
        return;
    };
    let rounds = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let named = |name: &str| args.iter().any(|arg| arg == name);
    let precisions = [
        ("f32", Precision::F32),
        ("bf16", Precision::Bf16),
        ("int8", Precision::Int8),
        ("int4", Precision::Int4),
    ];
    let precision = precisions.into_iter().find(|(name, _)| named(name));
    let precision = precision.map_or(Precision::AsStored, |(_, precision)| precision);
    let isa = if named("avx2") { Isa::Avx2 } else { Isa::detect() };
    let device = Device::cpu(CpuOptions { pin: true, isa, ..CpuOptions::default() }).expect("threads");
    let positions = STREAMS[STREAMS.len() - 1] * (CONTEXTS[CONTEXTS.len() - 1] + 64 * DECODE_STEPS);
    let options = RunnerOptions { rows_max: ROWS_MAX, positions, shards: Vec::new(), precision };
    let mut runner = match Runner::load(Path::new(folder), &device, &options, &mut |_| {}) {
        Ok(runner) => runner,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    println!("{folder} on {device}, {rounds} rounds, medians (smallest to largest)\n");
    let reads = Spread::of(rounds, || bandwidth(&device) / 1e9);
    println!("{}", row("read bandwidth", "GB/s", &reads, ""));
    let prefill = Spread::of(rounds, || prefill(&mut runner, PREFILL));
    println!("{}", row(&format!("prefill of {PREFILL}"), "tokens/s", &prefill, ""));
    let limit = runner.spec().context;
    for context in CONTEXTS.into_iter().filter(|&context| context < limit) {
        for streams in STREAMS {
            let mut state = Decode::new(&mut runner, streams, context);
            // The bandwidth is measured again beside each figure: the machine may be shared.
            let mut beside = Vec::new();
            let rate = Spread::of(rounds, || {
                beside.push(bandwidth(&device));
                state.step(&mut runner)
            });
            let share = rate.median / streams as f64 * bytes_per_step(&runner, streams) / median(&mut beside);
            let note = format!("{:.0} % of the bandwidth", share * 100.0);
            println!("{}", row(&format!("decode, {streams} streams at {context}"), "tokens/s", &rate, &note));
            state.release(&mut runner);
        }
    }
    println!("\npeak memory {:.2} GB", peak_memory_bytes() as f64 / 1e9);
}

fn bandwidth(device: &Device) -> f64 {
    measure::read_bandwidth(device, 256 << 20, Duration::from_millis(60)).expect("memory for the measurement")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Weights that a decode step reads at least: all but the experts once, and of those the expected number of different
/// ones, E * (1 - (1 - K/E)^streams).
fn bytes_per_step(runner: &Runner, streams: usize) -> f64 {
    let shares = account(runner.spec(), None);
    shares
        .iter()
        .map(|(role, share)| match (role, runner.spec().sparse()) {
            (Role::Experts, Some(sparse)) => {
                let untouched = (1.0 - sparse.top_k as f64 / sparse.experts as f64).powi(streams as i32);
                share.bytes as f64 * (1.0 - untouched)
            }
            _ => share.active_bytes as f64,
        })
        .sum()
}

fn token(index: usize, vocab: usize) -> u32 {
    (index.wrapping_mul(7919) % vocab) as u32
}

/// Tokens per second of one prefill.
fn prefill(runner: &mut Runner, length: usize) -> f64 {
    let mut table = PageTable::default();
    runner.grow(&mut table, length).expect("pages");
    let tokens: Vec<u32> = (0..length).map(|i| token(i, runner.spec().vocab)).collect();
    let mut batch = Batch::default();
    batch.add(&tokens, 0, &table, |row| row + 1 == length);
    let started = Instant::now();
    runner.step(&batch).expect("a step");
    let rate = length as f64 / started.elapsed().as_secs_f64();
    runner.release(table);
    rate
}

/// Streams that decode together.
struct Decode {
    tables: Vec<PageTable>,
    position: usize,
}

impl Decode {
    /// Streams with `context` tokens behind them. What KV holds does not matter for speed; it is left as zeros.
    fn new(runner: &mut Runner, streams: usize, context: usize) -> Decode {
        let tables = (0..streams).map(|_| {
            let mut table = PageTable::default();
            runner.grow(&mut table, context + 64 * DECODE_STEPS).expect("pages");
            table
        });
        Decode { tables: tables.collect(), position: context }
    }

    /// Tokens per second over a few steps of all streams.
    fn step(&mut self, runner: &mut Runner) -> f64 {
        let started = Instant::now();
        for _ in 0..DECODE_STEPS {
            let mut batch = Batch::default();
            for (stream, table) in self.tables.iter().enumerate() {
                let token = token(self.position * 31 + stream, runner.spec().vocab);
                batch.add(&[token], self.position, table, |_| true);
            }
            runner.step(&batch).expect("a step");
            self.position += 1;
        }
        (self.tables.len() * DECODE_STEPS) as f64 / started.elapsed().as_secs_f64()
    }

    fn release(self, runner: &mut Runner) {
        self.tables.into_iter().for_each(|table| runner.release(table));
    }
}

fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
