//! `experts`, way by way.

use std::sync::Arc;

use gaterail_kernels::cuda::{
    CudaDevice, CudaQueue, DeviceBuffer, ExpertsBatch, ExpertsOnDevice, ExpertsScratch, Path,
    QuantizedBuffer, ShardOptions, Strided, SumsOnDevice, experts, quantize,
};
use gaterail_kernels::ops::{Activation, ExpertPiece, WeightOn};
use gaterail_kernels::reference::{ExpertRow, RowWeight, add_expert_row};
use gaterail_kernels::{PackedFormat, Scales, Weight};

use super::{Random, activations, formats, get, packed};

/// Rows in int8 on a device.
fn quantized(queue: &CudaQueue, x: &[f32], (rows, width): (usize, usize), group: usize) -> QuantizedBuffer {
    let from = DeviceBuffer::copied(queue.device(), x).expect("memory");
    let room = QuantizedBuffer::new(queue.device(), rows, width, group).expect("memory");
    quantize(queue, Strided::rows(&from, rows, width), room.rows(rows, width, group));
    queue.synchronize().expect("no fault");
    room
}

fn row_weight(weight: &Weight) -> RowWeight<'_> {
    RowWeight::Packed(weight.packed().expect("packed experts"))
}

/// One pair's terms into its row's sums; whether the row is poisoned.
fn add_pair(x: &[f32], weight: f32, piece: &ExpertPiece, options: &ShardOptions, sums: &mut [i64]) -> bool {
    let row = ExpertRow {
        x,
        f: piece.gate.rows(),
        weight,
        gate: row_weight(&piece.gate),
        up: row_weight(&piece.up),
        down: row_weight(&piece.down),
        gate_bias: piece.gate_bias.as_deref(),
        up_bias: piece.up_bias.as_deref(),
        down_bias: piece.down_bias.as_deref(),
        activation: options.activation,
        weight_on: options.weight_on,
        unit: options.unit,
        fraction_bits: options.fraction_bits,
    };
    add_expert_row(&row, sums)
}

/// A layer's experts, cut into pieces at random, some of which are elsewhere.
struct Layer {
    pieces: Vec<ExpertPiece>,
    options: ShardOptions,
    width: usize,
    experts: usize,
}

fn layer(
    random: &mut Random,
    (inner, down): (PackedFormat, PackedFormat),
    (width, f): (usize, usize),
    experts: usize,
) -> Layer {
    let activation = if random.chance(2) {
        Activation::SwiGlu
    } else {
        Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 }
    };
    let weight_on = if random.chance(4) { WeightOn::Input } else { WeightOn::Output };
    let options = ShardOptions {
        activation,
        weight_on,
        unit: gaterail_kernels::ops::unit_length(down.group),
        fraction_bits: [24, 24, 20, 30][random.below(4)],
    };
    let biased = random.chance(2);
    let mut pieces = Vec::new();
    for expert in 0..experts {
        // Scales and offsets are each matrix' own.
        let other = |random: &mut Random, format: PackedFormat| {
            let scales = [Scales::F16, Scales::F32][random.below(2)];
            let varied = PackedFormat { scales, offsets: random.chance(2), ..format };
            if random.chance(3) { varied } else { format }
        };
        let (gate, up) = (other(random, inner), other(random, inner));
        let (gate, up) = (packed(random, gate, f, width), packed(random, up, f, width));
        let whole = other(random, down);
        let whole = packed(random, whole, width, f);
        let bias = |random: &mut Random, n| biased.then(|| random.values(n));
        let (gate_bias, up_bias, down_bias) = (bias(random, f), bias(random, f), bias(random, width));
        let units = f.div_ceil(options.unit);
        let mut first = 0;
        while first < units {
            let count = 1 + random.below(units - first);
            let (start, end) = (first * options.unit, ((first + count) * options.unit).min(f));
            let part = |bias: &Option<Vec<f32>>| bias.as_ref().map(|bias| bias[start..end].to_vec());
            if !random.chance(4) {
                pieces.push(ExpertPiece {
                    expert: expert as u32,
                    gate: gate.row_slice(start, end - start).into(),
                    up: up.row_slice(start, end - start).into(),
                    down: whole.col_slice(start, end - start).into(),
                    gate_bias: part(&gate_bias),
                    up_bias: part(&up_bias),
                    down_bias: down_bias.clone().filter(|_| first == 0),
                });
            }
            first += count;
        }
    }
    if pieces.is_empty() {
        return layer(random, (inner, down), (width, f), experts);
    }
    // Any order: the launcher sorts.
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, random.below(i + 1));
    }
    Layer { pieces, options, width, experts }
}

/// The rows that were compared, and those that were poisoned.
struct Compared {
    whole: usize,
    poisoned: usize,
}

fn experts_case(
    random: &mut Random,
    queue: &CudaQueue,
    layer: &Layer,
    (rows, top_k): (usize, usize),
    path: Path,
    what: &str,
) -> Compared {
    let device = queue.device();
    let width = layer.width;
    let mut x = activations(random, rows, width);
    if random.chance(12) {
        x.iter_mut().for_each(|x| *x *= 1e6);
    }
    let mut weights: Vec<f32> = (0..rows * top_k).map(|_| random.value().abs()).collect();
    if random.chance(12) {
        weights[random.below(rows * top_k)] = f32::NAN;
    }
    let popular = random.below(layer.experts);
    let mut ids = Vec::new();
    for _ in 0..rows {
        let mut all: Vec<u32> = (0..layer.experts as u32).collect();
        for i in 0..top_k {
            let j = i + random.below(layer.experts - i);
            all.swap(i, j);
        }
        // Some experts get nearly all rows, so that others get none.
        if !random.chance(4)
            && let Some(at) = all.iter().position(|&id| id == popular as u32)
        {
            all.swap(0, at);
        }
        ids.extend_from_slice(&all[..top_k]);
    }

    let start: Vec<i64> = (0..rows * width).map(|_| (random.next() as i64) >> 20).collect();
    let mut expected = start.clone();
    let mut expected_poison = vec![0u32; rows];
    for row in 0..rows {
        let x_row = &x[row * width..][..width];
        for choice in row * top_k..(row + 1) * top_k {
            for piece in layer.pieces.iter().filter(|piece| piece.expert == ids[choice]) {
                let sums = &mut expected[row * width..][..width];
                expected_poison[row] |=
                    u32::from(add_pair(x_row, weights[choice], piece, &layer.options, sums));
            }
        }
    }

    let what = format!("{what}: {rows} rows of {width}, {path:?}, {:?}", layer.options);
    let shard = ExpertsOnDevice::upload(device, &layer.pieces).expect("memory");
    device.prepare(&shard.kernels()).expect("all kernels");
    let mut scratch = ExpertsScratch::new(device).expect("memory");
    scratch.make_room(&shard, rows + random.below(3), top_k).expect("memory");
    let x = quantized(queue, &x, (rows, width), shard.group());
    let ids = DeviceBuffer::copied(device, &ids).expect("memory");
    let weights = DeviceBuffer::copied(device, &weights).expect("memory");
    let (sums, poison) = (DeviceBuffer::copied(device, &start), DeviceBuffer::zeros(device, rows));
    let (sums, poison) = (sums.expect("memory"), poison.expect("memory"));
    let x = x.rows(rows, width, shard.group());
    let batch = ExpertsBatch { x, ids: &ids, weights: &weights, top_k, options: layer.options, path };
    experts(queue, &shard, &batch, &mut scratch, SumsOnDevice { sums: &sums, poison: &poison });
    queue.synchronize().unwrap_or_else(|error| panic!("{what}: {error}"));
    let poison = get(queue, &poison);
    assert_eq!(poison, expected_poison, "{what}: poison");
    let got = get(queue, &sums);
    for row in (0..rows).filter(|&row| poison[row] == 0) {
        let columns = row * width..(row + 1) * width;
        assert_eq!(got[columns.clone()], expected[columns], "{what}: row {row}");
    }
    let poisoned = poison.iter().filter(|&&flag| flag != 0).count();
    Compared { whole: rows - poisoned, poisoned }
}

/// What random experts are like.
#[derive(Clone, Copy, Debug)]
pub struct ExpertCases<'a> {
    pub seed: u64,
    pub cases: usize,
    pub most_rows: usize,
    pub paths: &'a [Path],
}

/// `experts`: random shards, shapes, formats and routings. Panics too if hardly a row could be compared.
pub fn experts_cases(
    device: &Arc<CudaDevice>,
    ExpertCases { seed, cases, most_rows, paths }: ExpertCases<'_>,
) {
    let mut random = Random(seed);
    let queue = CudaQueue::new(device).expect("a queue");
    let (mut whole, mut poisoned) = (0, 0);
    for case in 0..cases {
        let all = formats();
        let inner = all[random.below(all.len())];
        let down = if random.chance(2) { inner } else { all[random.below(all.len())] };
        let (width, f) = (1 + random.below(150), 1 + random.below(300));
        let experts = 2 + random.below(6);
        let layer = layer(&mut random, (inner, down), (width, f), experts);
        let rows = 1 + random.below(most_rows);
        let path = paths[random.below(paths.len())];
        let top_k = 1 + random.below(experts.min(4));
        let what = format!("{device}, seed {seed}, case {case}: {inner:?}, {down:?}, F {f}");
        let compared = experts_case(&mut random, &queue, &layer, (rows, top_k), path, &what);
        whole += compared.whole;
        poisoned += compared.poisoned;
    }
    // Most random rows must be comparable, and some not.
    assert!(whole > poisoned && poisoned > 0, "{whole} rows compared, {poisoned} poisoned");
}

/// `experts` of more rows than fit any tile.
pub fn experts_of_many_rows(device: &Arc<CudaDevice>, rows: usize) {
    let mut random = Random(7);
    let queue = CudaQueue::new(device).expect("a queue");
    let layer = layer(&mut random, (PackedFormat::INT4, PackedFormat::INT4), (48, 40), 24);
    let compared = experts_case(&mut random, &queue, &layer, (rows, 2), Path::Auto, "many rows");
    assert!(compared.whole > rows / 2 && compared.poisoned > 0);
}

/// A row that names no expert of the shard keeps its sums; one that names an expert twice is poisoned.
pub fn rows_without_an_expert(device: &Arc<CudaDevice>) {
    let mut random = Random(8);
    for path in [Path::Auto, Path::Tiles] {
        let queue = CudaQueue::new(device).expect("a queue");
        let mut layer = layer(&mut random, (PackedFormat::INT8, PackedFormat::INT4), (64, 128), 3);
        layer.pieces.retain(|piece| piece.expert != 1);
        let shard = ExpertsOnDevice::upload(device, &layer.pieces).expect("memory");
        let mut scratch = ExpertsScratch::new(device).expect("memory");
        scratch.make_room(&shard, 3, 2).expect("memory");
        let x = quantized(&queue, &random.values(3 * 64), (3, 64), shard.group());
        let ids = DeviceBuffer::copied(device, &[1, 9, 1, 4_000_000_000, 0, 0]).expect("memory");
        let weights = DeviceBuffer::copied(device, &[1.0f32; 6]).expect("memory");
        let start: Vec<i64> = (0..3 * 64).map(|i| i * 7 - 100).collect();
        let (sums, poison) = (DeviceBuffer::copied(device, &start), DeviceBuffer::zeros(device, 3));
        let (sums, poison) = (sums.expect("memory"), poison.expect("memory"));
        let x = x.rows(3, 64, shard.group());
        let batch = ExpertsBatch { x, ids: &ids, weights: &weights, top_k: 2, options: layer.options, path };
        experts(&queue, &shard, &batch, &mut scratch, SumsOnDevice { sums: &sums, poison: &poison });
        queue.synchronize().expect("no fault");
        assert_eq!(get(&queue, &poison), [0, 0, 1]);
        assert_eq!(get(&queue, &sums)[..128], start[..128]);
    }
}
