//! The first step: gate and up of an expert's units, bias, activation, and the result in int8 again.

use std::ops::Range;

use super::ask_for;
use crate::cpu::lanes::{LANES, Lanes, by_isa};
use crate::cpu::packed::{Decode, Panel, QuantSet, Span, TILE, TileFn, TileScratch, Tiles, quantize_group};
use crate::cpu::rows::activation;
use crate::ops::{Activation, ExpertPiece, UNIT_MIN, WeightOn};
use crate::packed::{PANEL_ROWS, Packed};

/// A task: some units of one expert, for all rows that chose it.
pub(crate) struct GateUp<'a> {
    pub piece: &'a ExpertPiece,
    pub gate: &'a Packed,
    pub up: &'a Packed,
    pub x: QuantSet,
    /// The rows of `x`, and what the gate says of each.
    pub rows: &'a [u32],
    pub weights: &'a [f32],
    pub weight_on: WeightOn,
    pub activation: Activation,
    pub units: Range<usize>,
    /// Where the results go, and what is added to the codes that they will meet.
    pub out: Tiles,
    pub bias: i32,
    /// Where the thread is likely to go on: a gate, and the panel of it.
    pub next: Option<(&'a Packed, usize)>,
}

/// Panels of a unit.
pub(crate) const UNIT_PANELS: usize = UNIT_MIN / PANEL_ROWS;
/// Room for the results of a run of panels, `[panels][T]`.
const RUN: usize = 4 * UNIT_PANELS * TILE;

by_isa! { fn gate_up(task: &GateUp<'_>, tile: TileFn) = gate_up_units }

#[inline(always)]
fn gate_up_units<L: Lanes>(task: &GateUp<'_>, tile: TileFn) {
    let decode = Decode::of(task.gate.format().codes);
    let groups = task.gate.groups();
    let mut scratch = TileScratch::take();
    // SAFETY: routed rows are rows of the batch.
    let x = unsafe { scratch.lay(&task.x, task.rows.len(), decode.bias, |row| task.rows[row] as usize) };
    // Few rows: units of one matrix follow each other, for where a run of memory begins a thread waits.
    let tiles = x.count();
    let run = match tiles {
        1 => RUN / (UNIT_PANELS * x.rows),
        _ => 1,
    };
    let mut gates = [[0.0; LANES]; RUN];
    let (mut ups, mut hidden) = (gates, [0.0f32; UNIT_MIN]);
    for first in task.units.clone().step_by(run) {
        let units = first..(first + run).min(task.units.end);
        let panels = units.start * UNIT_PANELS..(units.end * UNIT_PANELS).min(task.gate.panels());
        let next = if units.end < task.units.end { Some((task.gate, panels.end)) } else { task.next };
        for index in 0..tiles {
            // SAFETY: there are so many tiles.
            let x = unsafe { x.tile(index) };
            // One matrix after the other: the units of it are one run of memory.
            let next = next.filter(|_| index + 1 == tiles);
            let then_gate = next.map_or(std::ptr::null(), |(gate, panel)| gate.panel(panel).as_ptr());
            let then_up = task.up.panel(panels.start).as_ptr();
            for (w, out, then) in [(task.gate, &mut gates, then_up), (task.up, &mut ups, then_gate)] {
                for (panel, out) in panels.clone().zip(out.chunks_exact_mut(x.rows)) {
                    if panel + 1 == panels.end {
                        ask_for::<L>(then);
                    }
                    // SAFETY: the rows have the matrices' groups.
                    unsafe { tile(&Panel::new(w, panel), &decode, &x, Span::whole(groups), out) };
                }
            }
            for unit in units.clone() {
                let start = unit * UNIT_MIN;
                let length = UNIT_MIN.min(task.gate.rows() - start);
                for t in 0..x.rows {
                    let row = index * TILE + t;
                    let panels = unit * UNIT_PANELS..(start + length).div_ceil(PANEL_ROWS);
                    for (panel, hidden) in panels.zip(hidden.as_chunks_mut::<LANES>().0) {
                        let at = (panel - units.start * UNIT_PANELS) * x.rows + t;
                        inner_of::<L>(task, row, panel, &mut gates[at], &mut ups[at]);
                        *hidden = gates[at];
                    }
                    put::<L>(task, row, start, &hidden[..length]);
                }
            }
        }
    }
    scratch.keep();
}

/// Quantises the columns from `start` on of one row, and puts them in their places.
#[inline(always)]
fn put<L: Lanes>(task: &GateUp<'_>, row: usize, start: usize, hidden: &[f32]) {
    let group = task.out.group;
    for (index, x) in hidden.chunks(group).enumerate() {
        let place = task.out.place(row, start / group + index);
        // SAFETY: the job has this row and this group, and they belong to this task alone.
        unsafe {
            let codes = std::slice::from_raw_parts_mut(task.out.codes.add(place * group), group);
            let (scale, sum) = quantize_group::<L>(x, codes);
            *task.out.scales.add(place) = scale;
            *task.out.sums.add(place) = sum;
            *task.out.starts.add(place) = -task.bias * sum;
        }
    }
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
