//! `pack`: a matrix as stored becomes a packed one: our own int4 or int8, made by ARITHMETIC.md, 9, or the groups that are
//! stored already, whose values stay what they are.
//!
//! Threads share out the panels.

use super::run_of;
use crate::arena::Arena;
use crate::cpu::pack::{int4_group, int8_group};
use crate::device::{Device, Isa};
use crate::matrix::Matrix;
use crate::packed::{Codes, LINE, OWN_GROUP, PANEL_ROWS, Packed, PackedFormat, Scales};
use crate::view::SharedSlice;

/// What a matrix is packed into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// The groups it is stored in. Panics for a matrix that is not stored in groups.
    AsStored,
    /// Our own groups of 64.
    Int8,
    /// Our own groups of 64.
    Int4,
}

/// The packed matrix, in a piece of the arena.
pub fn pack(device: &Device, matrix: &Matrix, packing: Packing, arena: &mut Arena) -> Packed {
    let format = match packing {
        Packing::AsStored => {
            matrix.packed_format().unwrap_or_else(|| panic!("a matrix without groups as stored"))
        }
        Packing::Int8 => PackedFormat::INT8,
        Packing::Int4 => PackedFormat::INT4,
    };
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut bytes = arena.piece(format.bytes(rows, cols));
    let groups = cols.div_ceil(format.group);
    let panel_bytes = groups * format.record();
    let panels = rows.div_ceil(PANEL_ROWS);
    let shared = SharedSlice::new(bytes.as_mut_slice());
    let Device::Cpu(cpu) = device else { panic!("weights are packed on the CPU") };
    let parts = cpu.parts_for(panels, rows * cols);
    cpu.pool.run(parts, &|part| {
        let mut writer =
            PanelWriter { matrix, packing, isa: cpu.isa, format, values: vec![0.0; groups * format.group] };
        for panel in run_of(panels, parts, part) {
            // SAFETY: panels belong to one part each.
            writer.panel(panel, unsafe { shared.range(panel * panel_bytes, panel_bytes) });
        }
    });
    Packed::new(format, bytes.share(), rows, cols)
}

struct PanelWriter<'a> {
    matrix: &'a Matrix,
    packing: Packing,
    isa: Isa,
    format: PackedFormat,
    /// A row's values, zero behind its end.
    values: Vec<f32>,
}

impl PanelWriter<'_> {
    fn panel(&mut self, panel: usize, out: &mut [u8]) {
        let records = out.chunks_exact_mut(self.format.record());
        let zero = self.format.codes.zero();
        let fill = if self.format.codes == Codes::Int8 { zero } else { zero | zero << 4 };
        records.for_each(|record| record[self.format.codes_at()..].fill(fill));
        for row in panel * PANEL_ROWS..((panel + 1) * PANEL_ROWS).min(self.matrix.rows()) {
            match self.packing {
                Packing::AsStored => self.stored_row(row, out),
                Packing::Int8 | Packing::Int4 => self.own_row(row, out),
            }
        }
    }

    fn stored_row(&mut self, row: usize, out: &mut [u8]) {
        let mut codes = [0u8; 128];
        let codes = &mut codes[..self.format.group];
        for (group, record) in out.chunks_exact_mut(self.format.record()).enumerate() {
            let (scale, offset) = self.matrix.stored_group(row, group, codes);
            self.put(record, row % PANEL_ROWS, codes, scale, offset);
        }
    }

    fn own_row(&mut self, row: usize, out: &mut [u8]) {
        let cols = self.matrix.cols();
        let mut values = std::mem::take(&mut self.values);
        self.matrix.dequantize_row(row, &mut values[..cols]);
        let mut codes = [0u8; OWN_GROUP];
        let groups = values.chunks_exact(OWN_GROUP).zip(out.chunks_exact_mut(self.format.record()));
        for (x, record) in groups {
            let x: &[f32; OWN_GROUP] = x.try_into().unwrap_or_else(|_| unreachable!("chunks are exact"));
            let mut scale = 0.0;
            match self.packing {
                Packing::Int4 => int4_group(self.isa, x, &mut codes, &mut scale),
                _ => int8_group(self.isa, x, &mut codes, &mut scale),
            }
            self.put(record, row % PANEL_ROWS, &codes, scale, 0.0);
        }
        self.values = values;
    }

    /// Writes a row's group into a record.
    fn put(&self, record: &mut [u8], r: usize, codes: &[u8], scale: f32, offset: f32) {
        match self.format.scales {
            Scales::F16 => {
                record[2 * r..2 * r + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes())
            }
            Scales::F32 => record[4 * r..4 * r + 4].copy_from_slice(&scale.to_le_bytes()),
        }
        if self.format.offsets {
            let at = self.format.offsets_at() + 4 * r;
            record[at..at + 4].copy_from_slice(&offset.to_le_bytes());
        }
        let lines = record[self.format.codes_at()..].chunks_exact_mut(LINE);
        for (line, codes) in lines.zip(codes.chunks_exact(self.format.codes.line_columns())) {
            let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let packed = match self.format.codes {
                Codes::Int8 => word(codes),
                Codes::Int4 { .. } => word(&codes[..4]) | word(&codes[4..]) << 4,
            };
            line[4 * r..4 * r + 4].copy_from_slice(&packed.to_le_bytes());
        }
    }
}
