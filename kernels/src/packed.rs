//! Packed weights: 4-bit or 8-bit codes with a scale per group, laid out for integer dot products.
//!
//! A matrix `[N, K]` is cut into **panels** of 16 rows; rows and columns that are missing at the edges have the code of
//! zero and scale 0. A panel is a run of `n = ceil(K / G)` **records**, one per group:
//!
//! ```text
//! scales    [16]        f16 or f32
//! offsets   [16]        f32, in formats that have them
//! codes     [lines][64] 4-bit: lines = G/8;  byte 4r + c of line j = code(r, 8j + c) | code(r, 8j + 4 + c) << 4
//!                       8-bit: lines = G/4;  byte 4r + c of line j = code(r, 4j + c)
//! ```
//!
//! `r` is the row within the panel, `c` 0..4, column indices count within the group. One 64-byte line feeds one AVX-512
//! dot instruction for its low and one for its high nibbles. A thread that reads a panel reads one ascending run of
//! bytes: with scales in a plane of their own a Zen 4 core streamed half as fast (notes/2026-11-20-w4a8.md). What codes
//! mean: ARITHMETIC.md, 8.

use std::fmt;
use std::ops::Range;

use crate::bytes::Bytes;

/// The number of this layout, for files that keep packed weights: another one for any change of panels and records, or of
/// the way in which weights are quantised (ARITHMETIC.md, 9).
pub const PACKED_LAYOUT: u32 = 1;
/// The number of what ARITHMETIC.md says: another one for any change that changes bits. Those who compute one answer together must
/// have the same.
pub const ARITHMETIC: u32 = 2;
/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// The bytes of a line of codes.
pub const LINE: usize = 64;

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// 4 bits, an index into 16 integers.
    Int4 { table: [i8; 16] },
    /// 8 bits, the integer plus 128.
    Int8,
}

impl Codes {
    /// `code - 8`
    pub const INT4: Codes = Codes::Int4 { table: [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7] };
    /// The doubled values of E2M1.
    pub const MXFP4: Codes = Codes::Int4 { table: [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12] };

    /// The integer of a code.
    pub fn value(self, code: u8) -> i32 {
        match self {
            Codes::Int4 { table } => i32::from(table[(code & 15) as usize]),
            Codes::Int8 => i32::from(code) - 128,
        }
    }

    /// A code that stands for zero. Panics if the table has none.
    pub fn zero(self) -> u8 {
        match self {
            Codes::Int4 { table } => {
                table.iter().position(|&value| value == 0).expect("a table with a zero") as u8
            }
            Codes::Int8 => 128,
        }
    }

    /// Columns of one 64-byte line.
    pub fn line_columns(self) -> usize {
        match self {
            Codes::Int4 { .. } => 8,
            Codes::Int8 => 4,
        }
    }
}

/// For people.
impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Codes::INT4 => "4-bit codes",
            Codes::MXFP4 => "MXFP4 codes",
            Codes::Int4 { .. } => "4-bit codes of a table",
            Codes::Int8 => "8-bit codes",
        })
    }
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    F16,
    F32,
}

impl Scales {
    pub fn bytes(self) -> usize {
        match self {
            Scales::F16 => 2,
            Scales::F32 => 4,
        }
    }
}

/// A form of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedFormat {
    pub codes: Codes,
    pub scales: Scales,
    /// Whether groups have an offset.
    pub offsets: bool,
    /// G: 32, 64 or 128.
    pub group: usize,
}

impl PackedFormat {
    /// What we make of weights ourselves.
    pub const INT4: PackedFormat =
        PackedFormat { codes: Codes::INT4, scales: Scales::F16, offsets: false, group: OWN_GROUP };
    /// What we make of weights ourselves.
    pub const INT8: PackedFormat =
        PackedFormat { codes: Codes::Int8, scales: Scales::F16, offsets: false, group: OWN_GROUP };

    fn lines(self) -> usize {
        self.group / self.codes.line_columns()
    }

    /// The bytes of a record.
    pub fn record(self) -> usize {
        self.codes_at() + self.lines() * LINE
    }

    /// Where a record's offsets begin, if it has any.
    pub fn offsets_at(self) -> usize {
        PANEL_ROWS * self.scales.bytes()
    }

    /// Where a record's codes begin.
    pub fn codes_at(self) -> usize {
        self.offsets_at() + if self.offsets { PANEL_ROWS * 4 } else { 0 }
    }

    /// The bytes of a packed matrix `[rows, cols]`.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL_ROWS) * cols.div_ceil(self.group) * self.record()
    }
}

/// The group of weights that we quantise ourselves.
pub const OWN_GROUP: usize = 64;

/// A packed matrix, or whole panels and whole groups of one.
#[derive(Clone, Debug)]
pub struct Packed {
    format: PackedFormat,
    bytes: Bytes,
    /// Groups of a stored row.
    stored_groups: usize,
    first_panel: usize,
    first_group: usize,
    rows: usize,
    cols: usize,
}

impl Packed {
    /// A whole packed matrix `[rows, cols]`. Panics when the bytes do not fit the shape or do not begin on a line.
    pub fn new(format: PackedFormat, bytes: Bytes, rows: usize, cols: usize) -> Packed {
        assert!(matches!(format.group, 32 | 64 | 128), "groups of {}", format.group);
        assert_eq!(bytes.len(), format.bytes(rows, cols), "bytes of a packed {rows} x {cols} matrix");
        assert!((bytes.as_slice().as_ptr() as usize).is_multiple_of(LINE), "alignment of a packed matrix");
        let stored_groups = cols.div_ceil(format.group);
        Packed { format, bytes, stored_groups, first_panel: 0, first_group: 0, rows, cols }
    }

    pub fn format(&self) -> PackedFormat {
        self.format
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.format.group)
    }

    /// The rows `first..first + count`; `first` begins a panel.
    pub fn row_slice(&self, first: usize, count: usize) -> Packed {
        assert!(
            first.is_multiple_of(PANEL_ROWS) && first + count <= self.rows,
            "rows {first}..+{count} of {}",
            self.rows
        );
        Packed { first_panel: self.first_panel + first / PANEL_ROWS, rows: count, ..self.clone() }
    }

    /// The columns `first..first + count`; `first` begins a group, and so does what follows, if anything does.
    pub fn col_slice(&self, first: usize, count: usize) -> Packed {
        let group = self.format.group;
        let end = first + count;
        assert!(
            first.is_multiple_of(group) && (end.is_multiple_of(group) || end == self.cols),
            "whole groups"
        );
        assert!(end <= self.cols, "columns {first}..+{count} of {}", self.cols);
        Packed { first_group: self.first_group + first / group, cols: count, ..self.clone() }
    }

    /// The bytes of the part.
    pub fn stored_bytes(&self) -> usize {
        self.panels() * self.groups() * self.format.record()
    }

    /// The records of a panel's groups.
    pub fn panel(&self, panel: usize) -> &[u8] {
        assert!(panel < self.panels(), "panel {panel} of {}", self.panels());
        let record = self.format.record();
        let first = (self.first_panel + panel) * self.stored_groups + self.first_group;
        &self.bytes.as_slice()[first * record..(first + self.groups()) * record]
    }

    /// The records of a run of panels. Panics for a part that has not all the columns.
    pub fn panel_run(&self, panels: Range<usize>) -> &[u8] {
        assert!(panels.end <= self.panels() && self.groups() == self.stored_groups, "panels {panels:?}");
        let panel = self.stored_groups * self.format.record();
        let first = self.first_panel + panels.start;
        &self.bytes.as_slice()[first * panel..(first + panels.len()) * panel]
    }

    /// The code of an element. For tests and references: kernels read whole lines.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        assert!(row < self.rows && col < self.cols, "({row}, {col}) of {} x {}", self.rows, self.cols);
        let (group, within) = (col / self.format.group, col % self.format.group);
        let (line, at) =
            (within / self.format.codes.line_columns(), within % self.format.codes.line_columns());
        let byte = group * self.format.record()
            + self.format.codes_at()
            + line * LINE
            + 4 * (row % PANEL_ROWS)
            + at % 4;
        let byte = self.panel(row / PANEL_ROWS)[byte];
        match self.format.codes {
            Codes::Int4 { .. } => (byte >> (4 * (at / 4))) & 15,
            Codes::Int8 => byte,
        }
    }

    /// The scale of a row's group.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        let record = &self.panel(row / PANEL_ROWS)[group * self.format.record()..];
        let at = row % PANEL_ROWS;
        match self.format.scales {
            Scales::F16 => half::f16::from_le_bytes([record[2 * at], record[2 * at + 1]]).to_f32(),
            Scales::F32 => read_f32(record, at),
        }
    }

    /// The offset of a row's group, in formats that have them.
    pub fn offset(&self, row: usize, group: usize) -> Option<f32> {
        let record = &self.panel(row / PANEL_ROWS)[group * self.format.record()..];
        self.format.offsets.then(|| read_f32(&record[self.format.offsets_at()..], row % PANEL_ROWS))
    }

    /// Row `row` as f32, into `out` of `cols` elements.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row of {} columns", self.cols);
        for (col, value) in out.iter_mut().enumerate() {
            let group = col / self.format.group;
            let scaled = self.scale(row, group) * self.format.codes.value(self.code(row, col)) as f32;
            *value = self.offset(row, group).map_or(scaled, |offset| scaled + offset);
        }
    }
}

fn read_f32(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
}
