//! Packed experts on the CPU, by ARITHMETIC.md, 6 to 8, in two steps with one meeting of the threads between them.
//!
//! 1. A task is a run of units of one expert's gate and up, for all rows that chose the expert.
//! 2. A task is a run of output columns: for every expert of the shard and every row of its, unit by unit into fixed point.
//!    Columns belong to one task, so that no two add to the same sum.

mod down;
mod gate_up;
mod plan;

pub(crate) use plan::Plan;

use down::{Down, down_run};
use gate_up::{GateUp, UNIT_PANELS, gate_up};
use plan::{GROUP_MIN, Job};

use crate::cpu::lanes::Lanes;
use crate::cpu::packed::{Decode, FormOf, QuantSet, Tiles, tile_for};
use crate::device::CpuDevice;
use crate::ops::{ExpertsArgs, run_of};
use crate::packed::{LINE, PANEL_ROWS, Packed};
use crate::view::SharedSlice;

/// Parts of the first step that a thread may get: rows are spread unevenly over experts.
const TASKS_PER_THREAD: usize = 32;
/// More rows than this, counted once for each of their experts, are bound by arithmetic, not by memory.
const MANY_ROWS: usize = 64;

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
    let width = args.x.width();
    let Plan { jobs, tasks, rows, weights, codes, scales, sums: code_sums, starts, .. } = plan;
    let Some(codes) = codes.as_mut().filter(|_| !jobs.is_empty()) else { return };
    let hidden = Hidden {
        codes: SharedSlice::new(codes.as_mut_slice()),
        scales: SharedSlice::new(scales),
        sums: SharedSlice::new(code_sums),
        starts: SharedSlice::new(starts),
    };
    let work: usize = jobs.iter().map(|job| job.count * args.pieces[job.piece].gate.rows() * width / 4).sum();
    let few = rows.len() <= MANY_ROWS;
    let parts = cpu.parts_within(tasks.len(), work, if few { 8 } else { TASKS_PER_THREAD });
    cpu.pool.run(parts, &|part| {
        let mine = run_of(tasks.len(), parts, part);
        // A job's units in this part are one task.
        let mut at = mine.start;
        for tasks_of_job in tasks[mine].chunk_by(|a, b| a.0 == b.0) {
            let (index, first) = tasks_of_job[0];
            let (job, after) = (&jobs[index as usize], first + tasks_of_job.len() as u32);
            at += tasks_of_job.len();
            let next = tasks.get(at).map(|&(job, unit)| {
                let gate = packed(&args.pieces[jobs[job as usize].piece].gate);
                (gate, unit as usize * UNIT_PANELS)
            });
            let piece = &args.pieces[job.piece];
            let down = packed(&piece.down);
            let task = GateUp {
                piece,
                gate: packed(&piece.gate),
                up: packed(&piece.up),
                x,
                rows: &rows[job.first..][..job.count],
                weights: &weights[job.first..][..job.count],
                weight_on: args.weight_on,
                activation: args.activation,
                units: first as usize..after as usize,
                out: hidden.of(job, down),
                bias: Decode::of(down.format().codes).bias,
                next,
            };
            let form = FormOf::both(task.gate.format(), task.up.format());
            gate_up(cpu.isa, &task, tile_for(form, cpu.isa));
        }
    });
    let panels = width.div_ceil(PANEL_ROWS);
    // An expert's columns of one part are one run of memory.
    let parts = cpu.parts_within(panels, work / 2, if few { 4 } else { 2 });
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

/// Activated rows in int8, side by side as the second step's tiles want them; threads write them unit by unit, then read.
#[derive(Clone, Copy)]
struct Hidden {
    codes: SharedSlice<i8>,
    scales: SharedSlice<f32>,
    sums: SharedSlice<i32>,
    starts: SharedSlice<i32>,
}

impl Hidden {
    /// The rows of a job, as its down-projection wants them.
    fn of(&self, job: &Job, down: &Packed) -> Tiles {
        Tiles {
            codes: self.codes.pointer(job.groups * GROUP_MIN),
            scales: self.scales.pointer(job.groups),
            sums: self.sums.pointer(job.groups),
            starts: self.starts.pointer(job.groups),
            rows: job.count,
            groups: down.groups(),
            group: down.format().group,
        }
    }
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
