//! `experts` on a GPU (`experts.h` and what it names): as `ops::experts`, with packed weights.

use std::sync::Arc;

use super::arguments::{ExpertPiece, ExpertTile, ExpertsArgs, Table};
use super::compile::{Form, Source};
use super::device::{CudaDevice, CudaQueue, DeviceBuffer, PackedOnDevice, Strided};
use super::driver::Kernel;
use super::error::CudaError;
use super::packed_linear::FormSizes;
use super::quantize::{self, MOST_ROWS, QuantizedBuffer, quantize};
use crate::ops::{Activation, WeightOn};
use crate::packed::{PANEL_ROWS, Packed, PackedFormat};

/// The most rows that the decode kernels take.
pub const DECODE_TOKENS: usize = 32;
/// Rows and slots of a tile of the tensor-core kernels.
const TILE_TOKENS: usize = 32;
/// Columns that a block of `experts_down_tiles` computes.
const TILE_COLUMNS: usize = 256;
/// What the terms of one run of columns may take, unless 256 columns need more.
const TERMS_BYTES: usize = 64 << 20;

/// A run of canonical units of one expert, packed.
pub struct PackedPiece {
    pub expert: u32,
    /// `[f, H]`
    pub gate: Packed,
    /// `[f, H]`
    pub up: Packed,
    /// `[H, f]`
    pub down: Packed,
    /// `[f]`
    pub gate_bias: Option<Vec<f32>>,
    /// `[f]`
    pub up_bias: Option<Vec<f32>>,
    /// `[H]`, in the piece that holds unit 0 and in no other.
    pub down_bias: Option<Vec<f32>>,
}

/// What a layer's experts have in common.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    pub activation: Activation,
    pub weight_on: WeightOn,
    /// The length of a unit along F.
    pub unit: usize,
    pub fraction_bits: u32,
}

/// A shard's pieces of one layer in a device's memory.
///
/// Gate and up of all pieces have one kind of codes and one group, and so have all down; scales and offsets are each
/// matrix' own. Pieces of other kinds make another shard, whose terms add up in the same sums.
pub struct ExpertsOnDevice {
    pieces: DeviceBuffer<ExpertPiece>,
    /// What the pieces point to.
    _matrices: Vec<PackedOnDevice>,
    _biases: Vec<DeviceBuffer<f32>>,
    options: ShardOptions,
    /// H
    width: usize,
    /// The longest piece along F.
    widest: usize,
    /// One more than the highest id of a piece.
    experts: usize,
    /// The most pieces of one expert.
    copies: usize,
    inner: (PackedFormat, Form),
    down: (PackedFormat, Form),
    stored_bytes: usize,
}

impl ExpertsOnDevice {
    /// Brings the pieces of rows of `width` over.
    pub fn upload(
        device: &Arc<CudaDevice>,
        pieces: &[PackedPiece],
        width: usize,
        options: ShardOptions,
    ) -> Result<ExpertsOnDevice, CudaError> {
        let first = pieces.first().expect("a shard has pieces");
        let (inner, down) = (first.gate.format(), first.down.format());
        assert!(options.unit.is_multiple_of(down.group) && options.unit <= 4 * down.group, "experts: unit");
        assert!(options.fraction_bits <= 50, "experts: fraction bits");
        let mut order: Vec<&PackedPiece> = pieces.iter().collect();
        order.sort_by_key(|piece| piece.expert);
        let (mut matrices, mut biases, mut table) = (Vec::new(), Vec::new(), Vec::new());
        for piece in &order {
            let f = piece.gate.rows();
            let alike = |w: &Packed, first: PackedFormat| {
                (w.format().codes, w.format().group) == (first.codes, first.group)
            };
            let fits = alike(&piece.gate, inner) && alike(&piece.up, inner) && alike(&piece.down, down);
            assert!(fits, "experts: one kind of codes of gate and up, and one of down");
            assert_eq!(
                (piece.gate.cols(), piece.up.rows(), piece.up.cols()),
                (width, f, width),
                "experts: gate and up"
            );
            assert_eq!((piece.down.rows(), piece.down.cols()), (width, f), "experts: down");
            let mut put = |packed: &Packed| {
                matrices.push(PackedOnDevice::upload(device, packed)?);
                Ok::<_, CudaError>(matrices[matrices.len() - 1].part())
            };
            let (gate, up, down) = (put(&piece.gate)?, put(&piece.up)?, put(&piece.down)?);
            let mut put_bias = |bias: &Option<Vec<f32>>, length: usize| {
                let Some(bias) = bias else { return Ok(0) };
                assert_eq!(bias.len(), length, "experts: bias");
                biases.push(DeviceBuffer::copied(device, bias)?);
                Ok::<_, CudaError>(biases[biases.len() - 1].at(0))
            };
            table.push(ExpertPiece {
                gate,
                up,
                down,
                gate_bias: put_bias(&piece.gate_bias, f)?,
                up_bias: put_bias(&piece.up_bias, f)?,
                down_bias: put_bias(&piece.down_bias, width)?,
                expert: piece.expert,
                width: f as u32,
            });
        }
        Ok(ExpertsOnDevice {
            pieces: DeviceBuffer::copied(device, &table)?,
            stored_bytes: matrices.iter().map(PackedOnDevice::stored_bytes).sum(),
            _matrices: matrices,
            _biases: biases,
            options,
            width,
            widest: order.iter().map(|piece| piece.gate.rows()).max().unwrap_or(0),
            experts: order.iter().map(|piece| piece.expert as usize + 1).max().unwrap_or(0),
            copies: order.chunk_by(|a, b| a.expert == b.expert).map(<[_]>::len).max().unwrap_or(0),
            inner: (inner, Form::of(inner)?),
            down: (down, Form::of(down)?),
        })
    }

    /// The bytes of all matrices.
    pub fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }

    fn hidden_groups(&self) -> usize {
        self.widest.div_ceil(self.down.0.group)
    }

    /// All kernels that the shard may launch, for `CudaDevice::prepare`.
    pub fn kernels(&self) -> Vec<Kernel> {
        let mut kernels = vec![quantize::KERNEL, PLAN, SUM];
        for path in [Path::Dot, Path::Eight, Path::ThirtyTwo, Path::Tiles] {
            kernels.push(Kernel {
                source: Source::ExpertsGateUp,
                name: path.gate_up(),
                form: Some(self.inner.1),
            });
            kernels.push(Kernel { source: Source::ExpertsDown, name: path.down(), form: Some(self.down.1) });
        }
        kernels
    }
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

/// What the kernels of a shard need beside weights and sums, for up to `rows` rows of `top_k` experts each.
pub struct ExpertsScratch {
    x: QuantizedBuffer,
    hidden: QuantizedBuffer,
    pairs: DeviceBuffer<u32>,
    slots: DeviceBuffer<i32>,
    tiles: DeviceBuffer<ExpertTile>,
    tile_count: DeviceBuffer<u32>,
    /// Empty where no more than `DECODE_TOKENS` rows come.
    terms: DeviceBuffer<i64>,
    term_columns: usize,
    rows: usize,
    top_k: usize,
}

impl ExpertsScratch {
    pub fn new(
        device: &Arc<CudaDevice>,
        shard: &ExpertsOnDevice,
        rows: usize,
        top_k: usize,
    ) -> Result<ExpertsScratch, CudaError> {
        let slots = rows * top_k * shard.copies;
        let tiles = (shard.pieces.len() + slots).max(1);
        let all_columns = shard.width.next_multiple_of(TILE_COLUMNS);
        let term_columns =
            (TERMS_BYTES / 8 / slots.max(1) / TILE_COLUMNS * TILE_COLUMNS).clamp(TILE_COLUMNS, all_columns);
        Ok(ExpertsScratch {
            x: QuantizedBuffer::new(device, rows, shard.width, shard.inner.0.group)?,
            hidden: QuantizedBuffer::new(
                device,
                slots,
                shard.hidden_groups() * shard.down.0.group,
                shard.down.0.group,
            )?,
            pairs: DeviceBuffer::zeros(device, slots)?,
            slots: DeviceBuffer::zeros(device, slots)?,
            tiles: DeviceBuffer::zeros(device, tiles)?,
            tile_count: DeviceBuffer::zeros(device, 1)?,
            terms: DeviceBuffer::zeros(device, slots * term_columns)?,
            term_columns,
            rows,
            top_k,
        })
    }
}

/// Where the rows go.
#[derive(Clone, Copy)]
pub struct Routing<'a> {
    /// `[T, K]`, distinct within a row.
    pub ids: &'a DeviceBuffer<u32>,
    /// `[T, K]`
    pub weights: &'a DeviceBuffer<f32>,
    pub top_k: usize,
}

/// Fixed-point sums `[T, H]` and a flag per row.
pub struct DeviceSums {
    pub sums: DeviceBuffer<i64>,
    pub poison: DeviceBuffer<u32>,
}

/// Adds what the shard's pieces contribute to `sums`. Faults come to light when the queue is synchronised.
pub fn experts(
    queue: &CudaQueue,
    shard: &ExpertsOnDevice,
    x: Strided<'_>,
    routing: Routing<'_>,
    path: Path,
    scratch: &mut ExpertsScratch,
    sums: &mut DeviceSums,
) {
    let rows = x.rows;
    let pairs = rows * routing.top_k;
    assert!(x.heads == 1 && x.width == shard.width, "experts: x");
    assert!(rows <= scratch.rows && routing.top_k <= scratch.top_k && rows <= MOST_ROWS, "experts: scratch");
    assert!(pairs <= routing.ids.len().min(routing.weights.len()), "experts: routing");
    assert!(rows * shard.width <= sums.sums.len() && rows <= sums.poison.len(), "experts: sums");
    if pairs == 0 {
        return;
    }
    let path = chosen(path, queue, shard, rows);
    assert!(path == Path::Tiles || rows <= DECODE_TOKENS, "experts: {rows} rows by {path:?}");

    quantize(queue, x, &mut scratch.x);
    let options = &shard.options;
    let args = ExpertsArgs {
        pieces: shard.pieces.at(0),
        ids: routing.ids.at(0),
        weights: routing.weights.at(0),
        x: scratch.x.argument(),
        pairs: scratch.pairs.at(0),
        slots: scratch.slots.at(0),
        tiles: scratch.tiles.at(0),
        tile_count: scratch.tile_count.at(0),
        hidden_codes: scratch.hidden.codes.at(0),
        hidden_scales: scratch.hidden.scales.at(0),
        hidden_sums: scratch.hidden.sums.at(0),
        terms: scratch.terms.at(0),
        sums: sums.sums.at(0),
        poison: sums.poison.at(0),
        inner_table: Table::of(shard.inner.0.codes),
        down_table: Table::of(shard.down.0.codes),
        piece_count: shard.pieces.len() as u32,
        experts: shard.experts as u32,
        tokens: rows as u32,
        top_k: routing.top_k as u32,
        copies: shard.copies as u32,
        width: shard.width as u32,
        inner_groups: shard.width.div_ceil(shard.inner.0.group) as u32,
        hidden_groups: shard.hidden_groups() as u32,
        hidden_group: shard.down.0.group as u32,
        widest: shard.widest as u32,
        unit_groups: (options.unit / shard.down.0.group) as u32,
        tile_tokens: path.tokens() as u32,
        first_column: 0,
        term_columns: scratch.term_columns as u32,
        activation: options.activation.into(),
        weight_on_input: u32::from(options.weight_on == WeightOn::Input),
        two_to_b: 2f32.powi(options.fraction_bits as i32),
        limit: 2f32.powi(51 - options.fraction_bits as i32),
    };
    let work = Work { queue, shard, path, args, slots: pairs * shard.copies };
    work.plan();
    match path {
        Path::Tiles => work.tiles(),
        _ => work.rows(),
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
        let shared = 4 * (16 + self.shard.experts);
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
