//! `experts`: the weighted outputs of a shard's experts for a batch of rows, as 64-bit fixed-point partial sums.
//!
//! x `[T, H]` in f32, or for packed pieces in int8, routing ids and weights `[T, K]`. A piece is a run of canonical units of one expert: gate and up
//! `[f, H]`, down `[H, f]`. Sums `[T, H]` i64 and a poison flag per row. Partial sums of any shards add up to the same
//! integers (ARITHMETIC.md, 6). Threads share out rows of gate and up first, output columns then: no atomics but flags.

use super::{Activation, QuantRows, quantize, run_of};
use crate::buffer::Buffer;
use crate::cpu;
use crate::cuda::{self, ExpertsBatch, ExpertsOnDevice, Path, ShardOptions, SumsOnDevice};
use crate::device::Device;
use crate::error::KernelError;
use crate::stream::Stream;
use crate::view::{SharedSlice, View, ViewMut};
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
    /// The same piece where `device` computes: itself for the CPU; a copy of its packed matrices in a GPU's memory, which may
    /// be of several `ExpertPieces` there.
    pub fn on(self, device: &Device) -> Result<ExpertPiece, KernelError> {
        let Device::Cuda(_) = device else { return Ok(self) };
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(|weight| match weight {
            Weight::Packed(_) => weight.on(device),
            Weight::Cuda(_) => Ok(weight.clone()),
            Weight::Plain(_) => Err(cuda::not_packed().into()),
        });
        Ok(ExpertPiece { gate: gate?, up: up?, down: down?, ..self })
    }

    /// Whether its matrices and biases belong together and to rows of `width`.
    pub(crate) fn fits(&self, width: usize) -> bool {
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

/// What a shard holds of one layer, where it is computed; on the CPU a slice of pieces.
#[derive(Default)]
pub struct ExpertPieces {
    /// Empty on a GPU.
    host: Vec<ExpertPiece>,
    /// The experts of `host`. Whoever looks for those that were chosen reads a few lines here, not some of every piece.
    experts: Vec<u32>,
    /// What `host` has in common, found once: nothing changes a piece in here.
    width: Option<usize>,
    group: Option<usize>,
    cuda: Option<ExpertsOnDevice>,
}

impl ExpertPieces {
    /// Brings pieces to a device, if they are not there already. A GPU takes packed ones, with one kind of codes for all
    /// gates and ups and one for all downs; else this says what is in the way. Its kernels for them are compiled.
    pub fn on(device: &Device, pieces: Vec<ExpertPiece>) -> Result<ExpertPieces, KernelError> {
        match device {
            Device::Cuda(cuda) if !pieces.is_empty() => {
                let shard = ExpertsOnDevice::upload(cuda, &pieces)?;
                cuda.prepare(&shard.kernels())?;
                Ok(ExpertPieces { cuda: Some(shard), ..ExpertPieces::default() })
            }
            _ => Ok(pieces.into()),
        }
    }

    /// The size of the groups in which packed gates and ups meet rows in int8; `None` for plain pieces and for none.
    pub fn group(&self) -> Option<usize> {
        self.cuda.as_ref().map(ExpertsOnDevice::group).or(self.group)
    }

    /// The expert of each piece.
    pub(crate) fn experts(&self) -> &[u32] {
        &self.experts
    }
}

impl From<Vec<ExpertPiece>> for ExpertPieces {
    /// On the CPU.
    fn from(pieces: Vec<ExpertPiece>) -> ExpertPieces {
        let first = pieces.first().map(|piece| &piece.gate);
        let width = first.map(Weight::cols).filter(|&width| pieces.iter().all(|piece| piece.fits(width)));
        let group_of = |w: &Weight| w.packed().map(|w| w.format().group);
        let alike = |piece: &ExpertPiece, group| [&piece.gate, &piece.up].map(group_of) == [Some(group); 2];
        let group = first.and_then(group_of).filter(|&group| pieces.iter().all(|piece| alike(piece, group)));
        let experts = pieces.iter().map(|piece| piece.expert).collect();
        ExpertPieces { host: pieces, experts, width, group, cuda: None }
    }
}

impl std::ops::Deref for ExpertPieces {
    type Target = [ExpertPiece];

    fn deref(&self) -> &[ExpertPiece] {
        assert!(self.cuda.is_none(), "the CPU's view of a GPU's experts");
        &self.host
    }
}

/// Rows for experts, `[T, H]`.
#[derive(Clone, Copy)]
pub enum ExpertRows<'a> {
    F32(View<'a>),
    /// As packed pieces meet them: in groups of theirs.
    Int8(&'a QuantRows),
}

impl<'a> ExpertRows<'a> {
    pub fn rows(&self) -> usize {
        match self {
            ExpertRows::F32(x) => x.layout().rows,
            ExpertRows::Int8(x) => x.rows(),
        }
    }

    pub fn width(&self) -> usize {
        match self {
            ExpertRows::F32(x) => x.layout().width,
            ExpertRows::Int8(x) => x.width(),
        }
    }

    /// Plain experts take f32 alone.
    pub(crate) fn plain(&self) -> View<'a> {
        match self {
            ExpertRows::F32(x) => *x,
            ExpertRows::Int8(_) => panic!("rows in int8 for plain experts"),
        }
    }
}

impl<'a> From<View<'a>> for ExpertRows<'a> {
    fn from(x: View<'a>) -> ExpertRows<'a> {
        assert_eq!(x.layout().heads, 1, "experts work on rows");
        ExpertRows::F32(x)
    }
}

/// The work of one layer on one shard.
pub struct ExpertsArgs<'a> {
    /// `[T, H]`
    pub x: ExpertRows<'a>,
    /// `[T, K]`
    pub ids: &'a Buffer<u32>,
    /// `[T, K]`
    pub weights: &'a Buffer<f32>,
    pub top_k: usize,
    pub pieces: &'a ExpertPieces,
    pub activation: Activation,
    pub weight_on: WeightOn,
    /// The length of a unit along F.
    pub unit: usize,
    pub fraction_bits: u32,
}

/// Fixed-point sums on their way home: `[T, H]` and a flag per row.
pub struct PartialSums {
    pub(super) sums: Buffer<i64>,
    pub(super) poison: Buffer<u32>,
    pub(super) rows: usize,
    pub(super) width: usize,
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
        assert!(rows <= self.poison.len(), "partial sums: rows");
        self.rows = rows;
        if let Some(queue) = stream.cuda() {
            queue.zero(self.sums.cuda_mut(), rows * self.width);
            return queue.zero(self.poison.cuda_mut(), rows);
        }
        let (cpu, width) = (stream.cpu(), self.width);
        let sums = SharedSlice::new(self.sums.host_mut());
        let parts = cpu.parts_for(rows, rows * width / 8);
        cpu.pool.run(parts, &|part| {
            let rows = run_of(rows, parts, part);
            // SAFETY: parts have rows of their own.
            unsafe { sums.range(rows.start * width, rows.len() * width) }.fill(0);
        });
        self.poison.host_mut()[..rows].fill(0);
    }

    fn cuda(&self) -> SumsOnDevice<'_> {
        SumsOnDevice { sums: self.sums.cuda(), poison: self.poison.cuda() }
    }
}

/// What shards' partial sums go through.
pub mod partial_sums {
    use super::*;

    /// to <- to + from
    pub fn add(stream: &Stream, from: &PartialSums, to: &mut PartialSums) {
        assert_eq!((from.rows, from.width), (to.rows, to.width), "partial sums: shapes");
        let n = from.rows * from.width;
        if let Some(queue) = stream.cuda() {
            return cuda::sums_add(queue, from.cuda(), to.cuda(), from.rows, from.width);
        }
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
        if let Some(queue) = stream.cuda() {
            return cuda::sums_finish(queue, sums.cuda(), fraction_bits, out.strided());
        }
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
    /// A GPU's.
    cuda: Option<cuda::ExpertsScratch>,
}

impl ExpertsScratch {
    /// Nothing yet; it grows with the first batches.
    pub fn new(device: &Device) -> Result<ExpertsScratch, KernelError> {
        let cuda = match device {
            Device::Cpu(_) => None,
            Device::Cuda(device) => Some(cuda::ExpertsScratch::new(device)?),
        };
        Ok(ExpertsScratch { x: QuantRows::new(device, 0, 0)?, plan: Default::default(), cuda })
    }
}

/// The rows of `x` in int8: themselves, or made in `room`.
fn in_int8<'a>(
    stream: &Stream,
    x: ExpertRows<'a>,
    group: usize,
    room: &'a mut QuantRows,
) -> Result<&'a QuantRows, KernelError> {
    let x = match x {
        ExpertRows::Int8(rows) => {
            assert_eq!(rows.group(), group, "experts: the groups of rows in int8");
            return Ok(rows);
        }
        ExpertRows::F32(x) => x,
    };
    let at = x.layout();
    if !room.has_room(at.rows, at.width) {
        *room = QuantRows::new(stream.device(), at.rows, at.width)?;
    }
    quantize(stream, x, group, room);
    Ok(room)
}

/// Adds what the pieces contribute to `sums`. Where there are any, a row that names an expert twice is poisoned.
pub fn experts(
    stream: &Stream,
    args: &ExpertsArgs<'_>,
    scratch: &mut ExpertsScratch,
    sums: &mut PartialSums,
) -> Result<(), KernelError> {
    let (rows, width) = (args.x.rows(), args.x.width());
    assert_eq!((rows, width), (sums.rows, sums.width), "experts: x");
    assert!(rows * args.top_k <= args.ids.len().min(args.weights.len()), "experts: routing");
    if stream.cuda().is_some() {
        return experts_on(stream, args, scratch, sums);
    }
    let Some(first) = args.pieces.first() else { return Ok(()) };
    assert_eq!(args.pieces.width, Some(width), "experts: a piece's shape");
    poison_repeated(args, sums);
    let Some(packed) = first.gate.packed() else {
        let (values, poison) = (sums.sums.host_mut(), sums.poison.host_mut());
        cpu::experts::add_pieces(stream.cpu(), args, values, poison);
        return Ok(());
    };
    assert_eq!(args.unit, UNIT_MIN, "experts: packed groups divide the unit");
    let group = packed.format().group;
    assert_eq!(args.pieces.group, Some(group), "experts: gates and ups in groups of one size");
    let ExpertsScratch { x: room, plan, .. } = scratch;
    let x = in_int8(stream, args.x, group, room)?.set();
    let (values, poison) = (sums.sums.host_mut(), sums.poison.host_mut());
    cpu::packed_experts::add_packed_pieces(stream.cpu(), args, x, plan, values, poison);
    Ok(())
}

/// Poisons the rows that name an expert twice.
fn poison_repeated(args: &ExpertsArgs<'_>, sums: &mut PartialSums) {
    let (rows, top_k) = (args.x.rows(), args.top_k);
    let poison = &mut sums.poison.host_mut()[..rows];
    for (ids, poison) in args.ids.host().chunks_exact(top_k.max(1)).zip(poison) {
        let repeated = |at: usize| ids[..at].contains(&ids[at]);
        *poison |= u32::from((1..ids.len()).any(repeated));
    }
}

/// `experts` on a GPU.
fn experts_on(
    stream: &Stream,
    args: &ExpertsArgs<'_>,
    scratch: &mut ExpertsScratch,
    sums: &mut PartialSums,
) -> Result<(), KernelError> {
    let (Some(queue), Some(shard)) = (stream.cuda(), &args.pieces.cuda) else {
        assert!(args.pieces.host.is_empty(), "the CPU's experts on {}", stream.device());
        return Ok(());
    };
    let ExpertsScratch { x, cuda: room, .. } = scratch;
    let x = in_int8(stream, args.x, shard.group(), x)?;
    let room = room.as_mut().unwrap_or_else(|| panic!("the CPU's scratch on {}", stream.device()));
    room.make_room(shard, args.x.rows(), args.top_k)?;
    let batch = ExpertsBatch {
        x: x.cuda(),
        ids: args.ids.cuda(),
        weights: args.weights.cuda(),
        top_k: args.top_k,
        options: ShardOptions {
            activation: args.activation,
            weight_on: args.weight_on,
            unit: args.unit,
            fraction_bits: args.fraction_bits,
        },
        path: Path::Auto,
    };
    cuda::experts(queue, shard, &batch, room, sums.cuda());
    Ok(())
}
