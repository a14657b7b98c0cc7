//! 4-bit codes row by row with a scale per group: what GPTQ and AWQ weights become when they are read, before packing.
//!
//! An element is `D * (code - 8)`, plus its group's offset where there are offsets (ARITHMETIC.md, 8).

use std::sync::Arc;

use crate::bytes::Bytes;
use crate::matrix::{Matrix, MatrixData};
use crate::packed::{Codes, PackedFormat, Scales};

/// The longest group; runs of columns that begin at multiples of it begin a group in every form.
pub const INT4_GROUP_MAX: usize = 128;

/// A whole matrix `[rows, cols]`, with `n = ceil(cols / group)` groups in a row. The last group may be short.
#[derive(Clone, Debug)]
pub struct Int4 {
    /// `[rows, cols / 2]`: the code of an even column in the low nibble, of the next in the high one.
    pub codes: Bytes,
    /// `[rows, n]` of `scale_type`
    pub scales: Bytes,
    pub scale_type: Scales,
    /// `[rows, n]`; `None` where all are zero.
    pub offsets: Option<Arc<[f32]>>,
    /// G: 32, 64 or 128.
    pub group: usize,
}

impl Int4 {
    /// Panics when the parts do not fit the shape.
    pub(crate) fn check(&self, rows: usize, cols: usize) {
        assert!(matches!(self.group, 32 | 64 | INT4_GROUP_MAX), "groups of {}", self.group);
        assert!(cols.is_multiple_of(2), "{cols} columns of 4-bit codes");
        assert_eq!(self.codes.len(), rows * cols / 2, "codes of a {rows} x {cols} matrix");
        let groups = rows * cols.div_ceil(self.group);
        assert_eq!(self.scales.len(), groups * self.scale_type.bytes(), "scales of a {rows} x {cols} matrix");
        let offsets = self.offsets.as_ref().map_or(groups, |offsets| offsets.len());
        assert_eq!(offsets, groups, "offsets of a {rows} x {cols} matrix");
    }

    /// The packed form that keeps every value.
    pub(crate) fn packed_format(&self) -> PackedFormat {
        let offsets = self.offsets.is_some();
        PackedFormat { codes: Codes::INT4, scales: self.scale_type, offsets, group: self.group }
    }

    /// The bytes of a part of `rows` rows and `cols` columns.
    pub(crate) fn stored_bytes(&self, rows: usize, cols: usize) -> usize {
        let offset = if self.offsets.is_some() { 4 } else { 0 };
        rows * cols / 2 + rows * cols.div_ceil(self.group) * (self.scale_type.bytes() + offset)
    }

    /// The scale and the offset of the `index`-th group, counted over the stored rows.
    fn scale_and_offset(&self, index: usize) -> (f32, Option<f32>) {
        let scales = self.scales.as_slice();
        let scale = match self.scale_type {
            Scales::F16 => half::f16::from_le_bytes([scales[2 * index], scales[2 * index + 1]]).to_f32(),
            Scales::F32 => {
                let raw = &scales[4 * index..4 * index + 4];
                f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])
            }
        };
        (scale, self.offsets.as_ref().map(|offsets| offsets[index]))
    }

    /// The columns from `first_col` of a stored row of `stored_cols` columns.
    pub(crate) fn dequantize(&self, row: usize, stored_cols: usize, first_col: usize, out: &mut [f32]) {
        let start = (row * stored_cols + first_col) / 2;
        let codes = &self.codes.as_slice()[start..start + out.len() / 2];
        let first_group = row * stored_cols.div_ceil(self.group) + first_col / self.group;
        let groups = out.chunks_mut(self.group).zip(codes.chunks(self.group / 2));
        for (index, (values, codes)) in groups.enumerate() {
            let (scale, offset) = self.scale_and_offset(first_group + index);
            for (pair, &code) in values.chunks_exact_mut(2).zip(codes) {
                pair[0] = scale * f32::from((code & 15) as i8 - 8);
                pair[1] = scale * f32::from((code >> 4) as i8 - 8);
            }
            if let Some(offset) = offset {
                values.iter_mut().for_each(|value| *value += offset);
            }
        }
    }
}

impl Matrix {
    /// The stored form of a 4-bit matrix; its group, scale type and whether there are offsets hold for every part.
    pub fn int4(&self) -> Option<&Int4> {
        match &self.data {
            MatrixData::Int4(int4) => Some(int4),
            _ => None,
        }
    }

    /// The codes of a row's group into `codes`, which is one group long, and the group's scale and offset. Columns that a
    /// short last group lacks get the code of zero, 8. Panics if the matrix is not of 4-bit codes.
    pub fn int4_group(&self, row: usize, group: usize, codes: &mut [u8]) -> (f32, f32) {
        let int4 = self.int4().expect("a 4-bit matrix");
        assert_eq!(codes.len(), int4.group, "codes of a group");
        assert!(row < self.rows() && group * int4.group < self.cols(), "group {group} of row {row}");
        let stored_row = self.first_row + row * self.row_step;
        let count = int4.group.min(self.cols() - group * int4.group);
        let start = (stored_row * self.stored_cols + self.first_col + group * int4.group) / 2;
        let bytes = &int4.codes.as_slice()[start..start + count / 2];
        codes.fill(8);
        for (pair, &byte) in codes.chunks_exact_mut(2).zip(bytes) {
            pair[0] = byte & 15;
            pair[1] = byte >> 4;
        }
        let first_group = stored_row * self.stored_cols.div_ceil(int4.group) + self.first_col / int4.group;
        let (scale, offset) = int4.scale_and_offset(first_group + group);
        (scale, offset.unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 x 80 with groups of 32, the last one short; every code, scale and offset differs from its neighbours'.
    fn sample(scale_type: Scales, offsets: bool) -> Matrix {
        let codes: Vec<u8> = (0..3 * 40).map(|i| (i * 37 % 251) as u8).collect();
        let scales: Vec<f32> = (0..9).map(|i| (1 + i) as f32 / 64.0).collect();
        let halves: Vec<u16> = scales.iter().map(|&s| half::f16::from_f32(s).to_bits()).collect();
        let scales = match scale_type {
            Scales::F16 => Bytes::copied(&halves),
            Scales::F32 => Bytes::copied(&scales),
        };
        let offsets = offsets.then(|| (0..9).map(|i| i as f32 - 3.5).collect());
        let int4 = Int4 { codes: Bytes::copied(&codes), scales, scale_type, offsets, group: 32 };
        Matrix::new(MatrixData::Int4(int4.into()), 3, 80)
    }

    fn expected(row: usize, col: usize, offsets: bool) -> f32 {
        let byte = ((row * 40 + col / 2) * 37 % 251) as u8;
        let code = if col.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        let group = row * 3 + col / 32;
        let offset = if offsets { group as f32 - 3.5 } else { 0.0 };
        (1 + group) as f32 / 64.0 * (f32::from(code) - 8.0) + offset
    }

    #[test]
    fn rows_groups_and_slices_hold_the_same_elements() {
        for (scale_type, offsets) in [(Scales::F16, false), (Scales::F16, true), (Scales::F32, true)] {
            let whole = sample(scale_type, offsets);
            let part = whole.row_slice(1, 1, 2).col_slice(32, 48);
            for (matrix, first_row, first_col) in [(&whole, 0, 0), (&part, 1, 32)] {
                let mut values = vec![0.0; matrix.cols()];
                let mut codes = [0; 32];
                for row in 0..matrix.rows() {
                    matrix.dequantize_row(row, &mut values);
                    for (col, &value) in values.iter().enumerate() {
                        assert_eq!(
                            value,
                            expected(first_row + row, first_col + col, offsets),
                            "({row}, {col})"
                        );
                        let (scale, offset) = matrix.int4_group(row, col / 32, &mut codes);
                        assert_eq!(
                            value,
                            scale * (f32::from(codes[col % 32]) - 8.0) + offset,
                            "({row}, {col})"
                        );
                    }
                }
                matrix.int4_group(0, matrix.cols() / 32, &mut codes);
                assert_eq!(codes[16..], [8; 16], "what a short group lacks");
            }
            assert_eq!(whole.stored_bytes(), 120 + 9 * (scale_type.bytes() + if offsets { 4 } else { 0 }));
            assert_eq!(part.stored_bytes(), 48 + 4 * (scale_type.bytes() + if offsets { 4 } else { 0 }));
        }
    }

    #[test]
    #[should_panic(expected = "whole groups of 32 columns")]
    fn columns_are_cut_between_groups() {
        sample(Scales::F16, false).col_slice(0, 48);
    }
}
