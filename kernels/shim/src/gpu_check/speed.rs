//! The clock: experts of one layer of known models, as shares of what this device's memory and tensor cores give. Every row
//! of every first call is compared with the CPU's kernels, which the reference has judged.

use std::sync::Arc;
use std::time::Duration;

use gaterail_kernels::cuda::{
    CudaDevice, CudaQueue, DeviceBuffer, ExpertsBatch, ExpertsOnDevice, ExpertsScratch, Path,
    QuantizedBuffer, ShardOptions, Strided, SumsOnDevice, experts, graph_time, quantize, read_bandwidth,
    sums_finish, tensor_peak,
};
use gaterail_kernels::ops::{
    self, Activation, ExpertPiece, ExpertPieces, ExpertsArgs, FRACTION_BITS, PartialSums, UNIT_MIN, WeightOn,
    partial_sums,
};
use gaterail_kernels::{
    Buffer, Bytes, Codes, CpuOptions, Device, KernelError, Packed, PackedFormat, Plain, Scales, Stream, View,
    ViewMut,
};
use serde_json::{Value, json};

/// The experts of one layer of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
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

/// What is measured; in the shim only walked through.
pub fn shapes(shim: bool) -> &'static [Shape] {
    if shim { &SHIM_SHAPES } else { &SHAPES }
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

/// What this device gives at most, and the lines of a shape's table.
#[derive(Default)]
pub struct Rows {
    bandwidth: Option<f64>,
    /// Products per second.
    peak: Option<f64>,
    rows: Vec<Value>,
}

impl Rows {
    pub fn json(&self) -> Value {
        json!({
            "read_bytes_per_second": self.bandwidth,
            "int8_operations_per_second": self.peak.map(|peak| 2.0 * peak),
            "experts": self.rows,
        })
    }

    /// Prints a line and keeps it.
    fn add(&mut self, shape: Shape, tokens: usize, measured: &Measured) {
        let seconds = measured.time.map(|time| time.as_secs_f64());
        let share = |amount: usize, peak: Option<f64>| {
            seconds.zip(peak).map(|(time, peak)| amount as f64 / time / peak)
        };
        let (of_bandwidth, of_peak) =
            (share(measured.bytes, self.bandwidth), share(measured.products, self.peak));
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
            if measured.wrong == 0 { String::new() } else { format!("  {} ROWS DIFFER", measured.wrong) },
        );
        self.rows.push(json!({
            "model": shape.name, "tokens": tokens, "unique_experts": measured.experts, "bytes": measured.bytes,
            "seconds": seconds, "share_of_bandwidth": of_bandwidth, "share_of_tensor_peak": of_peak,
            "rows_that_differ": measured.wrong,
        }));
    }
}

/// A shape at every number of tokens; `keep` gets the rows so far. Whether all rows are right.
pub fn run(
    device: &Arc<CudaDevice>,
    shape: Shape,
    shim: bool,
    keep: &mut dyn FnMut(&Rows) -> Result<(), String>,
) -> Result<bool, String> {
    let text = |error: KernelError| error.to_string();
    let cuda = |error: gaterail_kernels::cuda::CudaError| error.to_string();
    let queue = CudaQueue::new(device).map_err(cuda)?;
    let mut rows = Rows {
        bandwidth: read_bandwidth(&queue, if shim { 1 << 16 } else { 4 << 30 }).map_err(cuda)?,
        peak: tensor_peak(&queue, if shim { 2 } else { 20_000 }).map_err(cuda)?,
        rows: Vec::new(),
    };
    if let (Some(bandwidth), Some(peak)) = (rows.bandwidth, rows.peak) {
        let (bandwidth, peak) = (bandwidth / 1e9, 2.0 * peak / 1e12);
        println!("memory {bandwidth:.0} GB/s read, int8 tensor cores {peak:.0} TOPS by mma.sync");
    }
    println!(
        "{:16} {:>6} {:>8} {:>10} {:>10} {:>12} {:>12}",
        "experts of", "tokens", "experts", "MB read", "us", "of bandwidth", "of tensor"
    );
    let layer = Layer::new(device, shape, shim).map_err(text)?;
    let mut right = true;
    for &tokens in if shim { &SHIM_TOKENS[..] } else { &TOKENS[..] } {
        let measured = layer.measure(&queue, tokens).map_err(text)?;
        right &= measured.wrong == 0;
        rows.add(shape, tokens, &measured);
        keep(&rows)?;
    }
    Ok(right)
}

/// One layer's experts, here and on the CPU. All have the same values, on the device each in memory of its own.
struct Layer {
    shape: Shape,
    shard: ExpertsOnDevice,
    cpu: Stream,
    pieces: ExpertPieces,
    /// Where time means nothing, everything is done once.
    shim: bool,
}

struct Measured {
    time: Option<Duration>,
    /// Of one call, on average.
    bytes: usize,
    experts: f64,
    products: usize,
    /// Rows of the first call that are not the CPU's.
    wrong: usize,
}

impl Layer {
    fn new(device: &Arc<CudaDevice>, shape: Shape, shim: bool) -> Result<Layer, KernelError> {
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
        let pieces: Vec<ExpertPiece> = (0..shape.experts as u32).map(piece).collect();
        let shard = ExpertsOnDevice::upload(device, &pieces)?;
        device.prepare(&shard.kernels())?;
        let cpu = Stream::new(&Device::cpu(CpuOptions::default())?);
        Ok(Layer { shape, shard, cpu, pieces: pieces.into(), shim })
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

    fn measure(&self, queue: &CudaQueue, tokens: usize) -> Result<Measured, KernelError> {
        let (device, Shape { width, f, experts: count, top_k, .. }) = (queue.device(), self.shape);
        let mut random = Random(tokens as u64);
        let calls = match tokens {
            1 => count / top_k,
            ..=64 => 4,
            _ => 1,
        };
        let x: Vec<f32> =
            (0..tokens * width).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
        let routings: Vec<Vec<u32>> = (0..calls).map(|call| self.ids(&mut random, call, tokens)).collect();
        let unique: usize = routings.iter().map(|ids| distinct(ids)).sum();

        let x_device = DeviceBuffer::copied(device, &x)?;
        let weights = DeviceBuffer::copied(device, &self.weights(tokens))?;
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
        let options = ShardOptions {
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
            unit: UNIT_MIN,
            fraction_bits: FRACTION_BITS,
        };
        let mut call = |ids: &DeviceBuffer<u32>| {
            quantize(queue, Strided::rows(&x_device, tokens, width), rows);
            let batch = ExpertsBatch { x: rows, ids, weights: &weights, top_k, options, path: Path::Auto };
            experts(queue, &self.shard, &batch, &mut scratch, sums);
        };
        call(&ids[0]);
        let mut got = vec![0.0; tokens * width];
        let out = DeviceBuffer::zeros(device, tokens * width)?;
        sums_finish(queue, sums, FRACTION_BITS, Strided::rows(&out, tokens, width));
        queue.download(&out, 0, &mut got)?;
        let wrong = differing(&got, &self.expected(&x, &routings[0], options)?, width);
        let repeats = match tokens {
            _ if self.shim => 1,
            ..=64 => 20,
            _ => 5,
        };
        let time = graph_time(queue, repeats, &mut || {
            ids.iter().for_each(&mut call);
        })?;
        Ok(Measured {
            time: time.map(|time| time / calls as u32),
            bytes: unique * (self.shard.stored_bytes() / count) / calls,
            experts: unique as f64 / calls as f64,
            products: 3 * width * f * tokens * top_k,
            wrong,
        })
    }

    fn weights(&self, tokens: usize) -> Vec<f32> {
        vec![1.0 / self.shape.top_k as f32; tokens * self.shape.top_k]
    }

    /// What the CPU makes of a call.
    fn expected(&self, x: &[f32], ids: &[u32], options: ShardOptions) -> Result<Vec<f32>, KernelError> {
        let (stream, Shape { width, top_k, .. }) = (&self.cpu, self.shape);
        let tokens = x.len() / width;
        let (x, ids) = (put(stream, x)?, put(stream, ids)?);
        let weights = put(stream, &self.weights(tokens))?;
        let args = ExpertsArgs {
            x: View::rows(&x, tokens, width).into(),
            ids: &ids,
            weights: &weights,
            top_k,
            pieces: &self.pieces,
            activation: options.activation,
            weight_on: options.weight_on,
            unit: options.unit,
            fraction_bits: options.fraction_bits,
        };
        let mut sums = PartialSums::new(stream.device(), tokens, width)?;
        let mut scratch = ops::ExpertsScratch::new(stream.device())?;
        ops::experts(stream, &args, &mut scratch, &mut sums)?;
        let mut out = Buffer::zeros(stream.device(), tokens * width)?;
        let to = ViewMut::rows(&mut out, tokens, width);
        partial_sums::finish(stream, &sums, options.fraction_bits, to);
        let mut values = vec![0.0; tokens * width];
        stream.download(&out, 0, &mut values)?;
        Ok(values)
    }
}

fn put<T: Plain>(stream: &Stream, values: &[T]) -> Result<Buffer<T>, KernelError> {
    let mut buffer = Buffer::zeros(stream.device(), values.len())?;
    stream.upload(values, &mut buffer)?;
    Ok(buffer)
}

fn distinct(ids: &[u32]) -> usize {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

/// Rows that are not equal to the bit, or not numbers.
fn differing(got: &[f32], expected: &[f32], width: usize) -> usize {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() && a.is_finite();
    let rows = got.chunks_exact(width).zip(expected.chunks_exact(width));
    rows.filter(|(got, expected)| !got.iter().zip(*expected).all(same)).count()
}
