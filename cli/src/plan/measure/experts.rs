//! A layer's experts, so many rows for each that is hit.

use std::sync::Barrier;

use gaterail_cluster::predict::Compute;
use gaterail_kernels::ops::{
    self, Activation, ExpertPiece, ExpertPieces, ExpertsArgs, ExpertsScratch, FRACTION_BITS, PartialSums,
    UNIT_MIN, WeightOn,
};
use gaterail_kernels::{Buffer, Device, KernelError, Stream, View};

use super::kind::any_bytes;
use super::products::some_values;
use super::{COLD_BYTES, Kind, compute, usual_seconds};

/// Larger experts are measured with a part of their width.
const EXPERT_BYTES_MAX: usize = 24 << 20;
/// Experts that are hit at once, at most.
const HIT: usize = 8;
const EXPERTS_MAX: usize = 4096;

/// Experts of width `f` for rows of `h`.
pub fn experts(device: &Device, kind: Kind, shape: (usize, usize)) -> Result<Compute, KernelError> {
    together(device, kind, shape, &Barrier::new(1))
}

/// The same, measured by several at the same time: each figure begins when all are ready for it.
pub fn together(
    device: &Device,
    kind: Kind,
    (h, f): (usize, usize),
    ready: &Barrier,
) -> Result<Compute, KernelError> {
    let whole = 3 * kind.bytes(f, h);
    let part = whole.div_ceil(EXPERT_BYTES_MAX);
    let f = if part > 1 { (f / part).next_multiple_of(UNIT_MIN) } else { f };
    let (inner, down) = (kind.bytes(f, h), kind.bytes(h, f));
    let size = 2 * inner + down;
    let count = (COLD_BYTES / size).clamp(HIT, EXPERTS_MAX).next_multiple_of(HIT);
    let pieces = pieces(kind, count, (h, f));
    let stream = Stream::new(device);
    let mut turn = (0..count / HIT).cycle();
    let mut failed = None;
    let mut seconds = |rows: usize| {
        ready.wait();
        let measured = Layer::new(device, &stream, &pieces, rows, h).map(|mut layer| {
            usual_seconds(|| {
                // A cycle has no end.
                let first = turn.next().unwrap_or(0) * HIT;
                failed = layer.step(first).err().or(failed.take());
            })
        });
        measured.unwrap_or_else(|error| {
            failed = Some(error);
            1.0
        })
    };
    let found = compute((HIT * size) as f64, (HIT * 6 * h * f) as f64, &mut seconds);
    failed.map_or(Ok(found), Err)
}

fn pieces(kind: Kind, count: usize, (h, f): (usize, usize)) -> ExpertPieces {
    let (inner, down) = (kind.bytes(f, h), kind.bytes(h, f));
    let size = 2 * inner + down;
    let bytes = any_bytes(count * size);
    let piece = |expert: usize| {
        let cut = |from: usize, len: usize, rows: usize, cols: usize| {
            let start = expert * size + from;
            kind.weight(bytes.slice(start..start + len), rows, cols)
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
    };
    (0..count).map(piece).collect::<Vec<_>>().into()
}

/// Rows that all go to the same experts.
struct Layer<'a> {
    stream: &'a Stream,
    pieces: &'a ExpertPieces,
    rows: usize,
    h: usize,
    x: Buffer<f32>,
    ids: Buffer<u32>,
    weights: Buffer<f32>,
    scratch: ExpertsScratch,
    sums: PartialSums,
}

impl Layer<'_> {
    fn new<'a>(
        device: &Device,
        stream: &'a Stream,
        pieces: &'a ExpertPieces,
        rows: usize,
        h: usize,
    ) -> Result<Layer<'a>, KernelError> {
        let mut x = Buffer::zeros(device, rows * h)?;
        stream.upload(&some_values(rows * h), &mut x)?;
        let mut weights = Buffer::zeros(device, rows * HIT)?;
        stream.upload(&vec![1e-6; rows * HIT], &mut weights)?;
        Ok(Layer {
            stream,
            pieces,
            rows,
            h,
            x,
            ids: Buffer::zeros(device, rows * HIT)?,
            weights,
            scratch: ExpertsScratch::new(device)?,
            sums: PartialSums::new(device, rows, h)?,
        })
    }

    fn step(&mut self, first: usize) -> Result<(), KernelError> {
        let row = || (0..HIT).map(|at| (first + at) as u32);
        let ids: Vec<u32> = (0..self.rows).flat_map(|_| row()).collect();
        self.stream.upload(&ids, &mut self.ids)?;
        self.sums.reset(self.stream, self.rows);
        let args = ExpertsArgs {
            x: View::rows(&self.x, self.rows, self.h),
            ids: &self.ids,
            weights: &self.weights,
            top_k: HIT,
            pieces: self.pieces,
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
            unit: UNIT_MIN,
            fraction_bits: FRACTION_BITS,
        };
        ops::experts(self.stream, &args, &mut self.scratch, &mut self.sums)
    }
}
