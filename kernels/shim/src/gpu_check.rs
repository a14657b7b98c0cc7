//! `gaterail-gpu-check`: the CUDA kernels on this machine's GPU, first against the reference, then against the clock.
//!
//! usage: gaterail-gpu-check [--shim] [--device N] [--only checks|speed] [--few] [--json FILE]
//!
//! `--few` checks little, for slow tools such as compute-sanitizer.
//! `--shim` walks the whole way without a GPU, at tiny shapes, and prints no speed: it proves this program.
//! `ops/gpu-check/run.sh` puts compute-sanitizer before it and torch beside it.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use gaterail_kernels::cuda::{
    CudaDevice, CudaError, CudaQueue, DeviceBuffer, ExpertsBatch, ExpertsOnDevice, ExpertsScratch, Path,
    QuantizedBuffer, ShardOptions, Strided, SumsOnDevice, experts, graph_time, quantize, read_bandwidth,
    tensor_peak,
};
use gaterail_kernels::ops::{Activation, ExpertPiece, UNIT_MIN, WeightOn};
use gaterail_kernels::reference::{ExpertRow, RowWeight, add_expert_row};
use gaterail_kernels::{Bytes, Codes, Packed, PackedFormat, Scales, Weight};
use gaterail_shim::{Shim, cases};
use serde_json::{Value, json};

/// The experts of one layer of a model.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// H
    width: usize,
    /// F
    f: usize,
    experts: usize,
    top_k: usize,
    format: PackedFormat,
}

const MXFP4: PackedFormat =
    PackedFormat { codes: Codes::MXFP4, scales: Scales::F16, offsets: false, group: 32 };

const SHAPES: [Shape; 4] = [
    shape("Qwen3-30B-A3B", 2048, 768, 128, 8, PackedFormat::INT4),
    shape("OLMoE-1B-7B", 2048, 1024, 64, 8, PackedFormat::INT4),
    shape("gpt-oss-20b", 2880, 2880, 32, 4, MXFP4),
    shape("Mixtral-8x7B", 4096, 14336, 8, 2, PackedFormat::INT4),
];
const TOKENS: [usize; 4] = [1, 8, 64, 2048];

const SHIM_SHAPES: [Shape; 2] =
    [shape("tiny", 96, 160, 8, 2, PackedFormat::INT4), shape("tiny MXFP4", 64, 96, 5, 2, MXFP4)];
const SHIM_TOKENS: [usize; 3] = [1, 8, 40];

const fn shape(
    name: &'static str,
    width: usize,
    f: usize,
    experts: usize,
    top_k: usize,
    format: PackedFormat,
) -> Shape {
    Shape { name, width, f, experts, top_k, format }
}

struct Options {
    shim: bool,
    ordinal: usize,
    checks: bool,
    few: bool,
    speed: bool,
    json: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { shim: false, ordinal: 0, checks: true, few: false, speed: true, json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--shim" => options.shim = true,
            "--few" => options.few = true,
            "--device" => {
                options.ordinal = value()?.parse().map_err(|_| "--device wants a number".to_string())?
            }
            "--json" => options.json = Some(value()?),
            "--only" => match value()?.as_str() {
                "checks" => options.speed = false,
                "speed" => options.checks = false,
                other => return Err(format!("--only wants checks or speed, not {other}")),
            },
            other => {
                return Err(format!("{other} is not known; see the head of kernels/shim/src/gpu_check.rs"));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well.
fn run(options: &Options) -> Result<bool, String> {
    let device =
        if options.shim { Shim::device(1) } else { CudaDevice::open(options.ordinal).map_err(text)? };
    let properties = device.properties().clone();
    println!(
        "{device}: {} multiprocessors, {:.1} GiB",
        properties.multiprocessors,
        gib(properties.memory_bytes)
    );
    let mut report = json!({
        "device": properties.name, "architecture": properties.architecture, "shim": options.shim,
        "multiprocessors": properties.multiprocessors, "cache_bytes": properties.cache_bytes,
    });
    let mut well = true;
    if options.checks {
        let checks = checks(&device, options.shim || options.few);
        well &= checks.iter().all(|check| check["ok"] == true);
        report["checks"] = Value::Array(checks);
    }
    if options.speed {
        let (speed, right) = speed(&device, options.shim).map_err(text)?;
        well &= right;
        report["speed"] = speed;
    }
    if let Some(path) = &options.json {
        let written = serde_json::to_string_pretty(&report).map_err(text)?;
        std::fs::write(path, written + "\n").map_err(|error| format!("{path}: {error}"))?;
    }
    println!("{}", if well { "all well" } else { "FAILED: see above" });
    Ok(well)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Every kernel against the reference.
fn checks(device: &Arc<CudaDevice>, few_cases: bool) -> Vec<Value> {
    let times = |few: usize, many: usize| if few_cases { few } else { many };
    let experts = |seed, cases, most_rows, paths: &'static [Path]| {
        cases::experts_cases(device, cases::ExpertCases { seed, cases, most_rows, paths });
    };
    let few: &[Path] = &[Path::Auto, Path::Dot, Path::Eight, Path::ThirtyTwo];
    let checks: [(&str, &dyn Fn()); 8] = [
        ("quantize", &|| cases::quantize_cases(device, times(4, 200))),
        ("rms_norm, rope", &|| cases::norm_and_rope_cases(device, times(4, 200))),
        ("packed_linear", &|| cases::linear_cases(device, 100, times(11, 440))),
        ("experts, few rows", &|| experts(101, times(8, 300), 20, few)),
        ("experts, one row", &|| experts(102, times(40, 300), 1, &[Path::Auto])),
        ("experts, many rows", &|| experts(103, times(11, 60), 90, &[Path::Tiles])),
        ("experts, thousands of rows", &|| cases::experts_of_many_rows(device, times(300, 3000))),
        ("experts elsewhere", &|| cases::rows_without_an_expert(device)),
    ];
    let run = |(name, check): (&str, &dyn Fn())| {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(check));
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{name:28} {} ({seconds:.1} s)",
            if outcome.is_ok() { "equals the reference" } else { "DIFFERS" }
        );
        json!({ "name": name, "ok": outcome.is_ok() })
    };
    checks.map(run).to_vec()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// Random codes; scales that keep activations near 1.
fn matrix(random: &mut Random, format: PackedFormat, rows: usize, cols: usize) -> Packed {
    let mut bytes = vec![0u8; format.bytes(rows, cols)];
    bytes.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&random.next().to_le_bytes()[..bytes.len()]));
    for record in bytes.chunks_exact_mut(format.record()) {
        for scale in record[..32].chunks_exact_mut(2) {
            // f16, 0.004 to 0.008.
            scale.copy_from_slice(&(0x1c00 | (random.next() as u16 & 0x3ff)).to_le_bytes());
        }
    }
    Packed::new(format, Bytes::copied(&bytes), rows, cols)
}

/// Every shape at every number of tokens; and whether the rows that were compared are right.
fn speed(device: &Arc<CudaDevice>, shim: bool) -> Result<(Value, bool), CudaError> {
    let queue = CudaQueue::new(device)?;
    let bandwidth = read_bandwidth(&queue, if shim { 1 << 16 } else { 4 << 30 })?;
    let peak = tensor_peak(&queue, if shim { 2 } else { 20_000 })?;
    if let (Some(bandwidth), Some(peak)) = (bandwidth, peak) {
        println!(
            "memory {:.0} GB/s read, int8 tensor cores {:.0} TOPS by mma.sync",
            bandwidth / 1e9,
            2.0 * peak / 1e12
        );
    }
    println!(
        "{:16} {:>6} {:>8} {:>10} {:>10} {:>12} {:>12}",
        "experts of", "tokens", "experts", "MB read", "us", "of bandwidth", "of tensor"
    );
    let (shapes, tokens): (&[Shape], &[usize]) =
        if shim { (&SHIM_SHAPES, &SHIM_TOKENS) } else { (&SHAPES, &TOKENS) };
    let mut rows = Vec::new();
    let mut right = true;
    for &shape in shapes {
        let layer = Layer::new(device, shape)?;
        for &tokens in tokens {
            let measured = layer.measure(&queue, tokens)?;
            right &= measured.right;
            let seconds = measured.time.map(|time| time.as_secs_f64());
            let of_bandwidth = seconds.zip(bandwidth).map(|(time, peak)| measured.bytes as f64 / time / peak);
            let of_peak = seconds.zip(peak).map(|(time, peak)| measured.products as f64 / time / peak);
            let percent =
                |share: Option<f64>| share.map_or("-".to_string(), |share| format!("{:.0} %", share * 100.0));
            println!(
                "{:16} {tokens:>6} {:>8.1} {:>10.1} {:>10} {:>12} {:>12}{}",
                shape.name,
                measured.experts,
                measured.bytes as f64 / 1e6,
                seconds.map_or("-".to_string(), |time| format!("{:.1}", time * 1e6)),
                percent(of_bandwidth),
                percent(of_peak),
                if measured.right { "" } else { "  DIFFERS" },
            );
            rows.push(json!({
                "model": shape.name, "tokens": tokens, "unique_experts": measured.experts, "bytes": measured.bytes,
                "seconds": seconds, "share_of_bandwidth": of_bandwidth, "share_of_tensor_peak": of_peak,
                "equals_reference": measured.right,
            }));
        }
    }
    let peak = peak.map(|peak| 2.0 * peak);
    Ok((
        json!({ "read_bytes_per_second": bandwidth, "int8_operations_per_second": peak, "experts": rows }),
        right,
    ))
}

fn row_weight(weight: &Weight) -> RowWeight<'_> {
    RowWeight::Packed(weight.packed().expect("packed experts"))
}

/// One layer's experts; all have the same values, each in memory of its own.
struct Layer {
    shape: Shape,
    piece: ExpertPiece,
    shard: ExpertsOnDevice,
    options: ShardOptions,
}

struct Measured {
    time: Option<std::time::Duration>,
    /// Of one call, on average.
    bytes: usize,
    experts: f64,
    products: usize,
    /// Whether the row that was compared with the reference has its sums.
    right: bool,
}

impl Layer {
    fn new(device: &Arc<CudaDevice>, shape: Shape) -> Result<Layer, CudaError> {
        let mut random = Random(shape.width as u64);
        let inner = |random: &mut Random| matrix(random, shape.format, shape.f, shape.width);
        let (gate, up) = (inner(&mut random), inner(&mut random));
        let down = matrix(&mut random, shape.format, shape.width, shape.f);
        let piece = |expert| ExpertPiece {
            expert,
            gate: gate.clone().into(),
            up: up.clone().into(),
            down: down.clone().into(),
            gate_bias: None,
            up_bias: None,
            down_bias: None,
        };
        let options = ShardOptions {
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
            unit: UNIT_MIN,
            fraction_bits: 24,
        };
        let pieces: Vec<ExpertPiece> = (0..shape.experts as u32).map(piece).collect();
        let shard = ExpertsOnDevice::upload(device, &pieces)?;
        device.prepare(&shard.kernels())?;
        Ok(Layer { shape, piece: piece(0), shard, options })
    }

    /// Ids of `tokens` rows. Calls after each other name other experts, so that no weight is still in the cache.
    fn ids(&self, random: &mut Random, call: usize, tokens: usize) -> Vec<u32> {
        let Shape { experts, top_k, .. } = self.shape;
        if tokens == 1 {
            return (0..top_k).map(|k| ((call * top_k + k) % experts) as u32).collect();
        }
        let mut all: Vec<u32> = (0..experts as u32).collect();
        let mut row = || {
            for i in 0..top_k {
                all.swap(i, i + random.next() as usize % (experts - i));
            }
            all[..top_k].to_vec()
        };
        (0..tokens).flat_map(|_| row()).collect()
    }

    fn measure(&self, queue: &CudaQueue, tokens: usize) -> Result<Measured, CudaError> {
        let (device, Shape { width, f, experts: count, top_k, .. }) = (queue.device(), self.shape);
        let mut random = Random(tokens as u64);
        let calls = if tokens == 1 {
            count / top_k
        } else if tokens <= 64 {
            4
        } else {
            1
        };
        let x: Vec<f32> =
            (0..tokens * width).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
        let routings: Vec<Vec<u32>> = (0..calls).map(|call| self.ids(&mut random, call, tokens)).collect();
        let unique = |ids: &Vec<u32>| {
            let mut ids = ids.clone();
            ids.sort_unstable();
            ids.dedup();
            ids.len()
        };
        let unique: usize = routings.iter().map(unique).sum();

        let x_device = DeviceBuffer::copied(device, &x)?;
        let weights = DeviceBuffer::copied(device, &vec![1.0f32 / top_k as f32; tokens * top_k])?;
        let ids: Vec<DeviceBuffer<u32>> =
            routings.iter().map(|ids| DeviceBuffer::copied(device, ids)).collect::<Result<_, _>>()?;
        let mut scratch = ExpertsScratch::new(device)?;
        scratch.make_room(&self.shard, tokens, top_k)?;
        let (sums, poison) =
            (DeviceBuffer::zeros(device, tokens * width)?, DeviceBuffer::zeros(device, tokens)?);
        let sums = SumsOnDevice { sums: &sums, poison: &poison };
        let group = self.shard.group();
        let quantized = QuantizedBuffer::new(device, tokens, width, group)?;
        let rows = quantized.rows(tokens, width, group);
        let mut call = |ids: &DeviceBuffer<u32>| {
            quantize(queue, Strided::rows(&x_device, tokens, width), rows);
            let (options, path) = (self.options, Path::Auto);
            let batch = ExpertsBatch { x: rows, ids, weights: &weights, top_k, options, path };
            experts(queue, &self.shard, &batch, &mut scratch, sums);
        };
        // The first call alone is compared: all experts are equal, so that its last row needs one expert's terms.
        call(&ids[0]);
        let right = self.right(queue, &x[(tokens - 1) * width..], sums, tokens - 1)?;
        let time = graph_time(queue, if tokens <= 64 { 20 } else { 5 }, &mut || {
            ids.iter().for_each(&mut call);
        })?;
        Ok(Measured {
            time: time.map(|time| time / calls as u32),
            bytes: unique * (self.shard.stored_bytes() / count) / calls,
            experts: unique as f64 / calls as f64,
            products: 3 * width * f * tokens * top_k,
            right,
        })
    }

    fn right(
        &self,
        queue: &CudaQueue,
        x: &[f32],
        sums: SumsOnDevice<'_>,
        row: usize,
    ) -> Result<bool, CudaError> {
        let (width, piece) = (self.shape.width, &self.piece);
        let mut expected = vec![0i64; width];
        let expert = ExpertRow {
            x,
            f: self.shape.f,
            weight: 1.0 / self.shape.top_k as f32,
            gate: row_weight(&piece.gate),
            up: row_weight(&piece.up),
            down: row_weight(&piece.down),
            gate_bias: None,
            up_bias: None,
            down_bias: None,
            activation: self.options.activation,
            weight_on: self.options.weight_on,
            unit: self.options.unit,
            fraction_bits: self.options.fraction_bits,
        };
        let poisoned = add_expert_row(&expert, &mut expected);
        expected.iter_mut().for_each(|sum| *sum *= self.shape.top_k as i64);
        let (mut got, mut flag) = (vec![0i64; width], [0u32]);
        queue.download(sums.sums, row * width, &mut got)?;
        queue.download(sums.poison, row, &mut flag)?;
        Ok(got == expected && !poisoned && flag[0] == 0)
    }
}
