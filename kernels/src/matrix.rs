//! A weight matrix `[rows, cols]` as a checkpoint stores it, or a part of one.
//!
//! Slices of rows (every step-th, for interleaved gate and up) and of columns copy nothing.

use std::sync::Arc;

use crate::bytes::Bytes;
use crate::int4::Int4;
use crate::packed::{Codes, PackedFormat, Scales};

/// The element types of activations' partners: what a plain matrix can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    F32,
    F16,
    Bf16,
}

impl ElementType {
    pub fn bytes(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::F16 | ElementType::Bf16 => 2,
        }
    }
}

/// The FP8 block's edge: one scale per 128 x 128 codes.
pub const FP8_BLOCK: usize = 128;
/// The values that share one MXFP4 exponent.
pub const MXFP4_GROUP: usize = 32;

/// The values that share one scale in Q4_0 and Q8_0, the block formats of GGUF files.
pub const GGUF_GROUP: usize = 32;
/// Bytes of a Q4_0 block: an f16 scale and 32 codes of four bits.
pub const Q4_0_BLOCK: usize = 2 + GGUF_GROUP / 2;
/// Bytes of a Q8_0 block: an f16 scale and 32 signed bytes.
pub const Q8_0_BLOCK: usize = 2 + GGUF_GROUP;

/// The stored form of a whole matrix `[rows, cols]`, row-major.
#[derive(Clone, Debug)]
pub enum MatrixData {
    /// `[rows, cols]` elements.
    Plain { kind: ElementType, elements: Bytes },
    /// `[rows, cols]` E4M3 codes; `[ceil(rows/128), ceil(cols/128)]` f32 scales that multiply.
    Fp8 { codes: Bytes, scales: Arc<[f32]> },
    /// `[rows, cols/32, 16]` bytes with two E2M1 codes each, the lower nibble first; `[rows, cols/32]` E8M0 exponents.
    Mxfp4 { blocks: Bytes, scales: Bytes },
    /// 4-bit codes with a scale, and in some an offset, per group.
    Int4(Arc<Int4>),
    /// `[rows, cols/32, 18]` bytes: an f16 scale d, then 16 bytes with two codes each, whose lower nibbles are the values
    /// 0..16 and whose upper ones 16..32 of the group. A value is d * (code - 8).
    Q4_0 { blocks: Bytes },
    /// `[rows, cols/32, 34]` bytes: an f16 scale d, then 32 signed codes. A value is d * code.
    Q8_0 { blocks: Bytes },
}

impl MatrixData {
    /// The columns that only go together.
    fn group(&self) -> usize {
        match self {
            MatrixData::Plain { .. } | MatrixData::Fp8 { .. } => 1,
            MatrixData::Mxfp4 { .. } => MXFP4_GROUP,
            MatrixData::Q4_0 { .. } | MatrixData::Q8_0 { .. } => GGUF_GROUP,
            MatrixData::Int4(int4) => int4.group,
        }
    }
}

/// A matrix, or rows and columns of one.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub(crate) data: MatrixData,
    /// Columns of the stored matrix.
    pub(crate) stored_cols: usize,
    pub(crate) first_row: usize,
    pub(crate) row_step: usize,
    pub(crate) first_col: usize,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// The whole stored matrix. Panics when the bytes do not fit the shape: readers check that first.
    pub fn new(data: MatrixData, rows: usize, cols: usize) -> Matrix {
        match &data {
            MatrixData::Plain { kind, elements } => {
                assert_eq!(elements.len(), rows * cols * kind.bytes(), "bytes of a {rows} x {cols} matrix");
                assert_eq!(elements.as_slice().as_ptr() as usize % kind.bytes(), 0, "alignment of a matrix");
            }
            MatrixData::Fp8 { codes, scales } => {
                assert_eq!(codes.len(), rows * cols, "codes of a {rows} x {cols} matrix");
                let blocks = rows.div_ceil(FP8_BLOCK) * cols.div_ceil(FP8_BLOCK);
                assert_eq!(scales.len(), blocks, "scales of a {rows} x {cols} matrix");
            }
            MatrixData::Mxfp4 { blocks, scales } => {
                assert_eq!(cols % MXFP4_GROUP, 0, "MXFP4 columns come in groups of {MXFP4_GROUP}");
                assert_eq!(blocks.len(), rows * cols / 2, "codes of a {rows} x {cols} matrix");
                assert_eq!(scales.len(), rows * cols / MXFP4_GROUP, "exponents of a {rows} x {cols} matrix");
            }
            MatrixData::Int4(int4) => int4.check(rows, cols),
            MatrixData::Q4_0 { blocks } => check_blocks(blocks, Q4_0_BLOCK, rows, cols),
            MatrixData::Q8_0 { blocks } => check_blocks(blocks, Q8_0_BLOCK, rows, cols),
        }
        Matrix { data, stored_cols: cols, first_row: 0, row_step: 1, first_col: 0, rows, cols }
    }

    /// A matrix of f32 values of our own.
    pub fn from_f32(values: &[f32], rows: usize, cols: usize) -> Matrix {
        let data = MatrixData::Plain { kind: ElementType::F32, elements: Bytes::copied(values) };
        Matrix::new(data, rows, cols)
    }

    /// How it is stored.
    pub fn data(&self) -> &MatrixData {
        &self.data
    }

    /// The values rounded to bf16, in memory of their own.
    pub fn to_bf16(&self) -> Matrix {
        let mut elements = Vec::with_capacity(self.rows * self.cols);
        let mut row_values = vec![0.0; self.cols];
        for row in 0..self.rows {
            self.dequantize_row(row, &mut row_values);
            elements.extend(row_values.iter().map(|&value| half::bf16::from_f32(value).to_bits()));
        }
        let data = MatrixData::Plain { kind: ElementType::Bf16, elements: Bytes::copied(&elements) };
        Matrix::new(data, self.rows, self.cols)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The rows `first, first + step, …`, `count` of them.
    pub fn row_slice(&self, first: usize, step: usize, count: usize) -> Matrix {
        assert!(
            count == 0 || first + (count - 1) * step < self.rows,
            "rows {first}+{step}*{count} of {}",
            self.rows
        );
        let first_row = self.first_row + first * self.row_step;
        Matrix { first_row, row_step: self.row_step * step, rows: count, ..self.clone() }
    }

    /// The columns `first..first + count`; whole groups, of which only the last may be short.
    pub fn col_slice(&self, first: usize, count: usize) -> Matrix {
        let end = first + count;
        assert!(end <= self.cols, "columns {first}..+{count} of {}", self.cols);
        let group = self.data.group();
        assert!(
            first.is_multiple_of(group) && (end.is_multiple_of(group) || end == self.cols),
            "whole groups of {group} columns"
        );
        Matrix { first_col: self.first_col + first, cols: count, ..self.clone() }
    }

    /// The bytes that the part occupies as stored, scales included.
    pub fn stored_bytes(&self) -> usize {
        let elements = self.rows * self.cols;
        match &self.data {
            MatrixData::Plain { kind, .. } => elements * kind.bytes(),
            MatrixData::Fp8 { .. } => elements + elements.div_ceil(FP8_BLOCK * FP8_BLOCK) * 4,
            MatrixData::Mxfp4 { .. } => elements / 2 + elements / MXFP4_GROUP,
            MatrixData::Int4(int4) => int4.stored_bytes(self.rows, self.cols),
            MatrixData::Q4_0 { .. } => elements / GGUF_GROUP * Q4_0_BLOCK,
            MatrixData::Q8_0 { .. } => elements / GGUF_GROUP * Q8_0_BLOCK,
        }
    }

    /// Row `row` as f32, into `out` of `cols` elements: what every kernel takes a weight to be.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {} into {}", self.rows, out.len());
        let stored_row = self.first_row + row * self.row_step;
        let start = stored_row * self.stored_cols + self.first_col;
        match &self.data {
            MatrixData::Plain { kind, elements } => plain_row(*kind, elements, start, out),
            MatrixData::Fp8 { codes, scales } => {
                let codes = &codes.as_slice()[start..start + self.cols];
                let scale_row = stored_row / FP8_BLOCK * self.stored_cols.div_ceil(FP8_BLOCK);
                for (i, (value, &code)) in out.iter_mut().zip(codes).enumerate() {
                    *value = e4m3(code) * scales[scale_row + (self.first_col + i) / FP8_BLOCK];
                }
            }
            MatrixData::Mxfp4 { blocks, scales } => {
                let blocks = &blocks.as_slice()[start / 2..(start + self.cols) / 2];
                let scales = &scales.as_slice()[start / MXFP4_GROUP..(start + self.cols) / MXFP4_GROUP];
                let groups = out.chunks_exact_mut(MXFP4_GROUP).zip(blocks.chunks_exact(MXFP4_GROUP / 2));
                for ((values, codes), &exponent) in groups.zip(scales) {
                    let scale = e8m0(exponent);
                    for (pair, &code) in values.chunks_exact_mut(2).zip(codes) {
                        pair[0] = E2M1[(code & 15) as usize] * scale;
                        pair[1] = E2M1[(code >> 4) as usize] * scale;
                    }
                }
            }
            MatrixData::Int4(int4) => int4.dequantize(stored_row, self.stored_cols, self.first_col, out),
            MatrixData::Q4_0 { blocks } => {
                let groups = out.chunks_exact_mut(GGUF_GROUP).zip(blocks_from(blocks, Q4_0_BLOCK, start));
                for (values, block) in groups {
                    let (scale, codes) = split_block(block);
                    let (low, high) = values.split_at_mut(GGUF_GROUP / 2);
                    for ((low, high), &code) in low.iter_mut().zip(high).zip(codes) {
                        *low = scale * (f32::from(code & 15) - 8.0);
                        *high = scale * (f32::from(code >> 4) - 8.0);
                    }
                }
            }
            MatrixData::Q8_0 { blocks } => {
                let groups = out.chunks_exact_mut(GGUF_GROUP).zip(blocks_from(blocks, Q8_0_BLOCK, start));
                for (values, block) in groups {
                    let (scale, codes) = split_block(block);
                    for (value, &code) in values.iter_mut().zip(codes) {
                        *value = scale * f32::from(code.cast_signed());
                    }
                }
            }
        }
    }

    /// The packed form that keeps every value, for matrices that are stored in groups of integers.
    pub fn packed_format(&self) -> Option<PackedFormat> {
        match &self.data {
            MatrixData::Mxfp4 { scales, .. } => {
                // 2^(e-128), whose factor the doubled table makes up for; f16 holds 2^-24 to 2^15.
                let fits = scales.as_slice().iter().all(|e| (104..=143).contains(e));
                let scales = if fits { Scales::F16 } else { Scales::F32 };
                Some(PackedFormat { codes: Codes::MXFP4, scales, offsets: false, group: MXFP4_GROUP })
            }
            MatrixData::Int4(int4) => Some(int4.packed_format()),
            MatrixData::Q4_0 { .. } => Some(PackedFormat { group: GGUF_GROUP, ..PackedFormat::INT4 }),
            MatrixData::Q8_0 { .. } => Some(PackedFormat { group: GGUF_GROUP, ..PackedFormat::INT8 }),
            MatrixData::Plain { .. } | MatrixData::Fp8 { .. } => None,
        }
    }

    /// A group of a row, in a matrix that `packed_format` answers for: its codes, scale and offset.
    pub(crate) fn stored_group(&self, row: usize, group: usize, codes: &mut [u8]) -> (f32, f32) {
        let stored_row = self.first_row + row * self.row_step;
        match &self.data {
            MatrixData::Mxfp4 { blocks, scales } => {
                let at = (stored_row * self.stored_cols + self.first_col) / MXFP4_GROUP + group;
                let block = &blocks.as_slice()[at * MXFP4_GROUP / 2..(at + 1) * MXFP4_GROUP / 2];
                for (pair, byte) in codes.chunks_exact_mut(2).zip(block) {
                    (pair[0], pair[1]) = (byte & 15, byte >> 4);
                }
                // Halved for the doubled table; exact but for NaN, which stays.
                (e8m0(scales.as_slice()[at]) * 0.5, 0.0)
            }
            MatrixData::Int4(_) => self.int4_group(row, group, codes),
            MatrixData::Q4_0 { blocks } => {
                let at = (stored_row * self.stored_cols + self.first_col) / GGUF_GROUP + group;
                let block = &blocks.as_slice()[at * Q4_0_BLOCK..(at + 1) * Q4_0_BLOCK];
                let (low, high) = codes.split_at_mut(GGUF_GROUP / 2);
                for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[2..]) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
                (half::f16::from_le_bytes([block[0], block[1]]).to_f32(), 0.0)
            }
            MatrixData::Q8_0 { blocks } => {
                let at = (stored_row * self.stored_cols + self.first_col) / GGUF_GROUP + group;
                let block = &blocks.as_slice()[at * Q8_0_BLOCK..(at + 1) * Q8_0_BLOCK];
                for (code, byte) in codes.iter_mut().zip(&block[2..]) {
                    *code = byte ^ 0x80; // the signed byte plus 128
                }
                (half::f16::from_le_bytes([block[0], block[1]]).to_f32(), 0.0)
            }
            MatrixData::Plain { .. } | MatrixData::Fp8 { .. } => panic!("a matrix without groups"),
        }
    }

    /// The matrix with rows and columns exchanged, in memory of its own: plain elements keep their type, others are
    /// decoded to f32.
    pub fn transposed(&self) -> Matrix {
        match self.plain() {
            Some(ElementType::F32) => self.transposed_plain::<u32>(ElementType::F32),
            Some(kind @ (ElementType::F16 | ElementType::Bf16)) => self.transposed_plain::<u16>(kind),
            None => {
                let mut values = vec![0.0; self.rows * self.cols];
                let mut row_values = vec![0.0; self.cols];
                for row in 0..self.rows {
                    self.dequantize_row(row, &mut row_values);
                    for (col, &value) in row_values.iter().enumerate() {
                        values[col * self.rows + row] = value;
                    }
                }
                Matrix::from_f32(&values, self.cols, self.rows)
            }
        }
    }

    fn transposed_plain<T: crate::buffer::Plain>(&self, kind: ElementType) -> Matrix {
        const TILE: usize = 32;
        let (elements, start, stride) = self.plain_elements::<T>();
        let mut out = vec![T::zeroed(); self.rows * self.cols];
        for row_tile in (0..self.rows).step_by(TILE) {
            for col_tile in (0..self.cols).step_by(TILE) {
                for row in row_tile..(row_tile + TILE).min(self.rows) {
                    for col in col_tile..(col_tile + TILE).min(self.cols) {
                        out[col * self.rows + row] = elements[start + row * stride + col];
                    }
                }
            }
        }
        let data = MatrixData::Plain { kind, elements: Bytes::copied(&out) };
        Matrix::new(data, self.cols, self.rows)
    }

    /// Matrices of equal width below each other, in memory of its own: plain elements of one type keep it, others are
    /// decoded to f32.
    pub fn stacked(parts: &[Matrix]) -> Matrix {
        let cols = parts.first().map_or(0, Matrix::cols);
        assert!(parts.iter().all(|part| part.cols == cols), "stacked matrices of equal width");
        let rows = parts.iter().map(Matrix::rows).sum();
        let kind = parts.first().and_then(Matrix::plain);
        match kind.filter(|_| parts.iter().all(|part| part.plain() == kind)) {
            Some(kind) => {
                let mut bytes = Vec::with_capacity(rows * cols * kind.bytes());
                for part in parts {
                    let MatrixData::Plain { elements, .. } = &part.data else { continue };
                    for row in 0..part.rows {
                        let stored_row = part.first_row + row * part.row_step;
                        let start = (stored_row * part.stored_cols + part.first_col) * kind.bytes();
                        bytes.extend_from_slice(&elements.as_slice()[start..start + cols * kind.bytes()]);
                    }
                }
                Matrix::new(MatrixData::Plain { kind, elements: Bytes::copied(&bytes) }, rows, cols)
            }
            None => {
                let mut values = vec![0.0; rows * cols];
                let all_rows = parts.iter().flat_map(|part| (0..part.rows).map(move |row| (part, row)));
                for ((part, row), out) in all_rows.zip(values.chunks_exact_mut(cols)) {
                    part.dequantize_row(row, out);
                }
                Matrix::from_f32(&values, rows, cols)
            }
        }
    }

    /// The plain element type, if the matrix can be read without decoding.
    pub(crate) fn plain(&self) -> Option<ElementType> {
        match &self.data {
            MatrixData::Plain { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// The stored elements of a plain matrix with the index of the first element of row 0 and the distance of rows.
    pub(crate) fn plain_elements<T: crate::buffer::Plain>(&self) -> (&[T], usize, usize) {
        let MatrixData::Plain { elements, .. } = &self.data else { panic!("not a plain matrix") };
        // Alignment and size were checked in `new`.
        let elements = elements.as_elements::<T>().expect("aligned elements");
        let stride = self.row_step * self.stored_cols;
        (elements, self.first_row * self.stored_cols + self.first_col, stride)
    }
}

fn check_blocks(blocks: &Bytes, block: usize, rows: usize, cols: usize) {
    assert_eq!(cols % GGUF_GROUP, 0, "columns come in groups of {GGUF_GROUP}");
    assert_eq!(blocks.len(), rows * cols / GGUF_GROUP * block, "blocks of a {rows} x {cols} matrix");
}

/// The blocks from the one on that begins at element `start`.
pub(crate) fn blocks_from(blocks: &Bytes, block: usize, start: usize) -> std::slice::ChunksExact<'_, u8> {
    blocks.as_slice()[start / GGUF_GROUP * block..].chunks_exact(block)
}

/// A block's scale and its codes.
#[inline(always)]
pub(crate) fn split_block(block: &[u8]) -> (f32, &[u8]) {
    (half::f16::from_le_bytes([block[0], block[1]]).to_f32(), &block[2..])
}

fn plain_row(kind: ElementType, elements: &Bytes, start: usize, out: &mut [f32]) {
    let bytes = &elements.as_slice()[start * kind.bytes()..(start + out.len()) * kind.bytes()];
    match kind {
        ElementType::F32 => {
            for (value, raw) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
            }
        }
        ElementType::F16 => {
            for (value, raw) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = half::f16::from_le_bytes([raw[0], raw[1]]).to_f32();
            }
        }
        ElementType::Bf16 => {
            for (value, raw) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = half::bf16::from_le_bytes([raw[0], raw[1]]).to_f32();
            }
        }
    }
}

/// The E2M1 values by code (OCP Microscaling Formats v1.0, table 5).
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// 2^(exponent - 127); 255 is NaN (OCP Microscaling Formats v1.0, 5.4.1).
pub fn e8m0(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(0x0040_0000), // 2^-127, a subnormal
        255 => f32::NAN,
        e => f32::from_bits((e as u32) << 23),
    }
}

/// The value of an E4M3 code without infinities (OCP 8-bit Floating Point Specification, table 1).
pub fn e4m3(code: u8) -> f32 {
    E4M3_TABLE[code as usize]
}

static E4M3_TABLE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3_value(code as u8);
        code += 1;
    }
    table
};

const fn e4m3_value(code: u8) -> f32 {
    let sign = (code as u32 >> 7) << 31;
    let exponent = (code as u32 >> 3) & 15;
    let mantissa = code as u32 & 7;
    if exponent == 15 && mantissa == 7 {
        return f32::NAN;
    }
    if exponent == 0 {
        let magnitude = mantissa as f32 / 512.0;
        return if sign != 0 { -magnitude } else { magnitude };
    }
    f32::from_bits(sign | (exponent + 120) << 23 | mantissa << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_published_landmarks() {
        assert_eq!(e4m3(0x7e), 448.0); // largest
        assert_eq!(e4m3(0x08), 2f32.powi(-6)); // smallest normal
        assert_eq!(e4m3(0x01), 2f32.powi(-9)); // smallest subnormal
        assert_eq!(e4m3(0x38), 1.0);
        assert_eq!(e4m3(0xb8), -1.0);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert_eq!(e4m3(0x80).to_bits(), (-0.0f32).to_bits());
    }

    #[test]
    fn e8m0_has_the_published_landmarks() {
        assert_eq!(e8m0(127), 1.0);
        assert_eq!(e8m0(0), 2f32.powi(-127));
        assert_eq!(e8m0(254), 2f32.powi(127));
        assert!(e8m0(255).is_nan());
    }

    #[test]
    fn slices_of_slices_read_the_right_elements() {
        let values: Vec<f32> = (0..12 * 10).map(|i| i as f32).collect();
        let whole = Matrix::from_f32(&values, 12, 10);
        let part = whole.row_slice(1, 2, 5).row_slice(1, 2, 2).col_slice(3, 6).col_slice(1, 4);
        let mut row = [0.0; 4];
        part.dequantize_row(1, &mut row);
        assert_eq!(row, [74.0, 75.0, 76.0, 77.0]); // row 1 + 2*(1 + 2*1) = 7, columns 4..8
    }
}
