//! Projections: what trunk and head are made of.

use gaterail_cluster::predict::Compute;
use gaterail_kernels::ops::{self, Projection, QuantRows};
use gaterail_kernels::{Buffer, Device, KernelError, Stream, View, ViewMut, Weight};

use super::kind::any_bytes;
use super::{COLD_BYTES, Kind, compute, usual_seconds};

/// Rows of a matrix: as many as a projection of attention has.
const OUT: usize = 2048;
/// A longer row says nothing more.
const COLS_MAX: usize = 8192;
/// Matrices of one measurement.
const TOGETHER: usize = 4;

/// Products of rows of `cols` with weights of that kind.
pub fn products(device: &Device, kind: Kind, cols: usize) -> Result<Compute, KernelError> {
    let cols = cols.min(COLS_MAX);
    let size = kind.bytes(OUT, cols);
    let matrices = (COLD_BYTES / size).clamp(TOGETHER, 512).next_multiple_of(TOGETHER);
    let bytes = any_bytes(size * matrices);
    let weights: Vec<Weight> =
        (0..matrices).map(|i| kind.weight(bytes.slice(i * size..(i + 1) * size), OUT, cols)).collect();
    let mut turn = weights.chunks(TOGETHER).cycle();
    let stream = Stream::new(device);
    let mut failed = None;
    let mut seconds = |rows: usize| match buffers(device, &stream, rows, cols) {
        Err(error) => {
            failed = Some(error);
            1.0
        }
        Ok((x, mut quantized, mut y)) => usual_seconds(|| {
            // All of them, in turns, for ever.
            for w in turn.next().into_iter().flatten() {
                let out = ViewMut::rows(&mut y, rows, OUT);
                let x = View::rows(&x, rows, cols);
                ops::project(&stream, x, &mut quantized, &mut [Projection { w, bias: None, out }]);
            }
        }),
    };
    let operations = (TOGETHER * 2 * OUT * cols) as f64;
    let found = compute((TOGETHER * size) as f64, operations, &mut seconds);
    failed.map_or(Ok(found), Err)
}

type Buffers = (Buffer<f32>, QuantRows, Buffer<f32>);

fn buffers(device: &Device, stream: &Stream, rows: usize, cols: usize) -> Result<Buffers, KernelError> {
    let mut x = Buffer::zeros(device, rows * cols)?;
    stream.upload(&some_values(rows * cols), &mut x)?;
    Ok((x, QuantRows::new(device, rows, cols)?, Buffer::zeros(device, rows * OUT)?))
}

/// From -1 to 1.
pub fn some_values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37) % 201) as f32 / 100.0 - 1.0).collect()
}
