//! The forward pass of a model folder: prefill, and decode with 1 to 16 streams at two contexts, beside the read
//! bandwidth of this machine, measured in the same run with the same threads, in turns.
//!
//! `cargo bench -p gaterail-benches --bench forward -- MODEL [rounds] [stored|f32|bf16|int8|int4] [avx512|avx2] [prefill|decode|single]`:
//! the last limits it to prefill, to decode, to one stream. `gaterail synth` writes models.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use gaterail_benches::{Spread, row};
use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_kernels::{CpuOptions, Device, Isa, measure};
use gaterail_model::kv::PageTable;
use gaterail_model::walk::{Batch, Runner, RunnerOptions};
use gaterail_model::weights::{Precision, Role, resident_by_role};
use gaterail_model::{ModelError, ModelSource};

const STREAMS: [usize; 5] = [1, 2, 4, 8, 16];
/// The second is what a model with a context of 4,096 has room for beside the steps.
const CONTEXTS: [usize; 2] = [128, 3584];
/// Streams whose KV would take more are left out.
const KV_BYTES_MAX: usize = 5 << 30;
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
    let mut model = match load(Path::new(folder), &device, precision) {
        Ok(model) => model,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    println!("{folder} on {device}, {rounds} rounds, medians (smallest to largest)\n");
    let reads = Spread::of(rounds, || bandwidth(&device) / 1e9);
    println!("{}", row("read bandwidth", "GB/s", &reads, ""));
    let prefill = match named("decode") || named("single") {
        true => None,
        false => Some(Spread::of(rounds, || prefill(&mut model.runner, PREFILL))),
    };
    let peak = measure::int8_peak(&device, Duration::from_millis(300));
    println!("{}", row("int8 peak", "GOP/s", &Spread::of(1, || peak / 1e9), ""));
    if let Some(prefill) = prefill {
        println!("{}", row(&format!("prefill of {PREFILL}"), "tokens/s", &prefill, ""));
    }
    let streams: &[usize] = match () {
        _ if named("prefill") => &[],
        _ if named("single") => &STREAMS[..1],
        _ => &STREAMS,
    };
    let limit = model.runner.spec().context;
    for context in CONTEXTS.into_iter().filter(|&context| context < limit) {
        for &streams in streams.iter().filter(|&streams| streams * room_for(context) <= model.positions) {
            let mut state = Decode::new(&mut model.runner, streams, context);
            // The bandwidth is measured again beside each figure: the machine may be shared.
            let mut beside = Vec::new();
            let rate = Spread::of(rounds, || {
                beside.push(bandwidth(&device));
                state.step(&mut model.runner)
            });
            let kv = (streams * context * model.position_bytes) as f64;
            let bytes = bytes_per_step(&model, streams) + kv;
            let read = rate.median / streams as f64 * bytes;
            let note = format!(
                "{:.1} GB/s = {:.0} % of {:.1}",
                read / 1e9,
                read / median(&mut beside) * 100.0,
                median(&mut beside) / 1e9
            );
            println!("{}", row(&format!("decode, {streams} streams at {context}"), "tokens/s", &rate, &note));
            state.release(&mut model.runner);
        }
    }
    let weights: u64 = model.weights.values().sum();
    println!(
        "\npeak memory {:.2} GB, of which weights {:.2} and KV {:.2}",
        peak_memory_bytes() as f64 / 1e9,
        weights as f64 / 1e9,
        (model.positions * model.position_bytes) as f64 / 1e9
    );
}

/// Positions that a stream of this bench needs.
fn room_for(context: usize) -> usize {
    context + 64 * DECODE_STEPS
}

/// A loaded model, and what decides its speed.
struct Model {
    runner: Runner,
    /// KV positions that there is room for.
    positions: usize,
    /// Bytes of weights as they are run.
    weights: BTreeMap<Role, u64>,
    position_bytes: usize,
}

fn load(path: &Path, device: &Device, precision: Precision) -> Result<Model, ModelError> {
    let source = ModelSource::open(path)?;
    let spec = source.spec()?;
    let weights = resident_by_role(&spec, &source.checkpoint()?, precision);
    let position_bytes = spec.kv_values_per_position() * precision.kv().bytes();
    let wanted = STREAMS[STREAMS.len() - 1] * room_for(CONTEXTS[CONTEXTS.len() - 1]);
    let positions = wanted.min(KV_BYTES_MAX / position_bytes);
    let options =
        RunnerOptions { rows_max: ROWS_MAX, positions, shards: Vec::new(), precision, kv: precision.kv() };
    let runner = Runner::load(path, device, &options, &mut |_| {})?;
    Ok(Model { runner, positions, weights, position_bytes })
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
fn bytes_per_step(model: &Model, streams: usize) -> f64 {
    let spec = model.runner.spec();
    let bytes = |(role, bytes): (&Role, &u64)| match (role, spec.sparse()) {
        (Role::Experts, Some(sparse)) => {
            let untouched = (1.0 - sparse.top_k as f64 / sparse.experts as f64).powi(streams as i32);
            *bytes as f64 * (1.0 - untouched)
        }
        // A row for every token; a tied head reads all of it.
        (Role::Embedding, _) if !spec.tied_embeddings || model.weights.contains_key(&Role::Head) => 0.0,
        _ => *bytes as f64,
    };
    model.weights.iter().map(bytes).sum()
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
    /// Streams with `context` tokens behind them. What KV holds does not matter for speed, but it has to be memory of its
    /// own: a row is written into every page.
    fn new(runner: &mut Runner, streams: usize, context: usize) -> Decode {
        let tables = (0..streams).map(|_| {
            let mut table = PageTable::default();
            runner.grow(&mut table, room_for(context)).expect("pages");
            for starts in (0..context).step_by(PAGE_POSITIONS).collect::<Vec<_>>().chunks(ROWS_MAX) {
                let mut batch = Batch::default();
                starts.iter().for_each(|&start| batch.add(&[0], start, &table, |_| true));
                runner.step(&batch).expect("a step");
            }
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
