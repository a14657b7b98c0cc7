//! Coded weights to f32, a run at a time: the same values as `Matrix::dequantize_row`, by arithmetic that vectorises.
//!
//! Neither form passes through a subnormal f32, which some processors are very slow at.

use crate::cpu::lanes::{Lanes, by_isa};
use crate::matrix::{
    FP8_BLOCK, GGUF_GROUP, MXFP4_GROUP, Matrix, MatrixData, Q4_0_BLOCK, Q8_0_BLOCK, blocks_from, e8m0,
    split_block,
};

/// Row `row` of a coded matrix as f32.
pub(crate) fn decode_row(isa: crate::device::Isa, w: &Matrix, row: usize, out: &mut [f32]) {
    let stored_row = w.first_row + row * w.row_step;
    let start = stored_row * w.stored_cols + w.first_col;
    match &w.data {
        MatrixData::Plain { .. } | MatrixData::Int4(_) => w.dequantize_row(row, out),
        MatrixData::Fp8 { codes, scales } => {
            let scales = &scales[stored_row / FP8_BLOCK * w.stored_cols.div_ceil(FP8_BLOCK)..];
            let codes = &codes.as_slice()[start..start + out.len()];
            let mut column = w.first_col;
            let (mut codes, mut out) = (codes, out);
            while !codes.is_empty() {
                let run = (FP8_BLOCK - column % FP8_BLOCK).min(codes.len());
                let (now, later) = out.split_at_mut(run);
                fp8_run(isa, &codes[..run], scales[column / FP8_BLOCK], now);
                (codes, out, column) = (&codes[run..], later, column + run);
            }
        }
        MatrixData::Mxfp4 { blocks, scales } => {
            let blocks = &blocks.as_slice()[start / 2..(start + out.len()) / 2];
            mxfp4_run(isa, blocks, &scales.as_slice()[start / MXFP4_GROUP..], out);
        }
        MatrixData::Q4_0 { blocks } => q4_0_run(isa, blocks_from(blocks, Q4_0_BLOCK, start), out),
        MatrixData::Q8_0 { blocks } => q8_0_run(isa, blocks_from(blocks, Q8_0_BLOCK, start), out),
    }
}

by_isa! {
    /// `out = e4m3(code) * scale`.
    fn fp8_run(codes: &[u8], scale: f32, out: &mut [f32]) = fp8
}

#[inline(always)]
fn fp8<L: Lanes>(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (value, &code) in out.iter_mut().zip(codes) {
        let code = u32::from(code);
        let magnitude = code & 0x7f;
        let normal = f32::from_bits((magnitude << 20) + (120 << 23));
        let subnormal = magnitude as f32 * (1.0 / 512.0);
        let number = if magnitude < 8 { subnormal } else { normal };
        let number = if magnitude == 0x7f { f32::NAN } else { number };
        *value = f32::from_bits(number.to_bits() | (code & 0x80) << 24) * scale;
    }
}

by_isa! {
    /// `out = e2m1(code) * 2^(exponent - 127)`, whole groups.
    fn mxfp4_run(blocks: &[u8], exponents: &[u8], out: &mut [f32]) = mxfp4
}

#[inline(always)]
fn mxfp4<L: Lanes>(blocks: &[u8], exponents: &[u8], out: &mut [f32]) {
    let groups = out.chunks_exact_mut(MXFP4_GROUP).zip(blocks.chunks_exact(MXFP4_GROUP / 2));
    for ((values, codes), &exponent) in groups.zip(exponents) {
        let scale = e8m0(exponent);
        let mut nibbles = [0u8; MXFP4_GROUP];
        for (pair, &code) in nibbles.chunks_exact_mut(2).zip(codes) {
            pair[0] = code & 15;
            pair[1] = code >> 4;
        }
        for (value, &code) in values.iter_mut().zip(&nibbles) {
            let code = u32::from(code);
            let (exponent, mantissa) = ((code >> 1) & 3, code & 1);
            // Twice the value, a whole number: 0, 1, 2, 3, 4, 6, 8, 12.
            let doubled = if exponent == 0 { mantissa } else { (2 | mantissa) << (exponent.max(1) - 1) };
            let number = doubled as f32 * 0.5;
            *value = f32::from_bits(number.to_bits() | (code & 8) << 28) * scale;
        }
    }
}

by_isa! {
    /// `out = d * (code - 8)`, whole groups.
    fn q4_0_run(blocks: std::slice::ChunksExact<'_, u8>, out: &mut [f32]) = q4_0
}

#[inline(always)]
fn q4_0<L: Lanes>(blocks: std::slice::ChunksExact<'_, u8>, out: &mut [f32]) {
    for (values, block) in out.chunks_exact_mut(GGUF_GROUP).zip(blocks) {
        let (scale, codes) = split_block(block);
        let (low, high) = values.split_at_mut(GGUF_GROUP / 2);
        for (value, &code) in low.iter_mut().zip(codes) {
            *value = scale * (i32::from(code & 15) - 8) as f32;
        }
        for (value, &code) in high.iter_mut().zip(codes) {
            *value = scale * (i32::from(code >> 4) - 8) as f32;
        }
    }
}

by_isa! {
    /// `out = d * code`, whole groups.
    fn q8_0_run(blocks: std::slice::ChunksExact<'_, u8>, out: &mut [f32]) = q8_0
}

#[inline(always)]
fn q8_0<L: Lanes>(blocks: std::slice::ChunksExact<'_, u8>, out: &mut [f32]) {
    for (values, block) in out.chunks_exact_mut(GGUF_GROUP).zip(blocks) {
        let (scale, codes) = split_block(block);
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = scale * i32::from(code.cast_signed()) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Isa;
    use crate::matrix::{E2M1, e4m3};

    #[test]
    fn every_code_has_its_value() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()) {
            let codes: Vec<u8> = (0..=255).collect();
            let mut out = vec![0.0; 256];
            fp8_run(isa, &codes, 1.0, &mut out);
            for (&code, value) in codes.iter().zip(&out) {
                let expected = e4m3(code);
                assert!(
                    value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                    "{code}"
                );
            }
            for exponent in [0, 1, 127, 130, 255] {
                let blocks: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
                let mut out = vec![0.0; 32];
                mxfp4_run(isa, &blocks, &[exponent], &mut out);
                for (i, pair) in out.chunks_exact(2).enumerate() {
                    for (value, code) in pair.iter().zip([i, 15 - i]) {
                        let expected = E2M1[code] * e8m0(exponent);
                        assert!(
                            value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                            "{code} at 2^{exponent}: {value} is not {expected}"
                        );
                    }
                }
            }
        }
    }

    /// Every code at several scales (a subnormal, an infinite and a NaN one too), against `dequantize_row`.
    #[test]
    fn blocks_decode_as_dequantize_row_does() {
        let scales = [0x0001u16, 0x3c00, 0xbc00, 0x2e66, 0x7bff, 0x7c00, 0x7e00, 0x8000];
        let block = |scale: u16, codes: &[u8]| [&scale.to_le_bytes()[..], codes].concat();
        let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let q4_0: Vec<u8> = scales.iter().flat_map(|&scale| block(scale, &nibbles)).collect();
        let bytes: Vec<u8> = (0..=255).collect();
        let runs = scales.iter().zip(bytes.chunks_exact(GGUF_GROUP));
        let q8_0: Vec<u8> = runs.flat_map(|(&scale, codes)| block(scale, codes)).collect();
        let q4_0 = MatrixData::Q4_0 { blocks: crate::Bytes::copied(&q4_0) };
        let q8_0 = MatrixData::Q8_0 { blocks: crate::Bytes::copied(&q8_0) };
        for data in [q4_0, q8_0] {
            let whole = Matrix::new(data, 2, 128);
            for part in [whole.clone(), whole.row_slice(1, 1, 1), whole.col_slice(32, 64)] {
                let mut expected = vec![0.0; part.cols()];
                part.dequantize_row(part.rows() - 1, &mut expected);
                for isa in
                    [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available())
                {
                    let mut out = vec![0.0; part.cols()];
                    decode_row(isa, &part, part.rows() - 1, &mut out);
                    let same =
                        |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                    assert!(out.iter().zip(&expected).all(same), "{out:?} is not {expected:?}");
                }
            }
        }
    }
}
