//! Experts on the CPU, by ARITHMETIC.md, 6: gate and up for the rows of each expert, activation, then down unit by unit
//! into fixed point.
//!
//! Threads share out rows of gate and up first, output columns then, so that no two write the same sum.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::lanes::{Lanes, by_isa};
use crate::cpu::linear::{Out, Tokens, rows_dot};
use crate::cpu::rows::{activation_row, add_row};
use crate::device::CpuDevice;
use crate::matrix::Matrix;
use crate::ops::{ExpertPiece, ExpertsArgs, WeightOn, run_of};
use crate::view::SharedSlice;
use crate::weight::Weight;

/// Rows of gate and up, and output columns, that are computed together.
const RUN: usize = 32;

/// A piece with the rows that chose its expert.
struct Job<'a> {
    piece: &'a ExpertPiece,
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// `[rows, H]`, gathered.
    x: Vec<f32>,
}

impl Job<'_> {
    /// The length of the piece along F.
    fn width(&self) -> usize {
        self.piece.gate.rows()
    }
}

/// Adds the pieces' terms to `sums` `[T, H]`; sets the flags of poisoned rows.
pub(crate) fn add_pieces(cpu: &CpuDevice, args: &ExpertsArgs<'_>, sums: &mut [i64], poison: &mut [u32]) {
    let jobs: Vec<Job<'_>> = args.pieces.iter().filter_map(|piece| job(args, piece)).collect();
    let hidden = gate_up(cpu, args, &jobs);
    let flags: Vec<AtomicU32> = (0..args.x.rows()).map(|_| AtomicU32::new(0)).collect();
    let down = Down { cpu, args, sums: SharedSlice::new(sums), poison: &flags };
    down.all(&jobs, &hidden);
    for (poison, flag) in poison.iter_mut().zip(flags) {
        *poison |= flag.into_inner();
    }
}

fn plain(weight: &Weight) -> &Matrix {
    match weight {
        Weight::Plain(matrix) => matrix,
        Weight::Packed(_) | Weight::Cuda(_) => panic!("plain and other experts in one layer"),
    }
}

/// Gathers the rows of one piece; `None` if no row chose its expert.
fn job<'a>(args: &ExpertsArgs<'a>, piece: &'a ExpertPiece) -> Option<Job<'a>> {
    let mut job = Job { piece, rows: Vec::new(), weights: Vec::new(), x: Vec::new() };
    let chosen = args.ids.host().chunks_exact(args.top_k).zip(args.weights.host().chunks_exact(args.top_k));
    for (row, (ids, weights)) in chosen.take(args.x.rows()).enumerate() {
        for (_, &weight) in ids.iter().zip(weights).filter(|(id, _)| **id == piece.expert) {
            job.rows.push(row as u32);
            job.weights.push(weight);
            job.x.extend_from_slice(args.x.plain().slice(row, 0));
        }
    }
    (!job.rows.is_empty()).then_some(job)
}

/// `a = activation(gate, up)` of every job, `[rows, f]` each.
fn gate_up(cpu: &CpuDevice, args: &ExpertsArgs<'_>, jobs: &[Job<'_>]) -> Vec<Vec<f32>> {
    let mut gates: Vec<Vec<f32>> = jobs.iter().map(|job| vec![0.0; job.rows.len() * job.width()]).collect();
    let mut ups = gates.clone();
    let shared: Vec<_> =
        gates.iter_mut().zip(&mut ups).map(|(g, u)| (SharedSlice::new(g), SharedSlice::new(u))).collect();
    let runs: Vec<(usize, Range<usize>)> = (0..jobs.len())
        .flat_map(|job| {
            let width = jobs[job].width();
            (0..width).step_by(RUN).map(move |start| (job, start..(start + RUN).min(width)))
        })
        .collect();
    let work: usize = jobs.iter().map(|job| job.x.len() * job.width() / 2).sum();
    let parts = cpu.parts_for(runs.len(), work);
    cpu.pool.run(parts, &|part| {
        for (index, run) in &runs[run_of(runs.len(), parts, part)] {
            let (gate, up) = &shared[*index];
            gate_up_run(cpu, args, &jobs[*index], run.clone(), (gate, up));
        }
    });
    gates
}

/// The rows `run` of gate and up for all tokens of a job, which are columns of `[rows, f]`.
fn gate_up_run(
    cpu: &CpuDevice,
    args: &ExpertsArgs<'_>,
    job: &Job<'_>,
    run: Range<usize>,
    (gate, up): (&SharedSlice<f32>, &SharedSlice<f32>),
) {
    let (f, h) = (job.width(), job.piece.gate.cols());
    let tokens = Tokens { x: &job.x, stride: h, count: job.rows.len() };
    for (matrix, out) in [(plain(&job.piece.gate), gate), (plain(&job.piece.up), up)] {
        let part = matrix.row_slice(run.start, 1, run.len());
        // SAFETY: these columns of all rows belong to this call alone.
        rows_dot(cpu.isa, tokens, &part, unsafe { Out::new(out.pointer(run.start), f) });
    }
    for (row, &weight) in job.weights.iter().enumerate() {
        let start = row * f + run.start;
        // SAFETY: as above.
        let (g, u) = unsafe { (gate.range(start, run.len()), up.range(start, run.len())) };
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

/// The second half: into fixed point.
struct Down<'a> {
    cpu: &'a CpuDevice,
    args: &'a ExpertsArgs<'a>,
    sums: SharedSlice<i64>,
    poison: &'a [AtomicU32],
}

impl Down<'_> {
    /// All jobs' terms, a run of output columns at a time.
    fn all(&self, jobs: &[Job<'_>], hidden: &[Vec<f32>]) {
        let width = self.args.x.width();
        let work: usize = hidden.iter().map(|a| a.len() * width / 4).sum();
        let runs = width.div_ceil(RUN);
        let parts = self.cpu.parts_for(runs, work);
        self.cpu.pool.run(parts, &|part| {
            let mut y = Vec::new();
            for run in run_of(runs, parts, part) {
                let columns = run * RUN..((run + 1) * RUN).min(width);
                for (job, hidden) in jobs.iter().zip(hidden) {
                    self.job(job, hidden, columns.clone(), &mut y);
                }
            }
        });
    }

    /// One job's terms for a run of output columns, unit by unit. `y` is scratch.
    fn job(&self, job: &Job<'_>, hidden: &[f32], columns: Range<usize>, y: &mut Vec<f32>) {
        let (f, n) = (job.width(), columns.len());
        y.resize(job.rows.len() * n, 0.0);
        for unit in (0..f).step_by(self.args.unit) {
            let length = self.args.unit.min(f - unit);
            let tokens = Tokens { x: &hidden[unit..], stride: f, count: job.rows.len() };
            let part = plain(&job.piece.down).row_slice(columns.start, 1, n).col_slice(unit, length);
            // SAFETY: `y` has `n` elements for every token, and is ours alone.
            rows_dot(self.cpu.isa, tokens, &part, unsafe { Out::new(y.as_mut_ptr(), n) });
            y.chunks_exact(n).enumerate().for_each(|(token, y)| self.add(job, token, columns.start, y));
        }
        if let Some(bias) = &job.piece.down_bias {
            (0..job.rows.len()).for_each(|token| self.add(job, token, columns.start, &bias[columns.clone()]));
        }
    }

    /// Adds the terms `y` of one token to its row, from a column on.
    fn add(&self, job: &Job<'_>, token: usize, column: usize, y: &[f32]) {
        let row = job.rows[token] as usize;
        let weight = (self.args.weight_on == WeightOn::Output).then_some(job.weights[token]);
        // SAFETY: these columns belong to this part alone.
        let sums = unsafe { self.sums.range(row * self.args.x.width() + column, y.len()) };
        let mut poisoned = false;
        let terms = Terms { y, weight, fraction_bits: self.args.fraction_bits };
        add_terms(self.cpu.isa, terms, sums, &mut poisoned);
        if poisoned {
            self.poison[row].store(1, Ordering::Relaxed);
        }
    }
}

/// Terms of one unit on their way into the sums of one row: `y[h] = dot(a, down[h])`, h a run of columns.
pub(crate) struct Terms<'a> {
    pub y: &'a [f32],
    /// Multiplies every term, if the gate scales the output.
    pub weight: Option<f32>,
    pub fraction_bits: u32,
}

by_isa! {
    /// Sums as f32; all NaN where the row is poisoned.
    fn finish_row(sums: &[i64], unit: f64, poisoned: bool, out: &mut [f32]) = finish
}

#[inline(always)]
fn finish<L: Lanes>(sums: &[i64], unit: f64, poisoned: bool, out: &mut [f32]) {
    if poisoned {
        out.fill(f32::NAN);
        return;
    }
    for (y, &sum) in out.iter_mut().zip(sums) {
        *y = (sum as f64 * unit) as f32;
    }
}

by_isa! {
    /// Adds the terms in fixed point; sets `poisoned` where one is NaN, infinite or too large.
    fn add_terms(terms: Terms<'_>, sums: &mut [i64], poisoned: &mut bool) = accumulate
}

#[inline(always)]
fn accumulate<L: Lanes>(terms: Terms<'_>, sums: &mut [i64], poisoned: &mut bool) {
    let unit = (1u64 << terms.fraction_bits) as f64;
    let limit = (1u64 << (51 - terms.fraction_bits)) as f32;
    let mut bad = false;
    for (sum, &y) in sums.iter_mut().zip(terms.y) {
        let y = match terms.weight {
            Some(weight) => weight * y,
            None => y,
        };
        let fits = y.abs() < limit;
        bad |= !fits;
        let y = if fits { y } else { 0.0 };
        *sum += round_half_even(f64::from(y) * unit);
    }
    *poisoned |= bad;
}

/// Exact for |x| <= 2^51: adding 1.5 * 2^52 leaves the integer in the low bits, rounded half to even.
#[inline(always)]
fn round_half_even(x: f64) -> i64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    ((x + MAGIC).to_bits() as i64).wrapping_sub(MAGIC.to_bits() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_to_even_and_exact() {
        for (x, expected) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.49, 3), (-7.51, -8)] {
            assert_eq!(round_half_even(x), expected, "{x}");
        }
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let x = ((state >> 11) as i64 - (1 << 52)) as f64 / 2f64.powi((state % 50) as i32);
            if x.abs() <= 2f64.powi(51) {
                assert_eq!(round_half_even(x), x.round_ties_even() as i64, "{x}");
            }
        }
    }
}
