//! `experts`: the weighted outputs of a shard's experts for a batch of rows, as 64-bit fixed-point partial sums.
//!
//! x `[T, H]` f32, routing ids and weights `[T, K]`. A piece is a run of canonical units of one expert: gate and up
//! `[f, H]`, down `[H, f]`. Sums `[T, H]` i64 and a poison flag per row. Partial sums of any shards add up to the same
//! integers (ARITHMETIC.md, 6). Threads share out rows of gate and up first, output columns then: no atomics but flags.

use super::{Activation, QuantRows, quantize, run_of};
use crate::buffer::Buffer;
use crate::cpu;
use crate::device::Device;
use crate::error::KernelError;
use crate::stream::Stream;
use crate::view::{View, ViewMut};
use crate::weight::Weight;

/// The least length of a canonical unit along F.
pub const UNIT_MIN: usize = 128;
/// Fraction bits of the fixed-point sums, unless a model's scale asks for another number.
pub const FRACTION_BITS: u32 = 24;

/// The length of a canonical unit for weights that come in groups of `group` along F (1: no groups).
pub fn unit_length(group: usize) -> usize {
    group * UNIT_MIN.div_ceil(group)
}

/// Where a gate's weight goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightOn {
    /// On the expert's output.
    Output,
    /// On the expert's input (Llama 4).
    Input,
}

/// A run of canonical units of one expert.
#[derive(Clone, Debug)]
pub struct ExpertPiece {
    pub expert: u32,
    /// `[f, H]`
    pub gate: Weight,
    /// `[f, H]`
    pub up: Weight,
    /// `[H, f]`
    pub down: Weight,
    /// `[f]`
    pub gate_bias: Option<Vec<f32>>,
    /// `[f]`
    pub up_bias: Option<Vec<f32>>,
    /// `[H]`, in the piece that holds unit 0 and in no other.
    pub down_bias: Option<Vec<f32>>,
}

impl ExpertPiece {
    /// Whether its matrices and biases belong together and to rows of `width`.
    fn fits(&self, width: usize) -> bool {
        let f = self.gate.rows();
        let bias =
            |bias: &Option<Vec<f32>>, length: usize| bias.as_ref().is_none_or(|bias| bias.len() == length);
        (self.gate.cols(), self.up.rows(), self.up.cols()) == (width, f, width)
            && (self.down.rows(), self.down.cols()) == (width, f)
            && bias(&self.gate_bias, f)
            && bias(&self.up_bias, f)
            && bias(&self.down_bias, width)
    }
}

/// The work of one layer on one shard.
pub struct ExpertsArgs<'a> {
    /// `[T, H]`
    pub x: View<'a>,
    /// `[T, K]`
    pub ids: &'a Buffer<u32>,
    /// `[T, K]`
    pub weights: &'a Buffer<f32>,
    pub top_k: usize,
    pub pieces: &'a [ExpertPiece],
    pub activation: Activation,
    pub weight_on: WeightOn,
    /// The length of a unit along F.
    pub unit: usize,
    pub fraction_bits: u32,
}

/// Fixed-point sums on their way home: `[T, H]` and a flag per row.
pub struct PartialSums {
    sums: Buffer<i64>,
    poison: Buffer<u32>,
    rows: usize,
    width: usize,
}

impl PartialSums {
    /// Zeroes, with room for `rows` rows of `width`.
    pub fn new(device: &Device, rows: usize, width: usize) -> Result<PartialSums, KernelError> {
        let sums = Buffer::zeros(device, rows * width)?;
        Ok(PartialSums { sums, poison: Buffer::zeros(device, rows)?, rows, width })
    }

    /// Whether it has room for these rows.
    pub fn fits(&self, rows: usize, width: usize) -> bool {
        self.width == width && rows <= self.poison.len()
    }

    /// Starts over with `rows` zero rows.
    pub fn reset(&mut self, stream: &Stream, rows: usize) {
        let _ = stream.cpu();
        assert!(rows <= self.poison.len(), "partial sums: rows");
        self.rows = rows;
        self.sums.host_mut()[..rows * self.width].fill(0);
        self.poison.host_mut()[..rows].fill(0);
    }
}

/// What shards' partial sums go through.
pub mod partial_sums {
    use super::*;

    /// to <- to + from
    pub fn add(stream: &Stream, from: &PartialSums, to: &mut PartialSums) {
        let _ = stream.cpu();
        assert_eq!((from.rows, from.width), (to.rows, to.width), "partial sums: shapes");
        let n = from.rows * from.width;
        for (to, from) in to.sums.host_mut()[..n].iter_mut().zip(&from.sums.host()[..n]) {
            // Sums of poisoned rows may be anything.
            *to = to.wrapping_add(*from);
        }
        for (to, from) in to.poison.host_mut().iter_mut().zip(&from.poison.host()[..from.rows]) {
            *to |= from;
        }
    }

    /// out <- the sums as f32; poisoned rows are NaN.
    pub fn finish(stream: &Stream, sums: &PartialSums, fraction_bits: u32, mut out: ViewMut<'_>) {
        let at = out.layout();
        assert!((at.rows, at.width) == (sums.rows, sums.width) && at.heads == 1, "partial sums: out");
        let cpu = stream.cpu();
        let shared = out.shared();
        let unit = 1.0 / (1u64 << fraction_bits) as f64;
        let parts = cpu.parts_for(at.rows, at.rows * at.width / 4);
        cpu.pool.run(parts, &|part| {
            for row in run_of(at.rows, parts, part) {
                // SAFETY: parts have rows of their own.
                let out = unsafe { shared.slice(row, 0, 0, at.width) };
                let poisoned = sums.poison.host()[row] != 0;
                cpu::experts::finish_row(cpu.isa, &sums.sums.host()[row * at.width..], unit, poisoned, out);
            }
        });
    }
}

/// What `experts` keeps between calls: rows in int8, and who computes which.
pub struct ExpertsScratch {
    x: QuantRows,
    plan: cpu::packed_experts::Plan,
}

impl ExpertsScratch {
    /// Nothing yet; it grows with the first batches.
    pub fn new(device: &Device) -> Result<ExpertsScratch, KernelError> {
        Ok(ExpertsScratch { x: QuantRows::new(device, 0, 0)?, plan: Default::default() })
    }
}

/// Adds what the pieces contribute to `sums`.
pub fn experts(
    stream: &Stream,
    args: &ExpertsArgs<'_>,
    scratch: &mut ExpertsScratch,
    sums: &mut PartialSums,
) -> Result<(), KernelError> {
    let at = args.x.layout();
    assert!((at.rows, at.width) == (sums.rows, sums.width) && at.heads == 1, "experts: x");
    assert!(at.rows * args.top_k <= args.ids.len().min(args.weights.len()), "experts: routing");
    assert!(args.pieces.iter().all(|piece| piece.fits(at.width)), "experts: a piece's shape");
    let Some(first) = args.pieces.first() else { return Ok(()) };
    let Some(packed) = first.gate.packed() else {
        let (values, poison) = (sums.sums.host_mut(), sums.poison.host_mut());
        cpu::experts::add_pieces(stream.cpu(), args, values, poison);
        return Ok(());
    };
    assert_eq!(args.unit, UNIT_MIN, "experts: packed groups divide the unit");
    let group = packed.format().group;
    let alike = |w: &Weight| w.packed().is_some_and(|w| w.format().group == group);
    assert!(
        args.pieces.iter().all(|piece| alike(&piece.gate) && alike(&piece.up)),
        "experts: gates and ups in groups of one size"
    );
    if !scratch.x.has_room(at.rows, at.width) {
        scratch.x = QuantRows::new(stream.device(), at.rows, at.width)?;
    }
    quantize(stream, args.x, group, &mut scratch.x);
    let (values, poison) = (sums.sums.host_mut(), sums.poison.host_mut());
    let x = scratch.x.set();
    cpu::packed_experts::add_packed_pieces(stream.cpu(), args, x, &mut scratch.plan, values, poison);
    Ok(())
}
