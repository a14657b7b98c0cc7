//! The forward pass of a model folder: prefill beside the integer peak of this machine, and decode with 1 to 16 streams at two
//! contexts beside its read bandwidth, both measured in the same run with the same threads, in turns: the bandwidth before and
//! after every step. A share of it holds what the step's rows really chose, its median and quartiles.
//!
//! `cargo bench -p gaterail-benches --bench forward -- MODEL [rounds] [stored|f32|bf16|int8|int4] [avx512|avx2] [prefill|decode|single]`:
//! the last limits it to prefill, to decode, to one stream. `gaterail synth` writes models.

mod decode;
mod model;

use std::path::Path;
use std::time::{Duration, Instant};

use gaterail_benches::{Spread, row};
use gaterail_kernels::measure::ReadBandwidth;
use gaterail_kernels::{CpuOptions, Device, Isa, measure};
use gaterail_model::kv::PageTable;
use gaterail_model::walk::Batch;
use gaterail_model::weights::Precision;

use crate::decode::Decode;
use crate::model::Model;

const STREAMS: [usize; 5] = [1, 2, 4, 8, 16];
/// The second is what a model with a context of 4,096 has room for beside the steps.
const CONTEXTS: [usize; 2] = [128, 3584];
/// Streams whose KV would take more are left out.
const KV_BYTES_MAX: usize = 5 << 30;
const PREFILL: usize = 512;
const ROWS_MAX: usize = 512;
/// Decode steps of a round.
const STEPS: usize = 8;
/// For the bandwidth: far more than the caches hold.
const READ_BYTES: usize = 256 << 20;

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
    let wanted = STREAMS[STREAMS.len() - 1] * (CONTEXTS[CONTEXTS.len() - 1] + rounds * STEPS);
    let mut model = match Model::load(Path::new(folder), &device, precision, ROWS_MAX, wanted, KV_BYTES_MAX) {
        Ok(model) => model,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    println!("{folder} on {device}, {rounds} rounds, medians (smallest to largest)\n");
    if !named("decode") && !named("single") {
        println!("{}", prefills(&mut model, &device, rounds));
    }
    let memory = ReadBandwidth::new(&device, READ_BYTES).expect("memory for the measurement");
    let streams: &[usize] = match () {
        _ if named("prefill") => &[],
        _ if named("single") => &STREAMS[..1],
        _ => &STREAMS,
    };
    let (limit, room, steps) = (model.runner.spec().context, model.positions, rounds * STEPS);
    for context in CONTEXTS.into_iter().filter(|&context| context + steps <= limit) {
        for &streams in streams.iter().filter(|&streams| streams * (context + steps) <= room) {
            let mut state = Decode::new(&mut model, streams, context, steps);
            println!("{}", state.measure(&mut model, &memory, steps));
            state.release(&mut model);
        }
    }
    println!(
        "\npeak memory {:.2} GB, of which weights {:.2} and KV {:.2}",
        peak_memory_bytes() as f64 / 1e9,
        model.weight_bytes() as f64 / 1e9,
        (model.positions * model.position_bytes) as f64 / 1e9
    );
}

/// Prefills, and the integer peak beside each.
fn prefills(model: &mut Model, device: &Device, rounds: usize) -> String {
    let mut peaks = Vec::new();
    let rates = Spread::of(rounds, || {
        peaks.push(measure::int8_peak(device, Duration::from_millis(100)));
        prefill(model, PREFILL)
    });
    let peak = Spread::new(peaks).median;
    let done = rates.median * model.prefill_operations(PREFILL) / PREFILL as f64;
    let note = format!("{:.3} TOPS = {:.0} % of int8's {:.3}", done / 1e12, done / peak * 100.0, peak / 1e12);
    row(&format!("prefill of {PREFILL}"), "tokens/s", &rates, &note)
}

fn token(index: usize, vocab: usize) -> u32 {
    (index.wrapping_mul(7919) % vocab) as u32
}

/// Tokens per second of one prefill.
fn prefill(model: &mut Model, length: usize) -> f64 {
    let runner = &mut model.runner;
    let mut table = PageTable::default();
    runner.grow(&mut table, length).expect("pages");
    let tokens: Vec<u32> = (0..length).map(|i| token(i, runner.spec().vocab)).collect();
    let mut batch = Batch::default();
    batch.add(&tokens, 0, &table, |row| row + 1 == length);
    let started = Instant::now();
    runner.step(&batch).expect("a step");
    let rate = length as f64 / started.elapsed().as_secs_f64();
    runner.release(table);
    runner.experts().take();
    rate
}

fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
