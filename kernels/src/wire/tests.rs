//! Every form there and back, parts of larger matrices too; and bytes that are none.

use std::sync::Arc;

use super::*;
use crate::ops::{Packing, pack};
use crate::{CpuOptions, Isa};

const HIDDEN: usize = 192;
const RUN: usize = 160;

fn device() -> Device {
    let options = CpuOptions { threads: 1, pin: false, isa: Isa::detect(), grain: 1 };
    Device::cpu(options).expect("a CPU")
}

/// The next of a run of numbers that look like any.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn noise(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let bytes: Vec<u8> = (0..bytes).map(|_| (next(&mut state) >> 24) as u8).collect();
    Bytes::copied(&bytes)
}

/// Finite f32 values.
fn values(count: usize, seed: u64) -> Vec<f32> {
    noise(count, seed).as_slice().iter().map(|&byte| (f32::from(byte) - 127.5) / 64.0).collect()
}

/// The stored forms.
const FORMS: [&str; 9] = ["f32", "f16", "bf16", "fp8", "mxfp4", "int4", "int4 offsets", "q4_0", "q8_0"];

fn matrix(form: &str, rows: usize, cols: usize, seed: u64) -> Matrix {
    let groups = rows * cols.div_ceil(32);
    let halves = |count: usize| -> Vec<u16> {
        values(count, seed + 1).iter().map(|&v| half::f16::from_f32(v).to_bits()).collect()
    };
    let blocks = |block: usize| {
        let mut bytes = noise(groups * block, seed).as_slice().to_vec();
        let scales = halves(groups);
        for (block, scale) in bytes.chunks_exact_mut(block).zip(scales) {
            block[..2].copy_from_slice(&scale.to_le_bytes());
        }
        Bytes::copied(&bytes)
    };
    let data = match form {
        "f32" => return Matrix::from_f32(&values(rows * cols, seed), rows, cols),
        "f16" => MatrixData::Plain { kind: ElementType::F16, elements: Bytes::copied(&halves(rows * cols)) },
        "bf16" => return Matrix::from_f32(&values(rows * cols, seed), rows, cols).to_bf16(),
        "fp8" => {
            let codes: Vec<u8> = noise(rows * cols, seed).as_slice().iter().map(|code| code & 0xf7).collect();
            let scales = values(rows.div_ceil(128) * cols.div_ceil(128), seed + 1).into();
            MatrixData::Fp8 { codes: Bytes::copied(&codes), scales }
        }
        "mxfp4" => {
            let exponents: Vec<u8> =
                noise(groups, seed + 1).as_slice().iter().map(|e| 100 + e % 40).collect();
            MatrixData::Mxfp4 { blocks: noise(rows * cols / 2, seed), scales: Bytes::copied(&exponents) }
        }
        "int4" | "int4 offsets" => {
            let offsets = (form == "int4 offsets").then(|| Arc::from(values(groups, seed + 2)));
            let scales = Bytes::copied(&halves(groups));
            let codes = noise(rows * cols / 2, seed);
            MatrixData::Int4(Arc::new(Int4 { codes, scales, scale_type: Scales::F16, offsets, group: 32 }))
        }
        "q4_0" => MatrixData::Q4_0 { blocks: blocks(Q4_0_BLOCK) },
        "q8_0" => MatrixData::Q8_0 { blocks: blocks(Q8_0_BLOCK) },
        other => panic!("{other}"),
    };
    Matrix::new(data, rows, cols)
}

/// A piece whose matrices are parts of larger ones, as the run from 128 on of an expert is.
fn piece(form: &str, packing: Option<Packing>) -> ExpertPiece {
    let both = matrix(form, 2 * (128 + RUN), HIDDEN, 3);
    let down = matrix(form, HIDDEN, 128 + RUN, 5);
    let step = if form == "fp8" { 1 } else { 2 };
    let gate = both.row_slice(128, step, RUN);
    let up = both.row_slice(if step == 1 { 256 } else { 129 }, step, RUN);
    let down = down.col_slice(128, RUN);
    let run = |matrix: Matrix| -> Weight {
        match packing {
            None => matrix.into(),
            Some(packing) => pack(&device(), &matrix, packing, &mut Arena::default()).into(),
        }
    };
    ExpertPiece {
        expert: 7,
        gate: run(gate),
        up: run(up),
        down: run(down),
        gate_bias: Some(values(RUN, 11)),
        up_bias: Some(values(RUN, 12)),
        down_bias: Some(values(HIDDEN, 13)),
    }
}

const SHAPE: PieceShape = PieceShape { expert: 7, hidden: HIDDEN, run: RUN, first: true, unit: UNIT_MIN };

fn written(piece: &ExpertPiece) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_piece(piece, &mut |run| bytes.extend_from_slice(run));
    bytes
}

fn read(bytes: &[u8], shape: &PieceShape) -> Result<ExpertPiece, WireError> {
    read_piece(bytes, shape, &device(), &mut Arena::default())
}

/// A row of a weight as bits.
fn row(weight: &Weight, row: usize) -> Vec<u32> {
    let mut values = vec![0.0f32; weight.cols()];
    match weight {
        Weight::Plain(matrix) => matrix.dequantize_row(row, &mut values),
        Weight::Packed(packed) => packed.dequantize_row(row, &mut values),
        Weight::Cuda(_) => unreachable!("nothing is in a GPU's memory here"),
    }
    values.iter().map(|value| value.to_bits()).collect()
}

fn all_pieces() -> Vec<(String, ExpertPiece)> {
    let plain = FORMS.iter().map(|form| (form.to_string(), piece(form, None)));
    let own =
        [Packing::Int4, Packing::Int8].map(|packing| (format!("{packing:?}"), piece("f32", Some(packing))));
    let stored = ["mxfp4", "int4", "int4 offsets", "q4_0", "q8_0"]
        .map(|form| (format!("packed {form}"), piece(form, Some(Packing::AsStored))));
    plain.chain(own).chain(stored).collect()
}

#[test]
fn every_form_comes_back_to_the_same_bits() {
    for (name, piece) in all_pieces() {
        let bytes = written(&piece);
        assert!(bytes.len() as u64 <= SHAPE.bytes_max(), "{name}: {} bytes", bytes.len());
        let back = read(&bytes, &SHAPE).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (was, is) in [(&piece.gate, &back.gate), (&piece.up, &back.up), (&piece.down, &back.down)] {
            assert_eq!((was.rows(), was.cols()), (is.rows(), is.cols()), "{name}");
            assert_eq!(was.packed().map(Packed::format), is.packed().map(Packed::format), "{name}");
            (0..was.rows()).for_each(|at| assert_eq!(row(was, at), row(is, at), "{name}, row {at}"));
        }
        assert_eq!((&piece.gate_bias, &piece.up_bias), (&back.gate_bias, &back.up_bias), "{name}");
        assert_eq!(piece.down_bias, back.down_bias, "{name}");
        // What came is what would be sent on.
        assert_eq!(written(&back), bytes, "{name}");
    }
}

#[test]
fn other_pieces_are_refused() {
    let bytes = written(&piece("f32", Some(Packing::Int4)));
    let refusal = |shape: PieceShape| read(&bytes, &shape).expect_err("another piece");
    assert_eq!(refusal(PieceShape { expert: 8, ..SHAPE }), WireError::Expert(7, 8));
    assert_eq!(refusal(PieceShape { first: false, ..SHAPE }), WireError::Bias);
    assert!(matches!(refusal(PieceShape { run: RUN - 1, ..SHAPE }), WireError::Shape { what: "gate", .. }));
    assert!(matches!(refusal(PieceShape { hidden: 64, ..SHAPE }), WireError::Shape { what: "gate", .. }));
    assert_eq!(refusal(PieceShape { unit: 256, ..SHAPE }), WireError::Mixed);
    let plain = piece("f32", None);
    let mixed = ExpertPiece { gate: plain.gate.clone(), ..piece("f32", Some(Packing::Int4)) };
    assert_eq!(read(&written(&mixed), &SHAPE).expect_err("mixed"), WireError::Mixed);
    let kinds =
        ExpertPiece { up: piece("q4_0", Some(Packing::AsStored)).up, ..piece("f32", Some(Packing::Int4)) };
    assert_eq!(read(&written(&kinds), &SHAPE).expect_err("groups of two sizes"), WireError::Mixed);
    assert!(plain.goes_with(&piece("bf16", None)) && !plain.goes_with(&kinds));
}

#[test]
fn bytes_that_are_no_piece_are_refused() {
    for (name, piece) in all_pieces() {
        let bytes = written(&piece);
        for cut in [0, 3, 15, 16, 27, 28, 1000, bytes.len() / 2, bytes.len() - 1] {
            assert!(read(&bytes[..cut], &SHAPE).is_err(), "{name} of {cut} bytes");
        }
        assert_eq!(read(&[&bytes[..], &[0]].concat(), &SHAPE).err(), Some(WireError::Long(1)), "{name}");
        // Any header: an error, or a piece of the shape that was asked for.
        let mut state = 99u64;
        for round in 0..2000 {
            let mut broken = bytes.clone();
            let at = (next(&mut state) >> 20) as usize % if round % 2 == 0 { 40 } else { broken.len() };
            broken[at] ^= 1 << (next(&mut state) >> 30 & 7);
            if let Ok(piece) = read(&broken, &SHAPE) {
                assert!(piece.expert == 7 && piece.fits(HIDDEN), "{name}, byte {at}");
            }
        }
    }
}
