//! `experts`: the weighted outputs of a shard's experts for a batch of rows, as 64-bit fixed-point partial sums.
//!
//! x `[T, H]` f32, routing ids and weights `[T, K]`. A piece is a run of canonical units of one expert: gate and up
//! `[f, H]`, down `[H, f]`. Sums `[T, H]` i64 and a poison flag per row. Partial sums of any shards add up to the same
//! integers (ARITHMETIC.md, 6). Threads share out rows of gate and up first, output columns then: no atomics but flags.

use std::sync::atomic::{AtomicU32, Ordering};

use super::linear::{Tokens, rows_dot};
use super::{Activation, parts_for, run_of};
use crate::buffer::Buffer;
use crate::cpu::experts::{Terms, add_terms};
use crate::cpu::linear::Out;
use crate::cpu::rows::{activation_row, add_row};
use crate::device::{CpuDevice, Device};
use crate::error::KernelError;
use crate::matrix::Matrix;
use crate::stream::Stream;
use crate::view::{SharedSlice, View, ViewMut};

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
    pub gate: Matrix,
    /// `[f, H]`
    pub up: Matrix,
    /// `[H, f]`
    pub down: Matrix,
    /// `[f]`
    pub gate_bias: Option<Vec<f32>>,
    /// `[f]`
    pub up_bias: Option<Vec<f32>>,
    /// `[H]`, in the piece that holds unit 0 and in no other.
    pub down_bias: Option<Vec<f32>>,
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
            *to += from;
        }
        for (to, from) in to.poison.host_mut().iter_mut().zip(&from.poison.host()[..from.rows]) {
            *to |= from;
        }
    }

    /// out <- the sums as f32; poisoned rows are NaN.
    pub fn finish(stream: &Stream, sums: &PartialSums, fraction_bits: u32, mut out: ViewMut<'_>) {
        let at = out.layout();
        assert!((at.rows, at.width) == (sums.rows, sums.width) && at.heads == 1, "partial sums: out");
        let _ = stream.cpu();
        let shared = out.shared();
        let unit = 1.0 / (1u64 << fraction_bits) as f64;
        for row in 0..at.rows {
            // SAFETY: one thread.
            let out = unsafe { shared.slice(row, 0, 0, at.width) };
            if sums.poison.host()[row] != 0 {
                out.fill(f32::NAN);
                continue;
            }
            for (y, &sum) in out.iter_mut().zip(&sums.sums.host()[row * at.width..]) {
                *y = (sum as f64 * unit) as f32;
            }
        }
    }
}

/// Adds what the pieces contribute to `sums`.
pub fn experts(stream: &Stream, args: &ExpertsArgs<'_>, sums: &mut PartialSums) {
    let at = args.x.layout();
    assert!((at.rows, at.width) == (sums.rows, sums.width) && at.heads == 1, "experts: x");
    assert!(at.rows * args.top_k <= args.ids.len(), "experts: routing");
    let cpu = stream.cpu();
    let jobs = jobs(args, at.rows);
    let hidden: Vec<Vec<f32>> = gate_up(cpu, args, &jobs);
    down(cpu, args, &jobs, &hidden, sums);
}

/// A piece with the rows that chose its expert.
struct Job<'a> {
    piece: &'a ExpertPiece,
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// `[rows, H]`, gathered.
    x: Vec<f32>,
}

fn jobs<'a>(args: &ExpertsArgs<'a>, rows: usize) -> Vec<Job<'a>> {
    let (ids, weights) = (args.ids.host(), args.weights.host());
    let mut jobs = Vec::new();
    for piece in args.pieces {
        assert_eq!(piece.gate.cols(), args.x.layout().width, "experts: a piece's width");
        let mut job = Job { piece, rows: Vec::new(), weights: Vec::new(), x: Vec::new() };
        for row in 0..rows {
            for k in 0..args.top_k {
                if ids[row * args.top_k + k] == piece.expert {
                    job.rows.push(row as u32);
                    job.weights.push(weights[row * args.top_k + k]);
                    job.x.extend_from_slice(args.x.slice(row, 0));
                }
            }
        }
        if !job.rows.is_empty() {
            jobs.push(job);
        }
    }
    jobs
}

/// `a = activation(gate, up)` of every job, `[rows, f]` each.
fn gate_up(cpu: &CpuDevice, args: &ExpertsArgs<'_>, jobs: &[Job<'_>]) -> Vec<Vec<f32>> {
    const RUN: usize = 32;
    let mut gates: Vec<Vec<f32>> =
        jobs.iter().map(|job| vec![0.0; job.rows.len() * job.piece.gate.rows()]).collect();
    let mut ups = gates.clone();
    let shared: Vec<_> =
        gates.iter_mut().zip(&mut ups).map(|(g, u)| (SharedSlice::new(g), SharedSlice::new(u))).collect();
    let runs: Vec<(usize, usize)> = (0..jobs.len())
        .flat_map(|job| (0..jobs[job].piece.gate.rows()).step_by(RUN).map(move |start| (job, start)))
        .collect();
    let work: usize = jobs.iter().map(|job| job.x.len() * job.piece.gate.rows() / 2).sum();
    let parts = parts_for(cpu.pool.threads(), runs.len(), work);
    cpu.pool.run(parts, &|part| {
        for &(index, start) in &runs[run_of(runs.len(), parts, part)] {
            let (job, (gate, up)) = (&jobs[index], &shared[index]);
            let count = RUN.min(job.piece.gate.rows() - start);
            gate_up_run(cpu, args, job, start..start + count, gate, up);
        }
    });
    gates
}

fn gate_up_run(
    cpu: &CpuDevice,
    args: &ExpertsArgs<'_>,
    job: &Job<'_>,
    run: std::ops::Range<usize>,
    gate: &SharedSlice<f32>,
    up: &SharedSlice<f32>,
) {
    let (f, h) = (job.piece.gate.rows(), job.piece.gate.cols());
    let tokens = Tokens { x: &job.x, stride: h, count: job.rows.len() };
    for (matrix, out) in [(&job.piece.gate, gate), (&job.piece.up, up)] {
        // SAFETY: this run of columns belongs to this call alone.
        let pointer = unsafe { out.range(run.start, run.len()) }.as_mut_ptr();
        let part = matrix.row_slice(run.start, 1, run.len());
        rows_dot(cpu.isa, tokens, &part, Out { pointer, token_stride: f, row_stride: 1 });
    }
    for (row, &weight) in job.weights.iter().enumerate() {
        // SAFETY: as above.
        let (g, u) =
            unsafe { (gate.range(row * f + run.start, run.len()), up.range(row * f + run.start, run.len())) };
        if args.weight_on == WeightOn::Input {
            g.iter_mut().chain(u.iter_mut()).for_each(|v| *v *= weight);
        }
        if let Some(bias) = &job.piece.gate_bias {
            add_row(cpu.isa, g, &bias[run.clone()]);
        }
        if let Some(bias) = &job.piece.up_bias {
            add_row(cpu.isa, u, &bias[run.clone()]);
        }
        activation_row(cpu.isa, args.activation, g, u);
    }
}

/// Adds all units' terms to the sums, a run of output columns per part.
fn down(
    cpu: &CpuDevice,
    args: &ExpertsArgs<'_>,
    jobs: &[Job<'_>],
    hidden: &[Vec<f32>],
    sums: &mut PartialSums,
) {
    const RUN: usize = 32;
    let width = sums.width;
    let work: usize = hidden.iter().map(|a| a.len() * width / 4).sum();
    let runs = width.div_ceil(RUN);
    let parts = parts_for(cpu.pool.threads(), runs, work);
    let poison: Vec<AtomicU32> = (0..sums.rows).map(|_| AtomicU32::new(0)).collect();
    let shared = SharedSlice::new(sums.sums.host_mut());
    cpu.pool.run(parts, &|part| {
        let mut y = Vec::new();
        for run in run_of(runs, parts, part) {
            let columns = run * RUN..((run + 1) * RUN).min(width);
            for (job, hidden) in jobs.iter().zip(hidden) {
                down_run(cpu, args, job, hidden, columns.clone(), width, &mut y, &shared, &poison);
            }
        }
    });
    for (flag, poison) in sums.poison.host_mut().iter_mut().zip(&poison) {
        *flag |= poison.load(Ordering::Relaxed);
    }
}

#[allow(clippy::too_many_arguments)]
fn down_run(
    cpu: &CpuDevice,
    args: &ExpertsArgs<'_>,
    job: &Job<'_>,
    hidden: &[f32],
    columns: std::ops::Range<usize>,
    width: usize,
    y: &mut Vec<f32>,
    sums: &SharedSlice<i64>,
    poison: &[AtomicU32],
) {
    let f = job.piece.gate.rows();
    let n = columns.len();
    y.resize(job.rows.len() * n, 0.0);
    let add = |token: usize, y: &[f32]| {
        let row = job.rows[token] as usize;
        let weight = (args.weight_on == WeightOn::Output).then_some(job.weights[token]);
        // SAFETY: these columns belong to this part alone.
        let sums = unsafe { sums.range(row * width + columns.start, n) };
        let mut poisoned = false;
        add_terms(cpu.isa, Terms { y, weight, fraction_bits: args.fraction_bits }, sums, &mut poisoned);
        if poisoned {
            poison[row].store(1, Ordering::Relaxed);
        }
    };
    for unit in (0..f).step_by(args.unit) {
        let length = args.unit.min(f - unit);
        let tokens = Tokens { x: &hidden[unit..], stride: f, count: job.rows.len() };
        let part = job.piece.down.row_slice(columns.start, 1, n).col_slice(unit, length);
        rows_dot(cpu.isa, tokens, &part, Out { pointer: y.as_mut_ptr(), token_stride: n, row_stride: 1 });
        y.chunks_exact(n).enumerate().for_each(|(token, y)| add(token, y));
    }
    if let Some(bias) = &job.piece.down_bias {
        (0..job.rows.len()).for_each(|token| add(token, &bias[columns.clone()]));
    }
}
