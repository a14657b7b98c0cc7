//! A layer's experts, so many rows for each that is hit.

use gaterail_cluster::predict::Compute;
use gaterail_kernels::ops::{
    self, Activation, ExpertPiece, ExpertPieces, ExpertsArgs, ExpertsScratch, FRACTION_BITS, PartialSums,
    UNIT_MIN, WeightOn,
};
use gaterail_kernels::{Buffer, Bytes, Device, KernelError, Stream, View};

use super::kind::any_bytes;
use super::products::some_values;
use super::ready::{Member, alone};
use super::{COLD_BYTES, Kind, compute, usual_seconds};

/// Larger experts are measured with a part of their width.
const EXPERT_BYTES_MAX: usize = 24 << 20;
/// Experts of a row.
const HIT: usize = 8;
/// Where there are several rows they are so many times as many, and go to so many times as many experts: a step's rows do not
/// go to the same ones, and threads wait less for each other over many experts than over few.
const GROUPS: usize = 4;
const EXPERTS_MAX: usize = 4096;
/// Several that share weights are so far from each other in them: a cache that they share holds less.
const APART_BYTES: usize = 40 << 20;

/// Experts of width `f` for rows of `h`.
pub fn experts(device: &Device, kind: Kind, shape: (usize, usize)) -> Result<Compute, KernelError> {
    together(device, kind, shape, &weights(1, kind, shape), alone())
}

/// What `count` go through, each from another place on: they share it, but not what is in a cache at the same time.
pub fn weights(count: usize, kind: Kind, shape: (usize, usize)) -> Bytes {
    let (_, size) = taken(kind, shape);
    let bytes = COLD_BYTES.max(count * APART_BYTES);
    any_bytes((bytes / size).clamp(HIT, EXPERTS_MAX) * size)
}

/// The width that is measured, and the bytes of such an expert.
fn taken(kind: Kind, (h, f): (usize, usize)) -> (usize, usize) {
    let part = (3 * kind.bytes(f, h)).div_ceil(EXPERT_BYTES_MAX);
    let f = if part > 1 { (f / part).next_multiple_of(UNIT_MIN) } else { f };
    (f, 2 * kind.bytes(f, h) + kind.bytes(h, f))
}

/// The same with such weights, measured by several at the same time: each figure begins when all are ready for it.
pub fn together(
    device: &Device,
    kind: Kind,
    (h, f): (usize, usize),
    bytes: &Bytes,
    ready: Member,
) -> Result<Compute, KernelError> {
    let (f, size) = taken(kind, (h, f));
    let count = bytes.len() / size;
    let pieces = pieces(kind, bytes, count, (h, f));
    let stream = Stream::new(device);
    let mut first = ready.start(count);
    let mut failed = None;
    let mut seconds = |rows: usize| {
        ready.wait();
        let groups = if rows == 1 { 1 } else { GROUPS.min(count / HIT).max(1) };
        let measured = Layer::new(device, &stream, &pieces, (rows * groups, groups), h).map(|mut layer| {
            let seconds = usual_seconds(|| {
                failed = layer.step(first, count).err().or(failed.take());
                first = (first + groups * HIT) % count;
            });
            seconds / groups as f64
        });
        measured.unwrap_or_else(|error| {
            failed = Some(error);
            1.0
        })
    };
    let found = compute((HIT * size) as f64, (HIT * 6 * h * f) as f64, &mut seconds);
    failed.map_or(Ok(found), Err)
}

fn pieces(kind: Kind, bytes: &Bytes, count: usize, (h, f): (usize, usize)) -> ExpertPieces {
    let (inner, down) = (kind.bytes(f, h), kind.bytes(h, f));
    let size = 2 * inner + down;
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

/// Rows, of which every so-and-so-many-th goes to the same experts.
struct Layer<'a> {
    stream: &'a Stream,
    pieces: &'a ExpertPieces,
    rows: usize,
    groups: usize,
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
        (rows, groups): (usize, usize),
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
            groups,
            h,
            x,
            ids: Buffer::zeros(device, rows * HIT)?,
            weights,
            scratch: ExpertsScratch::new(device)?,
            sums: PartialSums::new(device, rows, h)?,
        })
    }

    /// The experts from `first` on, of so many in a circle.
    fn step(&mut self, first: usize, count: usize) -> Result<(), KernelError> {
        let row = |row: usize| {
            let begin = first + row % self.groups * HIT;
            (0..HIT).map(move |at| ((begin + at) % count) as u32)
        };
        let ids: Vec<u32> = (0..self.rows).flat_map(row).collect();
        self.stream.upload(&ids, &mut self.ids)?;
        self.sums.reset(self.stream, self.rows);
        let args = ExpertsArgs {
            x: View::rows(&self.x, self.rows, self.h).into(),
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
