//! One layer's experts in int4: bytes of the experts touched against the read bandwidth, operations against the int8
//! peak, measured in the same run with the same threads, in turns. Routing is even: every expert is as likely as another.
//!
//! `cargo bench -p gaterail-benches --bench experts -- [avx512|avx2|portable] [rounds]`

use std::time::{Duration, Instant};

use gaterail_benches::{Spread, random_bytes};
use gaterail_kernels::ops::{
    self, Activation, ExpertPiece, ExpertPieces, ExpertsArgs, ExpertsScratch, FRACTION_BITS, PartialSums,
    WeightOn,
};
use gaterail_kernels::{Buffer, CpuOptions, Device, Isa, Packed, PackedFormat, Stream, View, measure};

/// Name, H, F, E, K.
const SHAPES: [(&str, usize, usize, usize, usize); 2] =
    [("OLMoE-1B-7B", 2048, 1024, 64, 8), ("Qwen3-30B-A3B", 2048, 768, 128, 8)];
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];

fn main() {
    // `cargo bench` passes `--bench` as well.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let isa = match args.first().map(String::as_str) {
        Some("avx2") => Isa::Avx2,
        Some("portable") => Isa::Portable,
        _ => Isa::detect(),
    };
    let rounds = args.iter().find_map(|text| text.parse().ok()).unwrap_or(5);
    let device = Device::cpu(CpuOptions { pin: true, isa, ..CpuOptions::default() }).expect("threads");
    println!("{device}, {rounds} rounds, medians");
    for (name, h, f, experts, top_k) in SHAPES {
        for group in [32, 64] {
            println!("\n{name}: H {h}, F {f}, E {experts}, K {top_k}, int4 in groups of {group}");
            let format = PackedFormat { group, ..PackedFormat::INT4 };
            let layer = Layer::new(&device, format, (h, f), experts, top_k);
            ROWS.into_iter().for_each(|rows| layer.line(rows, rounds));
        }
    }
}

struct Layer<'a> {
    device: &'a Device,
    pieces: ExpertPieces,
    h: usize,
    f: usize,
    top_k: usize,
    expert_bytes: usize,
}

impl Layer<'_> {
    fn new(
        device: &Device,
        format: PackedFormat,
        (h, f): (usize, usize),
        experts: usize,
        top_k: usize,
    ) -> Layer<'_> {
        let (inner, down) = (format.bytes(f, h), format.bytes(h, f));
        let expert_bytes = 2 * inner + down;
        let bytes = random_bytes(experts * expert_bytes);
        let pieces = (0..experts).map(|expert| {
            let cut = |from: usize, size: usize, rows: usize, cols: usize| {
                let start = expert * expert_bytes + from;
                Packed::new(format, bytes.slice(start..start + size), rows, cols).into()
            };
            ExpertPiece {
                expert: expert as u32,
                gate: cut(0, inner, f, h),
                up: cut(inner, inner, f, h),
                down: cut(2 * inner, down, h, f),
                gate_bias: None,
                up_bias: None,
                down_bias: None,
            }
        });
        Layer { device, pieces: pieces.collect::<Vec<_>>().into(), h, f, top_k, expert_bytes }
    }

    fn line(&self, rows: usize, rounds: usize) {
        let stream = Stream::new(self.device);
        let (h, top_k, experts) = (self.h, self.top_k, self.pieces.len());
        let mut x = Buffer::zeros(self.device, rows * h).expect("memory");
        let values: Vec<f32> = (0..rows * h).map(|i| ((i * 37) % 201) as f32 / 100.0 - 1.0).collect();
        stream.upload(&values, &mut x).expect("a copy");
        let mut weights = Buffer::zeros(self.device, rows * top_k).expect("memory");
        stream.upload(&vec![1e-6; rows * top_k], &mut weights).expect("a copy");
        let mut ids = Buffer::zeros(self.device, rows * top_k).expect("memory");
        let mut scratch = ExpertsScratch::new(self.device).expect("memory");
        let mut sums = PartialSums::new(self.device, rows, h).expect("memory");
        let (mut bandwidths, mut peaks, mut touched, mut state) = (Vec::new(), Vec::new(), 0, 1u64);
        let repeats = (400 / rows).max(1);
        let seconds = Spread::of(rounds, || {
            bandwidths.push(measure::read_bandwidth(self.device, 256 << 20, Duration::ZERO).expect("memory"));
            peaks.push(measure::int8_peak(self.device, Duration::ZERO));
            touched = 0;
            let mut spent = 0.0;
            for _ in 0..repeats {
                let chosen: Vec<u32> = (0..rows).flat_map(|_| choose(&mut state, experts, top_k)).collect();
                touched += (0..experts as u32).filter(|id| chosen.contains(id)).count();
                stream.upload(&chosen, &mut ids).expect("a copy");
                sums.reset(&stream, rows);
                let started = Instant::now();
                let args = ExpertsArgs {
                    x: View::rows(&x, rows, h).into(),
                    ids: &ids,
                    weights: &weights,
                    top_k,
                    pieces: &self.pieces,
                    activation: Activation::SwiGlu,
                    weight_on: WeightOn::Output,
                    unit: ops::UNIT_MIN,
                    fraction_bits: FRACTION_BITS,
                };
                ops::experts(&stream, &args, &mut scratch, &mut sums).expect("memory");
                spent += started.elapsed().as_secs_f64();
            }
            spent / repeats as f64
        });
        let (bandwidth, peak) = (median(&mut bandwidths), median(&mut peaks));
        let bytes = touched as f64 / repeats as f64 * self.expert_bytes as f64 / seconds.median;
        let operations = (rows * top_k * 3 * h * self.f * 2) as f64 / seconds.median;
        println!(
            "{rows:5} rows {:9.0} us  {:6.1} GB/s = {:3.0} % of {:.1}   {:6.3} TOPS = {:3.0} % of {:.3}",
            seconds.median * 1e6,
            bytes / 1e9,
            bytes / bandwidth * 100.0,
            bandwidth / 1e9,
            operations / 1e12,
            operations / peak * 100.0,
            peak / 1e12,
        );
    }
}

/// `count` different numbers below `n`.
fn choose(state: &mut u64, n: usize, count: usize) -> Vec<u32> {
    let mut chosen = Vec::new();
    while chosen.len() < count {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let id = ((*state >> 33) % n as u64) as u32;
        if !chosen.contains(&id) {
            chosen.push(id);
        }
    }
    chosen
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
