//! `quantize` and `packed_linear`: rows in int8, and their products with packed weights.
//!
//! x `[T, K]` f32 becomes codes `[T, groups * G]` i8, scales and sums `[T, groups]`; out `[T, N]` f32. Threads share out
//! rows to quantise, panels of W to multiply.

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::packed::{PanelRun, QuantRow, QuantSet, panel_run, quantize_row};
use crate::device::Device;
use crate::error::KernelError;
use crate::packed::Packed;
use crate::stream::Stream;
use crate::view::{SharedRows, SharedSlice, View, ViewMut};

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
    pub fn download(
        &self,
        stream: &Stream,
        row: usize,
    ) -> Result<(Vec<i8>, Vec<f32>, Vec<i32>), KernelError> {
        let groups = self.groups();
        let mut out = (vec![0; groups * self.group], vec![0.0; groups], vec![0; groups]);
        stream.download(&self.codes, row * groups * self.group, &mut out.0)?;
        stream.download(&self.scales, row * groups, &mut out.1)?;
        stream.download(&self.sums, row * groups, &mut out.2)?;
        Ok(out)
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
    let cpu = stream.cpu();
    rows.shape(at.rows, at.width, group);
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

/// A product and where it goes.
pub struct PackedProduct<'a> {
    pub w: &'a Packed,
    pub bias: Option<&'a Buffer<f32>>,
    /// `[T, N]`
    pub out: ViewMut<'a>,
}

/// The most products of one call.
pub const PRODUCTS_MAX: usize = 4;

/// out <- x W^T + bias for several W of one format, in one go.
pub fn packed_linear(stream: &Stream, x: &QuantRows, products: &mut [PackedProduct<'_>]) {
    assert!(products.len() <= PRODUCTS_MAX, "packed_linear: {} products", products.len());
    for product in products.iter() {
        let at = product.out.layout();
        assert_eq!((at.rows, at.heads), (x.rows, 1), "packed_linear: rows");
        assert_eq!((at.width, x.width), (product.w.rows(), product.w.cols()), "packed_linear: shapes");
        assert_eq!(x.group, product.w.format().group, "packed_linear: group");
        assert!(product.bias.is_none_or(|bias| bias.len() == at.width), "packed_linear: bias");
    }
    if x.rows == 0 {
        return;
    }
    let cpu = stream.cpu();
    let panels: usize = products.iter().map(|product| product.w.panels()).sum();
    let parts = cpu.parts_for(panels, x.rows * panels * x.width / 4);
    let mut outs = [None::<SharedRows>; PRODUCTS_MAX];
    for (out, product) in outs.iter_mut().zip(products.iter_mut()) {
        *out = Some(product.out.shared());
    }
    let products = &*products;
    cpu.pool.run(parts, &|part| {
        let mine = run_of(panels, parts, part);
        let mut first = 0;
        for (product, out) in products.iter().zip(outs.iter().flatten()) {
            let (start, end) = (mine.start.max(first), mine.end.min(first + product.w.panels()));
            if start < end {
                let run = PanelRun {
                    w: product.w,
                    panels: start - first..end - first,
                    x: x.set(),
                    rows: x.rows,
                    bias: product.bias.map(|bias| bias.host()),
                    out: out.pointer(0, 0, 0),
                    stride: product.out.layout().row_stride,
                };
                // SAFETY: parts have panels, and so columns, of their own; shapes were checked above.
                unsafe { panel_run(cpu.isa, &run) };
            }
            first += product.w.panels();
        }
    });
}
