//! `experts` on a GPU (`experts.h` and what it names): as `ops::experts`, with packed weights.

mod forms;
mod scratch;
mod shard;

pub(crate) use forms::not_packed;
pub use forms::{ExpertForm, ExpertsOutline, check_experts};
pub use scratch::ExpertsScratch;
pub use shard::ExpertsOnDevice;

use super::arguments::{ExpertsArgs, Table};
use super::compile::{Form, Source};
use super::device::{CudaQueue, DeviceBuffer};
use super::driver::Kernel;
use super::packed_linear::FormSizes;
use super::quantize::{MOST_ROWS, Quantized};
use crate::ops::{Activation, WeightOn};
use crate::packed::PANEL_ROWS;

/// The most rows that the decode kernels take.
pub const DECODE_TOKENS: usize = 32;
/// Rows and slots of a tile of the tensor-core kernels.
const TILE_TOKENS: usize = 32;
/// Columns that a block of `experts_down_tiles` computes.
const TILE_COLUMNS: usize = 256;
/// What the terms of one run of columns may take, unless 256 columns need more.
const TERMS_BYTES: usize = 64 << 20;

/// What a layer's experts have in common.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    pub activation: Activation,
    pub weight_on: WeightOn,
    /// The length of a unit along F.
    pub unit: usize,
    pub fraction_bits: u32,
}

const PLAN: Kernel = Kernel { source: Source::ExpertsPlan, name: "experts_plan", form: None };
const SUM: Kernel = Kernel { source: Source::ExpertsPlan, name: "experts_sum", form: None };

/// How the experts of a batch are computed. All ways give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By the number of rows.
    Auto,
    /// Up to 32 rows; an expert's rows one by one, by dp4a.
    Dot,
    /// Up to 32 rows; an expert's rows in eights, on tensor cores.
    Eight,
    /// Up to 32 rows; all rows of an expert together, on tensor cores.
    ThirtyTwo,
    /// Any number of rows, grouped by experts, on tensor cores.
    Tiles,
}

impl Path {
    /// The slots of one tile.
    fn tokens(self) -> usize {
        match self {
            Path::Dot => 1,
            Path::Eight => 8,
            Path::Auto | Path::ThirtyTwo | Path::Tiles => TILE_TOKENS,
        }
    }

    fn gate_up(self) -> &'static str {
        match self {
            Path::Dot => "experts_gate_up_rows_1",
            Path::Eight => "experts_gate_up_rows_8",
            Path::ThirtyTwo => "experts_gate_up_rows_32",
            Path::Auto | Path::Tiles => "experts_gate_up_tiles",
        }
    }

    fn down(self) -> &'static str {
        match self {
            Path::Dot => "experts_down_rows_1",
            Path::Eight => "experts_down_rows_8",
            Path::ThirtyTwo => "experts_down_rows_32",
            Path::Auto | Path::Tiles => "experts_down_tiles",
        }
    }
}

/// One call: rows, where they go, and how they are computed.
#[derive(Clone, Copy)]
pub struct ExpertsBatch<'a> {
    /// `[T, H]`, in the groups of gate and up.
    pub x: Quantized<'a>,
    /// `[T, K]`; a row that names an expert twice is poisoned.
    pub ids: &'a DeviceBuffer<u32>,
    /// `[T, K]`
    pub weights: &'a DeviceBuffer<f32>,
    pub top_k: usize,
    pub options: ShardOptions,
    pub path: Path,
}

/// Fixed-point sums `[T, H]` and a flag per row.
#[derive(Clone, Copy)]
pub struct SumsOnDevice<'a> {
    pub sums: &'a DeviceBuffer<i64>,
    pub poison: &'a DeviceBuffer<u32>,
}

/// Adds what the shard's pieces contribute to `sums`; `scratch` has room for the batch. Faults come to light when the
/// queue is synchronised.
pub fn experts(
    queue: &CudaQueue,
    shard: &ExpertsOnDevice,
    batch: &ExpertsBatch<'_>,
    scratch: &mut ExpertsScratch,
    sums: SumsOnDevice<'_>,
) {
    let (rows, top_k, options) = (batch.x.rows, batch.top_k, &batch.options);
    let pairs = rows * top_k;
    assert_eq!((batch.x.width, batch.x.group), (shard.width, shard.inner.0.group), "experts: x");
    assert!(pairs <= batch.ids.len().min(batch.weights.len()), "experts: routing");
    assert!(rows * shard.width <= sums.sums.len() && rows <= sums.poison.len(), "experts: sums");
    assert!(scratch.has_room(shard, rows, top_k) && rows <= MOST_ROWS, "experts: scratch");
    let group = shard.down.0.group;
    assert!(options.unit.is_multiple_of(group) && options.unit <= 4 * group, "experts: unit");
    assert!(options.fraction_bits <= 50, "experts: fraction bits");
    if pairs == 0 {
        return;
    }
    let path = chosen(batch.path, queue, shard, rows);
    assert!(path == Path::Tiles || rows <= DECODE_TOKENS, "experts: {rows} rows by {path:?}");
    let args = arguments(shard, batch, path, scratch, sums);
    let work = Work { queue, shard, path, args, slots: pairs * shard.copies };
    work.plan();
    match path {
        Path::Tiles => work.tiles(),
        _ => work.rows(),
    }
}

/// What all kernels of a call are told.
fn arguments(
    shard: &ExpertsOnDevice,
    batch: &ExpertsBatch<'_>,
    path: Path,
    scratch: &ExpertsScratch,
    sums: SumsOnDevice<'_>,
) -> ExpertsArgs {
    let (rows, top_k, options) = (batch.x.rows, batch.top_k, &batch.options);
    let slots = rows * top_k * shard.copies;
    let hidden = shard.hidden_rows(scratch, slots).argument();
    ExpertsArgs {
        pieces: shard.pieces.at(0),
        ids: batch.ids.at(0),
        weights: batch.weights.at(0),
        x: batch.x.argument(),
        pairs: scratch.pairs.at(0),
        slots: scratch.slots.at(0),
        tiles: scratch.tiles.at(0),
        tile_count: scratch.tile_count.at(0),
        hidden_codes: hidden.codes,
        hidden_scales: hidden.scales,
        hidden_sums: hidden.sums,
        terms: scratch.terms.at(0),
        sums: sums.sums.at(0),
        poison: sums.poison.at(0),
        inner_table: Table::of(shard.inner.0.codes),
        down_table: Table::of(shard.down.0.codes),
        piece_count: shard.pieces.len() as u32,
        experts: shard.experts as u32,
        tokens: rows as u32,
        top_k: top_k as u32,
        copies: shard.copies as u32,
        width: shard.width as u32,
        inner_groups: shard.width.div_ceil(shard.inner.0.group) as u32,
        hidden_groups: shard.hidden_groups() as u32,
        hidden_group: shard.down.0.group as u32,
        widest: shard.widest as u32,
        unit_groups: (options.unit / shard.down.0.group) as u32,
        tile_tokens: path.tokens() as u32,
        first_column: 0,
        term_columns: shard.term_columns(slots) as u32,
        activation: options.activation.into(),
        weight_on_input: u32::from(options.weight_on == WeightOn::Input),
        two_to_b: 2f32.powi(options.fraction_bits as i32),
        limit: 2f32.powi(51 - options.fraction_bits as i32),
    }
}

/// The path for a number of rows, as far as the device's shared memory holds it.
fn chosen(path: Path, queue: &CudaQueue, shard: &ExpertsOnDevice, rows: usize) -> Path {
    let path = match path {
        Path::Auto => match rows {
            0..=1 => Path::Dot,
            2..=8 => Path::Eight,
            9..=DECODE_TOKENS => Path::ThirtyTwo,
            _ => Path::Tiles,
        },
        path => path,
    };
    // Eights read an expert's weights again for its ninth row, but have a fourth of the sums in shared memory.
    let fits = gate_up_shared(shard, path) <= queue.device().properties().shared_bytes;
    if path == Path::ThirtyTwo && !fits { Path::Eight } else { path }
}

/// What the plan counts so many experts in.
fn plan_shared(experts: usize) -> usize {
    4 * (16 + experts)
}

/// Warps of a block of `experts_gate_up_rows`.
fn rows_warps(form: Form) -> usize {
    if form.group_bytes() <= 512 { 16 } else { 8 }
}

/// Rows of F that a block of `experts_gate_up_rows` computes.
fn rows_wide(shard: &ExpertsOnDevice) -> usize {
    shard.down.0.group.max(64)
}

fn gate_up_shared(shard: &ExpertsOnDevice, path: Path) -> usize {
    let sizes = FormSizes::of(shard.inner.1);
    rows_warps(shard.inner.1) * sizes.ring_bytes + 4 * path.tokens() * rows_wide(shard) * 4
}

/// One call's launches.
struct Work<'a> {
    queue: &'a CudaQueue,
    shard: &'a ExpertsOnDevice,
    path: Path,
    args: ExpertsArgs,
    /// The most slots that the routing can fill.
    slots: usize,
}

impl Work<'_> {
    fn plan(&self) {
        let shared = plan_shared(self.shard.experts);
        // SAFETY: `experts` has checked the shapes; the plan writes within `scratch`, whose sizes bound it.
        unsafe { self.queue.launch(PLAN, [self.shard.pieces.len(), 1, 1], 256, shared, &self.args) };
    }

    /// The most tiles that the plan can list.
    fn tile_limit(&self) -> usize {
        self.slots.min(self.shard.pieces.len() + self.slots / self.path.tokens())
    }

    fn kernels(&self) -> (Kernel, Kernel) {
        let gate_up = Kernel {
            source: Source::ExpertsGateUp,
            name: self.path.gate_up(),
            form: Some(self.shard.inner.1),
        };
        let down =
            Kernel { source: Source::ExpertsDown, name: self.path.down(), form: Some(self.shard.down.1) };
        (gate_up, down)
    }

    fn rows(&self) {
        let (gate_up, down) = self.kernels();
        let items = self.tile_limit() * self.shard.widest.div_ceil(rows_wide(self.shard));
        let blocks = items.min(2 * self.queue.device().properties().multiprocessors as usize);
        let block = 32 * rows_warps(self.shard.inner.1);
        let shared = gate_up_shared(self.shard, self.path);
        // SAFETY: as in `plan`; the kernels read what the plan has listed.
        unsafe { self.queue.launch(gate_up, [blocks, 1, 1], block, shared, &self.args) };
        let rings = 8 * FormSizes::of(self.shard.down.1).ring_bytes;
        let shared = rings + 8 * self.args.tokens as usize * PANEL_ROWS * 8;
        // SAFETY: as above.
        unsafe {
            self.queue.launch(down, [self.shard.width.div_ceil(PANEL_ROWS), 1, 1], 256, shared, &self.args)
        };
    }

    fn tiles(&self) {
        let (gate_up, down) = self.kernels();
        let limit = self.tile_limit();
        assert!(limit <= MOST_ROWS, "experts: tiles");
        let shared = FormSizes::of(self.shard.inner.1).tile_bytes.max(TILE_TOKENS * 128 * 4);
        // SAFETY: as in `rows`.
        unsafe {
            self.queue.launch(gate_up, [self.shard.widest.div_ceil(128), limit, 1], 256, shared, &self.args)
        };
        let shared = FormSizes::of(self.shard.down.1).tile_bytes;
        for first_column in (0..self.shard.width).step_by(self.args.term_columns as usize) {
            let columns = (self.args.term_columns as usize).min(self.shard.width - first_column);
            let args = ExpertsArgs { first_column: first_column as u32, ..self.args };
            let grid = [columns.div_ceil(TILE_COLUMNS), limit, 1];
            // SAFETY: as above; a run of columns fits into `terms`.
            unsafe {
                self.queue.launch(down, grid, 256, shared, &args);
                self.queue.launch(SUM, [columns.div_ceil(256), args.tokens as usize, 1], 256, 0, &args);
            }
        }
    }
}
