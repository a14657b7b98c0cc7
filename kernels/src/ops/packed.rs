//! `quantize` and `project`: rows in int8, and products of rows with weights of any form.
//!
//! x `[T, K]` f32 becomes codes `[T, groups * G]` i8, scales and sums `[T, groups]`; out `[T, N]` f32. Threads share out
//! rows to quantise, panels of W to multiply.

use super::{linear, run_of};
use crate::buffer::Buffer;
use crate::cpu::packed::{Decode, PanelRun, QuantRow, QuantSet, TileScratch, Tiles, panel_run, quantize_row};
use crate::cuda::{self, LinearPath, Quantized, WeightOnDevice};
use crate::device::{CpuDevice, Device};
use crate::error::KernelError;
use crate::packed::Packed;
use crate::stream::Stream;
use crate::view::{SharedRows, SharedSlice, View, ViewMut};
use crate::weight::Weight;

/// Codes, scales and sums of a row.
pub type HostRow = (Vec<i8>, Vec<f32>, Vec<i32>);

/// Rows in int8 (ARITHMETIC.md, 7), with room for more.
pub struct QuantRows {
    codes: Buffer<i8>,
    scales: Buffer<f32>,
    sums: Buffer<i32>,
    rows: usize,
    width: usize,
    group: usize,
}

impl QuantRows {
    /// Nothing yet, with room for `rows` rows of `width` in groups of 32 or more.
    pub fn new(device: &Device, rows: usize, width: usize) -> Result<QuantRows, KernelError> {
        let width = width.next_multiple_of(GROUP_MAX);
        Ok(QuantRows {
            codes: Buffer::zeros(device, rows * width)?,
            scales: Buffer::zeros(device, rows * width / GROUP_MIN)?,
            sums: Buffer::zeros(device, rows * width / GROUP_MIN)?,
            rows: 0,
            width: 0,
            group: GROUP_MIN,
        })
    }

    /// Bytes for `rows` rows of `width`.
    pub fn bytes(rows: usize, width: usize) -> usize {
        let width = width.next_multiple_of(GROUP_MAX);
        rows * (width + width / GROUP_MIN * 8)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn group(&self) -> usize {
        self.group
    }

    fn groups(&self) -> usize {
        self.width.div_ceil(self.group)
    }

    /// A row's codes (the last group filled up with zeros), scales and sums, copied to the host.
    pub fn download(&self, stream: &Stream, row: usize) -> Result<HostRow, KernelError> {
        let groups = self.groups();
        let mut out = (vec![0; groups * self.group], vec![0.0; groups], vec![0; groups]);
        stream.download(&self.codes, row * groups * self.group, &mut out.0)?;
        stream.download(&self.scales, row * groups, &mut out.1)?;
        stream.download(&self.sums, row * groups, &mut out.2)?;
        Ok(out)
    }

    /// Whether `quantize` can have made these codes and scales (ARITHMETIC.md, 7): with others, kernels give answers of their own.
    pub fn could_be(codes: &[i8], scales: &[f32]) -> bool {
        let exponents = 127 - 106..=127 + 122;
        let is_scale = |d: &f32| {
            let bits = d.to_bits();
            d.is_nan() || (bits & 0x807f_ffff == 0 && exponents.contains(&(bits >> 23)))
        };
        scales.iter().all(is_scale) && !codes.contains(&i8::MIN)
    }

    /// Takes in rows that `quantize` made elsewhere: codes `[T, groups * G]`, the last group filled up with zeros, and scales
    /// `[T, groups]`. The groups' sums follow from the codes. There has to be room.
    pub fn upload(
        &mut self,
        stream: &Stream,
        [rows, width, group]: [usize; 3],
        codes: &[i8],
        scales: &[f32],
    ) -> Result<(), KernelError> {
        self.shape(rows, width, group);
        let groups = rows * self.groups();
        assert_eq!((codes.len(), scales.len()), (groups * group, groups), "rows in int8: their shape");
        stream.upload(codes, &mut self.codes)?;
        stream.upload(scales, &mut self.scales)?;
        let sum_of = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
        if let Device::Cuda(_) = stream.device() {
            let sums: Vec<i32> = codes.chunks_exact(group).map(sum_of).collect();
            return stream.upload(&sums, &mut self.sums);
        }
        for (sum, codes) in self.sums.host_mut().iter_mut().zip(codes.chunks_exact(group)) {
            *sum = sum_of(codes);
        }
        Ok(())
    }

    /// All codes and scales, as `upload` takes them.
    pub fn download_all(
        &self,
        stream: &Stream,
        codes: &mut Vec<i8>,
        scales: &mut Vec<f32>,
    ) -> Result<(), KernelError> {
        let groups = self.rows * self.groups();
        codes.resize(groups * self.group, 0);
        scales.resize(groups, 0.0);
        stream.download(&self.codes, 0, codes)?;
        stream.download(&self.scales, 0, scales)
    }

    /// Whether these rows fit.
    pub fn has_room(&self, rows: usize, width: usize) -> bool {
        let width = width.next_multiple_of(GROUP_MAX);
        rows * width <= self.codes.len() && rows * width / GROUP_MIN <= self.scales.len()
    }

    /// Says what the rows will be. Panics when there is no room for them.
    pub(crate) fn shape(&mut self, rows: usize, width: usize, group: usize) {
        (self.rows, self.width, self.group) = (rows, width, group);
        let groups = self.groups();
        assert!((GROUP_MIN..=GROUP_MAX).contains(&group), "groups of {group}");
        assert!(
            rows * groups * group <= self.codes.len() && rows * groups <= self.scales.len(),
            "room for rows"
        );
    }

    /// For kernels whose threads write rows of their own.
    pub(crate) fn shared(&mut self) -> SharedQuant {
        SharedQuant {
            codes: SharedSlice::new(self.codes.host_mut()),
            scales: SharedSlice::new(self.scales.host_mut()),
            sums: SharedSlice::new(self.sums.host_mut()),
            groups: self.width.div_ceil(self.group),
            group: self.group,
        }
    }

    /// For a GPU's kernels. Panics for the CPU's rows.
    pub(crate) fn cuda(&self) -> Quantized<'_> {
        Quantized {
            codes: self.codes.cuda(),
            scales: self.scales.cuda(),
            sums: self.sums.cuda(),
            rows: self.rows,
            width: self.width,
            group: self.group,
        }
    }

    /// For kernels that read rows.
    pub(crate) fn set(&self) -> QuantSet {
        let first = QuantRow {
            codes: self.codes.host().as_ptr(),
            scales: self.scales.host().as_ptr(),
            sums: self.sums.host().as_ptr(),
        };
        QuantSet { first, groups: self.groups(), group: self.group }
    }
}

const GROUP_MIN: usize = 32;
const GROUP_MAX: usize = 128;

/// Quantised rows that threads write, each its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedQuant {
    codes: SharedSlice<i8>,
    scales: SharedSlice<f32>,
    sums: SharedSlice<i32>,
    groups: usize,
    group: usize,
}

impl SharedQuant {
    /// The groups `first..first + count` of a row.
    ///
    /// # Safety
    /// No two threads may hold the same groups.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn groups(
        &self,
        row: usize,
        first: usize,
        count: usize,
    ) -> (&mut [i8], &mut [f32], &mut [i32]) {
        let at = row * self.groups + first;
        // SAFETY: disjoint groups have disjoint codes, scales and sums.
        unsafe {
            (
                self.codes.range(at * self.group, count * self.group),
                self.scales.range(at, count),
                self.sums.range(at, count),
            )
        }
    }
}

/// rows <- x in int8, in groups of `group`.
pub fn quantize(stream: &Stream, x: View<'_>, group: usize, rows: &mut QuantRows) {
    let at = x.layout();
    assert_eq!(at.heads, 1, "quantize works on rows");
    rows.shape(at.rows, at.width, group);
    if let Some(queue) = stream.cuda() {
        return cuda::quantize(queue, x.strided(), rows.cuda());
    }
    let cpu = stream.cpu();
    let shared = rows.shared();
    let parts = cpu.parts_for(at.rows, at.rows * at.width / 8);
    cpu.pool.run(parts, &|part| {
        for row in run_of(at.rows, parts, part) {
            // SAFETY: parts have rows of their own.
            let (codes, scales, sums) = unsafe { shared.groups(row, 0, shared.groups) };
            quantize_row(cpu.isa, x.slice(row, 0), group, codes, scales, sums);
        }
    });
}

/// A product of a row with a weight, and where it goes.
pub struct Projection<'a> {
    /// `[N, K]`
    pub w: &'a Weight,
    pub bias: Option<&'a Buffer<f32>>,
    /// `[T, N]`
    pub out: ViewMut<'a>,
}

/// The most projections of one call.
pub const PROJECTIONS_MAX: usize = 4;

/// out <- x W^T + bias for several W that share x. Rows meet packed weights in int8, quantised once for all whose groups
/// are of one size; `quantized` has room for them.
pub fn project(stream: &Stream, x: View<'_>, quantized: &mut QuantRows, projections: &mut [Projection<'_>]) {
    if let Some(queue) = stream.cuda() {
        return project_on(queue, x, quantized, projections);
    }
    for group in [32, 64, 128] {
        if projections.iter().any(|p| p.w.packed().is_some_and(|w| w.format().group == group)) {
            quantize(stream, x, group, quantized);
            packed_linear(stream, quantized, projections);
        }
    }
    for projection in projections {
        match projection.w {
            Weight::Plain(w) => linear(stream, x, w, projection.bias, projection.out.reborrow()),
            Weight::Packed(_) => {}
            Weight::Cuda(w) => panic!("{w:?} on the CPU"),
        }
    }
}

/// `project` on a GPU: rows are quantised once a group, each product is a launch.
fn project_on(
    queue: &cuda::CudaQueue,
    x: View<'_>,
    quantized: &mut QuantRows,
    projections: &mut [Projection<'_>],
) {
    let at = x.layout();
    assert_eq!(at.heads, 1, "project works on rows");
    for projection in projections.iter() {
        let (w, out) = (projection.w.cuda(), projection.out.strided());
        let bias = projection.bias.map(Buffer::cuda);
        if let WeightOnDevice::Plain(w) = w {
            cuda::linear(queue, x.strided(), w, bias, out);
        }
    }
    for group in [32, 64, 128] {
        let mut written = false;
        for projection in projections.iter() {
            let WeightOnDevice::Packed(w) = projection.w.cuda() else { continue };
            if w.format().group != group {
                continue;
            }
            if !written {
                quantized.shape(at.rows, at.width, group);
                cuda::quantize(queue, x.strided(), quantized.cuda());
                written = true;
            }
            let (bias, out) = (projection.bias.map(Buffer::cuda), projection.out.strided());
            cuda::packed_linear(queue, quantized.cuda(), w, bias, LinearPath::Auto, out);
        }
    }
}

/// out <- x W^T + bias for those of the weights that are packed in x's groups, in one go.
fn packed_linear(stream: &Stream, x: &QuantRows, projections: &mut [Projection<'_>]) {
    assert!(projections.len() <= PROJECTIONS_MAX, "{} projections", projections.len());
    let mut runs = [const { None::<Run<'_>> }; PROJECTIONS_MAX];
    let mut panels = 0;
    for (run, projection) in runs.iter_mut().zip(projections) {
        let Some(w) = projection.w.packed().filter(|w| w.format().group == x.group) else { continue };
        let at = projection.out.layout();
        assert_eq!((at.rows, at.heads), (x.rows, 1), "project: rows");
        assert_eq!((at.width, x.width), (w.rows(), w.cols()), "project: shapes");
        let bias = projection.bias.map(|bias| bias.host());
        assert!(bias.is_none_or(|bias| bias.len() == at.width), "project: bias");
        *run = Some(Run { w, bias, out: projection.out.shared(), stride: at.row_stride, first: panels });
        panels += w.panels();
    }
    if x.rows == 0 {
        return;
    }
    let cpu = stream.cpu();
    let mut scratch = TileScratch::take();
    // Rows are laid side by side once for all codes of one bias, and that is nearly always all.
    let mut runs = runs.as_mut_slice();
    while let Some(bias) = runs.iter().flatten().next().map(Run::bias) {
        let x = lay(cpu, x, bias, &mut scratch);
        let end = runs.iter().position(|run| run.as_ref().is_some_and(|run| run.bias() != bias));
        let (now, later) = runs.split_at_mut(end.unwrap_or(runs.len()));
        run_panels(cpu, &x, now);
        runs = later;
    }
    scratch.keep();
}

/// The rows side by side, for codes with that bias.
fn lay(cpu: &CpuDevice, x: &QuantRows, bias: i32, scratch: &mut TileScratch) -> Tiles {
    let (set, rows) = (x.set(), x.rows);
    if rows <= FEW_ROWS {
        // SAFETY: the set has these rows, and both stay while the tiles are read.
        return unsafe { scratch.lay(&set, rows, bias, |row| row) };
    }
    let tiles = scratch.room(&set, rows);
    let parts = cpu.parts_for(rows, rows * x.width / 8);
    cpu.pool.run(parts, &|part| {
        for row in run_of(rows, parts, part) {
            // SAFETY: the set has this row, there is room for it, and every row belongs to one part.
            unsafe { tiles.put(row, &set.row(row), bias) };
        }
    });
    tiles
}

/// Threads share out the panels.
fn run_panels(cpu: &CpuDevice, x: &Tiles, runs: &[Option<Run<'_>>]) {
    let first = runs.iter().flatten().map(|run| run.first).min().unwrap_or(0);
    let panels: usize = runs.iter().flatten().map(|run| run.w.panels()).sum();
    // Few rows: many parts, for memory does not serve all threads alike.
    let work = x.rows * panels * x.groups * x.group / 4;
    let parts = cpu.parts_within(panels, work, if x.rows > FEW_ROWS { 3 } else { 8 });
    cpu.pool.run(parts, &|part| {
        let mine = run_of(panels, parts, part);
        let mine = first + mine.start..first + mine.end;
        for run in runs.iter().flatten() {
            let (start, end) = (mine.start.max(run.first), mine.end.min(run.first + run.w.panels()));
            if start < end {
                let panels = PanelRun {
                    w: run.w,
                    panels: start - run.first..end - run.first,
                    x: *x,
                    bias: run.bias,
                    out: run.out.pointer(0, 0, 0),
                    stride: run.stride,
                };
                // SAFETY: parts have panels, and so columns, of their own; shapes were checked above.
                unsafe { panel_run(cpu.isa, &panels) };
            }
        }
    });
}

/// Rows that are bound by memory.
const FEW_ROWS: usize = 8;

/// A projection's panels among those of all.
struct Run<'a> {
    w: &'a Packed,
    bias: Option<&'a [f32]>,
    out: SharedRows,
    stride: usize,
    first: usize,
}

impl Run<'_> {
    /// What was added to make the codes unsigned.
    fn bias(&self) -> i32 {
        Decode::of(self.w.format().codes).bias
    }
}
