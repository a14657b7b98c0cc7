//! Packed experts on the CPU, by ARITHMETIC.md, 6 to 8, in two steps with one meeting of the threads between them.
//!
//! 1. A task is a unit of one expert's gate and up: both products, bias, activation, and the result in int8 again, for all
//!    rows that chose the expert. Rows are not gathered: a tile takes pointers to them.
//! 2. A task is a run of output columns: for every expert of the shard and every row of its, unit by unit into fixed point.
//!    Columns belong to one task, so that no two add to the same sum.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::buffer::AlignedVec;
use crate::cpu::lanes::{LANES, Lanes, by_isa};
use crate::cpu::packed::{
    Decode, FormOf, Panel, QuantRow, QuantSet, Span, TILE, TileFn, TileScratch, quantize, tile_for,
};
use crate::cpu::rows::activation;
use crate::device::CpuDevice;
use crate::ops::{Activation, ExpertPiece, ExpertsArgs, UNIT_MIN, WeightOn, run_of};
use crate::packed::{LINE, PANEL_ROWS, Packed};
use crate::view::SharedSlice;

/// Tasks of the first step that a thread may get: rows are spread unevenly over experts.
const TASKS_PER_THREAD: usize = 32;

/// The rows that chose a piece's expert.
#[derive(Clone, Copy)]
struct Job {
    piece: usize,
    /// Its rows in `Plan::rows`.
    first: usize,
    count: usize,
    /// Where its activated rows begin, in groups.
    groups: usize,
}

/// Who computes what, and the activated rows between the steps; kept for the next layer.
#[derive(Default)]
pub(crate) struct Plan {
    jobs: Vec<Job>,
    /// A job and a unit of it.
    tasks: Vec<(u32, u32)>,
    /// Row and gate weight, job after job.
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// How many rows chose each expert, then where its next row goes.
    cursor: Vec<u32>,
    by_expert: Vec<(u32, f32)>,
    codes: Option<AlignedVec<i8>>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Plan {
    /// Sorts the rows by expert, and lays out the tasks.
    fn make(&mut self, args: &ExpertsArgs<'_>) {
        let rows = args.x.layout().rows;
        let ids = &args.ids.host()[..rows * args.top_k];
        let weights = &args.weights.host()[..rows * args.top_k];
        let experts = 1 + args.pieces.iter().map(|piece| piece.expert as usize).max().unwrap_or(0);
        // Starts of each expert's rows, by counting; rows stay in order.
        self.cursor.clear();
        self.cursor.resize(experts + 1, 0);
        for &id in ids.iter().filter(|id| (**id as usize) < experts) {
            self.cursor[id as usize + 1] += 1;
        }
        for expert in 0..experts {
            self.cursor[expert + 1] += self.cursor[expert];
        }
        self.by_expert.clear();
        self.by_expert.resize(self.cursor[experts] as usize, (0, 0.0));
        for (index, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
            if (id as usize) < experts {
                let at = &mut self.cursor[id as usize];
                self.by_expert[*at as usize] = ((index / args.top_k) as u32, weight);
                *at += 1;
            }
        }
        self.jobs.clear();
        self.tasks.clear();
        self.rows.clear();
        self.weights.clear();
        let mut groups = 0;
        for (index, piece) in args.pieces.iter().enumerate() {
            let expert = piece.expert as usize;
            // The cursor of an expert now stands where the next one's rows begin.
            let start = if expert == 0 { 0 } else { self.cursor[expert - 1] as usize };
            let chosen = &self.by_expert[start..self.cursor[expert] as usize];
            if chosen.is_empty() {
                continue;
            }
            let (f, group) = (piece.gate.rows(), packed(&piece.down).format().group);
            let job = self.jobs.len() as u32;
            self.tasks.extend((0..f.div_ceil(UNIT_MIN) as u32).map(|unit| (job, unit)));
            self.jobs.push(Job { piece: index, first: self.rows.len(), count: chosen.len(), groups });
            groups += chosen.len() * f.div_ceil(group) * (group / GROUP_MIN);
            self.rows.extend(chosen.iter().map(|(row, _)| *row));
            self.weights.extend(chosen.iter().map(|(_, weight)| *weight));
        }
        if self.codes.as_ref().is_none_or(|codes| codes.as_slice().len() < groups * GROUP_MIN) {
            self.codes = Some(AlignedVec::zeros(groups * GROUP_MIN));
        }
        self.scales.resize(groups.max(self.scales.len()), 0.0);
        self.sums.resize(groups.max(self.sums.len()), 0);
    }
}

/// Hidden rows are laid out in steps of the smallest group.
const GROUP_MIN: usize = 32;

/// Adds the pieces' terms to `sums` `[T, H]`; sets the flags of poisoned rows. `x` holds the rows of `args.x`.
pub(crate) fn add_packed_pieces(
    cpu: &CpuDevice,
    args: &ExpertsArgs<'_>,
    x: QuantSet,
    plan: &mut Plan,
    sums: &mut [i64],
    poison: &mut [u32],
) {
    plan.make(args);
    let width = args.x.layout().width;
    let Plan { jobs, tasks, rows, weights, codes, scales, sums: code_sums, .. } = plan;
    let Some(codes) = codes.as_mut().filter(|_| !jobs.is_empty()) else { return };
    let hidden = Hidden {
        codes: SharedSlice::new(codes.as_mut_slice()),
        scales: SharedSlice::new(scales),
        sums: SharedSlice::new(code_sums),
    };
    let work: usize = jobs.iter().map(|job| job.count * args.pieces[job.piece].gate.rows() * width / 4).sum();
    let parts = cpu.parts_within(tasks.len(), work, TASKS_PER_THREAD);
    cpu.pool.run(parts, &|part| {
        let mine = run_of(tasks.len(), parts, part);
        for at in mine.clone() {
            let (job, unit) = tasks[at];
            // The parts in between are for the other threads.
            let next =
                if at + 1 < mine.end { at + 1 } else { at + 1 + mine.len() * (cpu.pool.threads() - 1) };
            let next = tasks.get(next).map(|&(job, unit)| {
                let gate = packed(&args.pieces[jobs[job as usize].piece].gate);
                (gate, unit as usize * UNIT_MIN / PANEL_ROWS)
            });
            let job = &jobs[job as usize];
            let piece = &args.pieces[job.piece];
            let task = GateUp {
                piece,
                gate: packed(&piece.gate),
                up: packed(&piece.up),
                x,
                rows: &rows[job.first..][..job.count],
                weights: &weights[job.first..][..job.count],
                weight_on: args.weight_on,
                activation: args.activation,
                unit: unit as usize,
                out: hidden.of(job, packed(&piece.down)),
                next,
            };
            let form = FormOf::both(task.gate.format(), task.up.format());
            gate_up(cpu.isa, &task, tile_for(form, cpu.isa));
        }
    });
    let panels = width.div_ceil(PANEL_ROWS);
    let parts = cpu.parts_within(panels, work / 2, 8);
    let (sums, poison) = (SharedSlice::new(sums), SharedSlice::new(poison));
    cpu.pool.run(parts, &|part| {
        for (index, job) in jobs.iter().enumerate() {
            let piece = &args.pieces[job.piece];
            let down = packed(&piece.down);
            let next = jobs.get(index + 1).map(|job| packed(&args.pieces[job.piece].down));
            let task = Down {
                next,
                w: down,
                bias: piece.down_bias.as_deref(),
                x: hidden.of(job, down),
                rows: &rows[job.first..][..job.count],
                weights: &weights[job.first..][..job.count],
                weight_on: args.weight_on,
                fraction_bits: args.fraction_bits,
                panels: run_of(panels, parts, part),
                sums: &sums,
                width,
                poison: &poison,
            };
            down_run(cpu.isa, &task, tile_for(FormOf::of(down.format()), cpu.isa));
        }
    });
}

fn packed(weight: &crate::weight::Weight) -> &Packed {
    weight.packed().unwrap_or_else(|| panic!("packed and plain experts in one layer"))
}

/// Activated rows in int8, that threads write unit by unit and then read.
#[derive(Clone, Copy)]
struct Hidden {
    codes: SharedSlice<i8>,
    scales: SharedSlice<f32>,
    sums: SharedSlice<i32>,
}

impl Hidden {
    /// The rows of a job, as its down-projection wants them.
    fn of(&self, job: &Job, down: &Packed) -> QuantSet {
        let first = QuantRow {
            codes: self.codes.pointer(job.groups * GROUP_MIN),
            scales: self.scales.pointer(job.groups),
            sums: self.sums.pointer(job.groups),
        };
        QuantSet { first, groups: down.groups(), group: down.format().group }
    }
}

/// A task of the first step.
pub(crate) struct GateUp<'a> {
    piece: &'a ExpertPiece,
    gate: &'a Packed,
    up: &'a Packed,
    x: QuantSet,
    rows: &'a [u32],
    weights: &'a [f32],
    weight_on: WeightOn,
    activation: Activation,
    unit: usize,
    out: QuantSet,
    /// Where the thread is likely to go on: a gate, and the panel of it.
    next: Option<(&'a Packed, usize)>,
}

/// Bytes that are asked for where a run of memory ends and another begins, until the machine's own prefetchers have found it.
const AHEAD: usize = 2048;

/// Asks for the beginning of a run of memory, if there is one.
#[inline(always)]
fn ask_for<L: Lanes>(start: *const u8) {
    if !start.is_null() {
        for line in (0..AHEAD).step_by(LINE) {
            // SAFETY: any address will do.
            unsafe { L::prefetch(start.wrapping_add(line)) };
        }
    }
}

by_isa! { fn gate_up(task: &GateUp<'_>, tile: TileFn) = gate_up_unit }

#[inline(always)]
fn gate_up_unit<L: Lanes>(task: &GateUp<'_>, tile: TileFn) {
    let decode = Decode::of(task.gate.format().codes);
    let start = task.unit * UNIT_MIN;
    let length = UNIT_MIN.min(task.gate.rows() - start);
    let groups = task.gate.groups();
    let mut scratch = TileScratch::take();
    let (mut hidden, mut up) = ([[0.0f32; UNIT_MIN]; TILE], [[0.0f32; UNIT_MIN]; TILE]);
    let panels = start / PANEL_ROWS..(start + length).div_ceil(PANEL_ROWS);
    for (index, rows) in task.rows.chunks(TILE).enumerate() {
        let mut x = [task.x.first; TILE];
        for (x, &row) in x.iter_mut().zip(rows) {
            // SAFETY: routed rows are rows of the batch.
            *x = unsafe { task.x.row(row as usize) };
        }
        // SAFETY: the rows have the matrices' groups.
        let x = unsafe { scratch.tile(&x[..rows.len()], groups, task.x.group, decode.bias) };
        // One matrix after the other: each unit of it is one run of memory.
        let last = index + 1 == task.rows.len().div_ceil(TILE);
        let then_gate =
            task.next.filter(|_| last).map_or(std::ptr::null(), |next| next.0.panel(next.1).as_ptr());
        let then_up = task.up.panel(panels.start).as_ptr();
        for (w, out, then) in [(task.gate, &mut hidden, then_up), (task.up, &mut up, then_gate)] {
            for panel in panels.clone() {
                if panel + 1 == panels.end {
                    ask_for::<L>(then);
                }
                let mut y = [[0.0; LANES]; TILE];
                // SAFETY: the rows have the matrices' groups.
                unsafe { tile(&Panel::new(w, panel), &decode, &x, Span::whole(groups), &mut y) };
                for (out, y) in out.iter_mut().zip(&y).take(rows.len()) {
                    out[panel * PANEL_ROWS - start..][..LANES].copy_from_slice(y);
                }
            }
        }
        for (t, (hidden, up)) in hidden.iter_mut().zip(&mut up).enumerate().take(rows.len()) {
            let columns = hidden.as_chunks_mut::<LANES>().0.iter_mut().zip(up.as_chunks_mut::<LANES>().0);
            for (panel, (gate, up)) in panels.clone().zip(columns) {
                inner_of::<L>(task, index * TILE + t, panel, gate, up);
            }
        }
        for (t, hidden) in hidden.iter().enumerate().take(rows.len()) {
            let group = task.out.group;
            let (first, count) = (start / group, length.div_ceil(group));
            // SAFETY: these groups of this row belong to this task alone.
            unsafe {
                let out = task.out.row(index * TILE + t);
                let codes =
                    std::slice::from_raw_parts_mut(out.codes.add(first * group) as *mut i8, count * group);
                let scales = std::slice::from_raw_parts_mut(out.scales.add(first) as *mut f32, count);
                let sums = std::slice::from_raw_parts_mut(out.sums.add(first) as *mut i32, count);
                quantize::<L>(&hidden[..length], group, codes, scales, sums);
            }
        }
    }
    scratch.keep();
}

/// Weight, bias and activation of a panel's 16 values of one row, into `gate`.
#[inline(always)]
fn inner_of<L: Lanes>(
    task: &GateUp<'_>,
    row: usize,
    panel: usize,
    gate: &mut [f32; LANES],
    up: &mut [f32; LANES],
) {
    if task.weight_on == WeightOn::Input {
        gate.iter_mut().chain(up.iter_mut()).for_each(|value| *value *= task.weights[row]);
    }
    let first = panel * PANEL_ROWS;
    for (values, bias) in [(&mut *gate, &task.piece.gate_bias), (&mut *up, &task.piece.up_bias)] {
        if let Some(bias) = bias {
            values.iter_mut().zip(&bias[first..]).for_each(|(value, bias)| *value += bias);
        }
    }
    activation::<L>(task.activation, gate, up);
}

/// A task of the second step: one job's part of it.
pub(crate) struct Down<'a> {
    w: &'a Packed,
    bias: Option<&'a [f32]>,
    x: QuantSet,
    rows: &'a [u32],
    weights: &'a [f32],
    weight_on: WeightOn,
    fraction_bits: u32,
    panels: Range<usize>,
    /// `[T, width]`
    sums: &'a SharedSlice<i64>,
    width: usize,
    poison: &'a SharedSlice<u32>,
    /// The matrix that comes next.
    next: Option<&'a Packed>,
}

/// Units of a panel that are multiplied before they go into fixed point.
const UNITS: usize = 8;

by_isa! { fn down_run(task: &Down<'_>, tile: TileFn) = down_panels }

#[inline(always)]
fn down_panels<L: Lanes>(task: &Down<'_>, tile: TileFn) {
    let decode = Decode::of(task.w.format().codes);
    let (groups, unit) = (task.w.groups(), UNIT_MIN / task.w.format().group);
    let fixed = Fixed::new(task.fraction_bits);
    let mut scratch = TileScratch::take();
    let mut products = [[0.0; LANES]; UNITS * TILE];
    for first in (0..task.rows.len()).step_by(TILE) {
        let count = TILE.min(task.rows.len() - first);
        let mut x = [task.x.first; TILE];
        for (t, x) in x.iter_mut().enumerate().take(count) {
            // SAFETY: the job has this row.
            *x = unsafe { task.x.row(first + t) };
        }
        // SAFETY: the rows have the matrix's groups.
        let x = unsafe { scratch.tile(&x[..count], groups, task.x.group, decode.bias) };
        let mut worst = [[0u32; LANES]; TILE];
        for panel in task.panels.clone() {
            if let Some(next) = task.next.filter(|_| panel + 1 == task.panels.end) {
                ask_for::<L>(next.panel(task.panels.start).as_ptr());
            }
            let mut sums = [[0i64; LANES]; TILE];
            let weights = Panel::new(task.w, panel);
            for first_group in (0..groups).step_by(UNITS * unit) {
                let span = Span { first: first_group, count: (UNITS * unit).min(groups - first_group), unit };
                // SAFETY: the rows have the matrix's groups.
                unsafe { tile(&weights, &decode, &x, span, &mut products) };
                for products in products.chunks_exact_mut(count).take(span.units()) {
                    for (t, y) in products.iter_mut().enumerate() {
                        fixed.add(y, task.weight(first + t), &mut sums[t], &mut worst[t]);
                    }
                }
            }
            let column = panel * PANEL_ROWS;
            let width = LANES.min(task.width - column);
            if let Some(bias) = task.bias {
                for t in 0..count {
                    let mut y = [0.0; LANES];
                    y[..width].copy_from_slice(&bias[column..column + width]);
                    fixed.add(&mut y, task.weight(first + t), &mut sums[t], &mut worst[t]);
                }
            }
            for (t, terms) in sums.iter().enumerate().take(count) {
                let row = task.rows[first + t] as usize;
                // SAFETY: these columns belong to this task alone.
                let sums = unsafe { task.sums.range(row * task.width + column, width) };
                sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum = sum.wrapping_add(*term));
            }
        }
        for (t, worst) in worst.iter().enumerate().take(count) {
            if worst.iter().any(|&worst| worst >= fixed.limit) {
                // SAFETY: the flag is inside the slice, and all tasks write it as an atomic.
                let flag = unsafe { AtomicU32::from_ptr(task.poison.pointer(task.rows[first + t] as usize)) };
                flag.store(1, Ordering::Relaxed);
            }
        }
    }
    scratch.keep();
}

impl Down<'_> {
    /// What multiplies a row's terms.
    #[inline(always)]
    fn weight(&self, row: usize) -> f32 {
        // A product with 1 is exact.
        if self.weight_on == WeightOn::Output { self.weights[row] } else { 1.0 }
    }
}

/// f32 terms into 64-bit fixed point. Terms that do not fit leave nonsense behind; the row they poison says so.
struct Fixed {
    unit: f64,
    /// The bits of the least magnitude that does not fit.
    limit: u32,
}

/// Adding 1.5 * 2^52 leaves the integer in the low bits, rounded half to even.
const MAGIC: f64 = 6_755_399_441_055_744.0;

impl Fixed {
    fn new(fraction_bits: u32) -> Fixed {
        let limit = ((1u64 << (51 - fraction_bits)) as f32).to_bits();
        Fixed { unit: (1u64 << fraction_bits) as f64, limit }
    }

    /// Adds `weight * y` to the sums; `worst` keeps the largest magnitudes' bits, in which NaN is the largest.
    #[inline(always)]
    fn add(&self, y: &mut [f32; LANES], weight: f32, sums: &mut [i64; LANES], worst: &mut [u32; LANES]) {
        for ((y, sum), worst) in y.iter_mut().zip(sums.iter_mut()).zip(worst.iter_mut()) {
            *y *= weight;
            *worst = (*worst).max(y.to_bits() & 0x7fff_ffff);
            // The product is exact, so that one rounding is the same as two.
            let bits = f64::from(*y).mul_add(self.unit, MAGIC).to_bits() as i64;
            *sum = sum.wrapping_add(bits.wrapping_sub(MAGIC.to_bits() as i64));
        }
    }
}
