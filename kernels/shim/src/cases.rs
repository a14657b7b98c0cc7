//! Random cases of every kernel against the plain reference, bit for bit, on any device: the shim in tests, a GPU in
//! `gaterail-gpu-check`. A difference panics with the case.

use std::sync::Arc;

use gaterail_kernels::cuda::*;
use gaterail_kernels::ops::{self, Activation, RopeStyle, WeightOn};
use gaterail_kernels::reference::{self, ExpertRow, RowWeight, add_expert_row, quantize_row};
use gaterail_kernels::{
    Buffer, Bytes, Codes, Device, Packed, PackedFormat, Plain, Scales, Stream, View, ViewMut,
};

/// SplitMix64; a failure prints the seed with the case.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
    /// Between -1 and 1, with many exponents.
    fn value(&mut self) -> f32 {
        let magnitude = 2f32.powi(-(self.below(12) as i32));
        ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * magnitude
    }
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// The formats of ARITHMETIC.md, 8.
fn formats() -> Vec<PackedFormat> {
    let form = |codes, scales, offsets, group| PackedFormat { codes, scales, offsets, group };
    vec![
        PackedFormat::INT4,
        PackedFormat::INT8,
        form(Codes::INT4, Scales::F16, false, 32), // Q4_0
        form(Codes::Int8, Scales::F16, false, 32), // Q8_0
        form(Codes::MXFP4, Scales::F32, false, 32),
        form(Codes::MXFP4, Scales::F16, false, 32),
        form(Codes::INT4, Scales::F16, true, 32), // GPTQ, AWQ
        form(Codes::INT4, Scales::F16, true, 64),
        form(Codes::INT4, Scales::F16, true, 128),
        form(Codes::INT4, Scales::F16, false, 128),
        // Tables with values all over i8.
        form(
            Codes::Int4 { table: [-127, -104, -83, -65, -49, -35, -22, -10, 0, 13, 25, 38, 53, 69, 89, 113] },
            Scales::F32,
            true,
            32,
        ),
    ]
}

/// Random codes and scales, in the layout of packed.rs.
fn packed(random: &mut Random, format: PackedFormat, rows: usize, cols: usize) -> Packed {
    let mut bytes: Vec<u8> = (0..format.bytes(rows, cols)).map(|_| random.next() as u8).collect();
    let strange = random.chance(60);
    for record in bytes.chunks_exact_mut(format.record()) {
        for i in 0..16 {
            let mut scale = random.value() / 32.0;
            if strange && random.chance(50) {
                scale = [0.0, 1e-7, 300.0, f32::INFINITY][random.below(4)];
            }
            match format.scales {
                Scales::F16 => {
                    record[2 * i..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                }
                Scales::F32 => record[4 * i..][..4].copy_from_slice(&scale.to_le_bytes()),
            }
            if format.offsets {
                record[format.offsets_at() + 4 * i..][..4].copy_from_slice(&random.value().to_le_bytes());
            }
        }
    }
    Packed::new(format, Bytes::copied(&bytes), rows, cols)
}

/// A row of activations: mostly plain, now and then with what quantising must take care of.
fn activations(random: &mut Random, rows: usize, width: usize) -> Vec<f32> {
    let mut x = random.values(rows * width);
    for row in x.chunks_exact_mut(width) {
        match random.below(24) {
            0 => row.fill(0.0),
            1 => row[random.below(width)] = f32::NAN,
            2 => row[random.below(width)] = f32::NEG_INFINITY,
            3 => row.iter_mut().for_each(|x| *x *= 2f32.powi(-104)),
            4 => row.iter_mut().for_each(|x| *x *= 2f32.powi(60)),
            _ => {}
        }
    }
    x
}

#[track_caller]
fn same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let equal = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(equal, "{what}: element {i} is {got:e}, the reference has {expected:e}");
    }
}

fn get<T: Plain>(queue: &CudaQueue, buffer: &DeviceBuffer<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    queue.download(buffer, 0, &mut values).expect("no fault");
    values
}

/// `quantize`: `cases` random shapes.
pub fn quantize_cases(device: &Arc<CudaDevice>, cases: usize) {
    let mut random = Random(1);
    {
        let queue = CudaQueue::new(device).expect("a queue");
        for case in 0..cases {
            let (group, rows) = ([32, 64, 128][case % 3], random.below(5));
            let (width, gap) = (1 + random.below(700), random.below(9));
            let mut x = activations(&mut random, rows.max(1), width + gap);
            if case % 5 == 0 {
                // Halves, where rounding goes to even.
                x.iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = (i % 255) as f32 - 127.0 + 0.5 * (i % 2) as f32);
            }
            let x_device = DeviceBuffer::copied(device, &x).expect("memory");
            let mut out = QuantizedBuffer::new(device, rows, width, group).expect("memory");
            let view = Strided { row_stride: width + gap, ..Strided::rows(&x_device, rows, width) };
            quantize(&queue, view, &mut out);
            queue.synchronize().expect("no fault");
            let (codes, scales, sums) =
                (get(&queue, &out.codes), get(&queue, &out.scales), get(&queue, &out.sums));
            let groups = width.div_ceil(group);
            for row in 0..rows {
                let what = format!("{device}, case {case}: {rows} x {width} by {group}, row {row}");
                let expected = quantize_row(&x[row * (width + gap)..][..width], group);
                let row_codes = &codes[row * groups * group..][..groups * group];
                assert_eq!(row_codes[..width], expected.codes, "{what}");
                assert!(row_codes[width..].iter().all(|&code| code == 0), "{what}");
                same(&what, &scales[row * groups..][..groups], &expected.scales);
                assert_eq!(sums[row * groups..][..groups], expected.sums, "{what}");
            }
        }
    }
}

/// `rms_norm` and `rope`, through the public types: buffers, views, streams and events of a GPU are those of the CPU.
pub fn norm_and_rope_cases(device: &Arc<CudaDevice>, cases: usize) {
    let mut random = Random(2);
    let device = Device::Cuda(device.clone());
    {
        let (stream, other) = (Stream::new(&device), Stream::new(&device));
        let put = |values: &[f32]| {
            let mut buffer = Buffer::zeros(&device, values.len()).expect("memory");
            stream.upload(values, &mut buffer).expect("a copy");
            buffer
        };
        let get = |buffer: &Buffer<f32>| {
            let mut values = vec![0.0; buffer.len()];
            other.wait(&stream.record());
            other.download(buffer, 0, &mut values).expect("no fault");
            stream.synchronize().expect("no fault");
            values
        };
        for case in 0..cases {
            let (rows, heads, gap) = (1 + random.below(4), 1 + random.below(3), random.below(5));
            let width = 2 * (1 + random.below(300));
            let mut x = random.values(rows * heads * (width + gap));
            let weight = random.values(width);
            let what = format!("{device}, case {case}: {rows} x {heads} x {width}");
            let (mut x_device, weight_device) = (put(&x), put(&weight));
            let mut out = Buffer::zeros(&device, rows * heads * width).expect("memory");
            let used = case % 3 != 0;
            ops::rms_norm(
                &stream,
                View::heads(&x_device, rows, heads, width + gap).columns(0, width),
                used.then_some(&weight_device),
                1e-6,
                ViewMut::heads(&mut out, rows, heads, width),
            );
            let expected: Vec<f32> = x
                .chunks_exact(width + gap)
                .flat_map(|row| reference::rms_norm_row(&row[..width], used.then_some(&weight[..]), 1e-6))
                .collect();
            same(&what, &get(&out), &expected);

            let (cos, sin) = (random.values(rows * width / 2), random.values(rows * width / 2));
            let style = [RopeStyle::Halves, RopeStyle::Pairs][case % 2];
            let (cos_device, sin_device) = (put(&cos), put(&sin));
            let view = ViewMut::heads(&mut x_device, rows, heads, width + gap).columns(0, width);
            ops::rope(&stream, style, &cos_device, &sin_device, view);
            for (i, head) in x.chunks_exact_mut(width + gap).enumerate() {
                let angles = i / heads * width / 2..(i / heads + 1) * width / 2;
                reference::rope_head(&mut head[..width], style, &cos[angles.clone()], &sin[angles]);
            }
            same(&what, &get(&x_device), &x);
        }
    }
}

/// `packed_linear`: `cases` random shapes of every format by every path.
pub fn linear_cases(device: &Arc<CudaDevice>, seed: u64, cases: usize) {
    let mut random = Random(seed);
    let queue = CudaQueue::new(device).expect("a queue");
    for case in 0..cases {
        let format = formats()[case % formats().len()];
        let (n, k) = (1 + random.below(70), 1 + random.below(10 * format.group));
        let path =
            [LinearPath::Dot, LinearPath::Eight, LinearPath::ThirtyTwo, LinearPath::Tiles, LinearPath::Auto]
                [random.below(5)];
        let most = match path {
            LinearPath::Dot => 1,
            LinearPath::Eight => 8,
            LinearPath::ThirtyTwo => 32,
            LinearPath::Tiles | LinearPath::Auto => 70,
        };
        let rows = 1 + random.below(most);
        linear_case(&mut random, &queue, format, path, (rows, n, k), &format!("{device}, case {case}"));
    }
    // Wide enough for several blocks of tiles, and for chains of several groups each.
    linear_case(&mut random, &queue, PackedFormat::INT4, LinearPath::Tiles, (33, 530, 64 * 18), "many tiles");
}

fn linear_case(
    random: &mut Random,
    queue: &CudaQueue,
    format: PackedFormat,
    path: LinearPath,
    (rows, n, k): (usize, usize, usize),
    what: &str,
) {
    let device = queue.device();
    let w = packed(random, format, n, k);
    let x = activations(random, rows, k);
    let bias = random.chance(2).then(|| random.values(n));
    let what = format!("{what}: {rows} x {k} by {n}, {path:?}, {format:?}");
    let w_device = PackedOnDevice::upload(device, &w).expect("memory");
    let x_device = DeviceBuffer::copied(device, &x).expect("memory");
    let bias_device = bias.as_ref().map(|bias| DeviceBuffer::copied(device, bias).expect("memory"));
    let gap = random.below(4);
    let out = DeviceBuffer::<f32>::copied(device, &vec![7.0; rows * (n + gap)]).expect("memory");
    let mut quantized = QuantizedBuffer::new(device, rows, k, format.group).expect("memory");
    quantize(queue, Strided::rows(&x_device, rows, k), &mut quantized);
    let view = Strided { row_stride: n + gap, ..Strided::rows(&out, rows, n) };
    packed_linear(queue, &quantized, &w_device, bias_device.as_ref(), path, view);
    queue.synchronize().unwrap_or_else(|error| panic!("{what}: {error}"));
    let out = get(queue, &out);
    for (row, x) in x.chunks_exact(k).enumerate() {
        let got = &out[row * (n + gap)..][..n + gap];
        same(&what, &got[..n], &reference::packed_linear_row(x, &w, bias.as_deref()));
        assert!(got[n..].iter().all(|&y| y == 7.0), "{what}: written between rows");
    }
}

/// One pair's terms into its row's sums; whether the row is poisoned.
fn add_pair(x: &[f32], weight: f32, piece: &PackedPiece, options: &ShardOptions, sums: &mut [i64]) -> bool {
    let row = ExpertRow {
        x,
        f: piece.gate.rows(),
        weight,
        gate: RowWeight::Packed(&piece.gate),
        up: RowWeight::Packed(&piece.up),
        down: RowWeight::Packed(&piece.down),
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
    pieces: Vec<PackedPiece>,
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
                pieces.push(PackedPiece {
                    expert: expert as u32,
                    gate: gate.row_slice(start, end - start),
                    up: up.row_slice(start, end - start),
                    down: whole.col_slice(start, end - start),
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
    let shard = ExpertsOnDevice::upload(device, &layer.pieces, width, layer.options).expect("memory");
    device.prepare(&shard.kernels()).expect("all kernels");
    let mut scratch = ExpertsScratch::new(device, &shard, rows + random.below(3), top_k).expect("memory");
    let x = DeviceBuffer::copied(device, &x).expect("memory");
    let ids = DeviceBuffer::copied(device, &ids).expect("memory");
    let weights = DeviceBuffer::copied(device, &weights).expect("memory");
    let mut sums = DeviceSums {
        sums: DeviceBuffer::copied(device, &start).expect("memory"),
        poison: DeviceBuffer::zeros(device, rows).expect("memory"),
    };
    let routing = Routing { ids: &ids, weights: &weights, top_k };
    experts(queue, &shard, Strided::rows(&x, rows, width), routing, path, &mut scratch, &mut sums);
    queue.synchronize().unwrap_or_else(|error| panic!("{what}: {error}"));
    let poison = get(queue, &sums.poison);
    assert_eq!(poison, expected_poison, "{what}: poison");
    let got = get(queue, &sums.sums);
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
        let shard = ExpertsOnDevice::upload(device, &layer.pieces, 64, layer.options).expect("memory");
        let mut scratch = ExpertsScratch::new(device, &shard, 3, 2).expect("memory");
        let x = DeviceBuffer::copied(device, &random.values(3 * 64)).expect("memory");
        let ids = DeviceBuffer::copied(device, &[1, 9, 1, 4_000_000_000, 0, 0]).expect("memory");
        let weights = DeviceBuffer::copied(device, &[1.0f32; 6]).expect("memory");
        let start: Vec<i64> = (0..3 * 64).map(|i| i * 7 - 100).collect();
        let mut sums = DeviceSums {
            sums: DeviceBuffer::copied(device, &start).expect("memory"),
            poison: DeviceBuffer::zeros(device, 3).expect("memory"),
        };
        let routing = Routing { ids: &ids, weights: &weights, top_k: 2 };
        experts(&queue, &shard, Strided::rows(&x, 3, 64), routing, path, &mut scratch, &mut sums);
        queue.synchronize().expect("no fault");
        assert_eq!(get(&queue, &sums.poison), [0, 0, 1]);
        assert_eq!(get(&queue, &sums.sums)[..128], start[..128]);
    }
}

/// A form without a kernel is a clear error.
pub fn form_without_kernel(device: &Arc<CudaDevice>) {
    let mut random = Random(9);
    let format = PackedFormat { group: 128, ..PackedFormat::INT8 };
    let w = packed(&mut random, format, 16, 128);
    let queue = CudaQueue::new(device).expect("a queue");
    let w = PackedOnDevice::upload(device, &w).expect("memory");
    let x = QuantizedBuffer::new(device, 0, 128, 128).expect("memory");
    let out = DeviceBuffer::zeros(device, 0).expect("memory");
    packed_linear(&queue, &x, &w, None, LinearPath::Auto, Strided::rows(&out, 0, 16));
    let error = queue.synchronize().expect_err("no form").to_string();
    assert!(error.starts_with("the kernels have no form for PackedFormat"), "{error}");
}
