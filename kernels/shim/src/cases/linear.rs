//! Products of rows with packed and with plain weights.

use std::sync::Arc;

use gaterail_kernels::cuda::{
    CudaDevice, CudaQueue, DeviceBuffer, LinearPath, PackedOnDevice, QuantizedBuffer, Strided, packed_linear,
    quantize,
};
use gaterail_kernels::ops::{self, Projection, QuantRows};
use gaterail_kernels::{
    Bytes, Device, ElementType, Matrix, MatrixData, PackedFormat, Stream, View, ViewMut, Weight, reference,
};

use super::{Random, activations, fetch, formats, get, packed, put, same};

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
    let quantized = QuantizedBuffer::new(device, rows, k, format.group).expect("memory");
    let quantized = quantized.rows(rows, k, format.group);
    quantize(queue, Strided::rows(&x_device, rows, k), quantized);
    let view = Strided { row_stride: n + gap, ..Strided::rows(&out, rows, n) };
    packed_linear(queue, quantized, &w_device, bias_device.as_ref(), path, view);
    queue.synchronize().unwrap_or_else(|error| panic!("{what}: {error}"));
    let out = get(queue, &out);
    for (row, x) in x.chunks_exact(k).enumerate() {
        let got = &out[row * (n + gap)..][..n + gap];
        same(&what, &got[..n], &reference::packed_linear_row(x, &w, bias.as_deref()));
        assert!(got[n..].iter().all(|&y| y == 7.0), "{what}: written between rows");
    }
}

/// A form without a kernel is a clear error.
pub fn form_without_kernel(device: &Arc<CudaDevice>) {
    let mut random = Random(9);
    let format = PackedFormat { group: 128, ..PackedFormat::INT8 };
    let w = packed(&mut random, format, 16, 128);
    let queue = CudaQueue::new(device).expect("a queue");
    let w = PackedOnDevice::upload(device, &w).expect("memory");
    let room = QuantizedBuffer::new(device, 0, 128, 128).expect("memory");
    let out = DeviceBuffer::zeros(device, 0).expect("memory");
    packed_linear(&queue, room.rows(0, 128, 128), &w, None, LinearPath::Auto, Strided::rows(&out, 0, 16));
    let error = queue.synchronize().expect_err("no form").to_string();
    assert_eq!(error, "the kernels have no form for 8-bit codes in groups of 128");
}

/// `project` with plain weights: `cases` random shapes of every stored form.
pub fn plain_linear_cases(device: &Device, cases: usize) {
    let mut random = Random(11);
    let stream = Stream::new(device);
    for case in 0..cases {
        let (rows, n, k) = (1 + random.below(20), 1 + random.below(70), 1 + random.below(300));
        let values = random.values(n * k);
        let halves =
            |round: fn(f32) -> u16| -> Vec<u16> { values.iter().map(|&value| round(value)).collect() };
        let (kind, elements) = match case % 3 {
            0 => (ElementType::F32, Bytes::copied(&values)),
            1 => (ElementType::F16, Bytes::copied(&halves(|value| half::f16::from_f32(value).to_bits()))),
            _ => (ElementType::Bf16, Bytes::copied(&halves(|value| half::bf16::from_f32(value).to_bits()))),
        };
        let matrix = Matrix::new(MatrixData::Plain { kind, elements }, n, k);
        // A part of a matrix comes alone.
        let (first, step) = (random.below(n), 1 + random.below(2));
        let matrix = matrix.row_slice(first, step, (n - first).div_ceil(step));
        let first = random.below(k);
        let matrix = matrix.col_slice(first, k - first);
        let (n, k) = (matrix.rows(), matrix.cols());
        let mut w = vec![0.0; n * k];
        w.chunks_exact_mut(k).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
        let x = random.values(rows * k);
        let bias = random.chance(2).then(|| random.values(n));
        let weight = Weight::from(matrix).on(device).expect("memory");
        let bias_here = bias.as_ref().map(|bias| put(&stream, bias));
        let (x_here, mut out) = (put(&stream, &x), put(&stream, &vec![0.0; rows * n]));
        let to = ViewMut::rows(&mut out, rows, n);
        let mut unused = QuantRows::new(device, 0, 0).expect("memory");
        let product = Projection { w: &weight, bias: bias_here.as_ref(), out: to };
        ops::project(&stream, View::rows(&x_here, rows, k), &mut unused, &mut [product]);
        let twin = |x: &[f32]| reference::linear_row(x, &w, bias.as_deref());
        let expected: Vec<f32> = x.chunks_exact(k).flat_map(twin).collect();
        let what = format!("{device}, case {case}: {rows} x {k} by {n}, {kind:?}");
        same(&what, &fetch(&stream, &out), &expected);
    }
}
