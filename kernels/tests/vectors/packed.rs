//! ARITHMETIC.md, 1. and 7. to 9.: rows in int8, packed products, stored forms, our own int4 and int8.

use gaterail_kernels::cuda::Form;
use gaterail_kernels::ops::{self, *};
use gaterail_kernels::{
    Bytes, Codes, Device, ElementType, Int4, LINE, Matrix, MatrixData, PANEL_ROWS, Packed, PackedFormat,
    Scales, View, Weight, reference,
};

use crate::common::{all_streams, put, same, streams};
use crate::dense::project_rows;
use crate::read::{Case, cases};

#[test]
fn rows_in_int8() {
    let streams = all_streams();
    for case in cases("quantise") {
        let (x, group) = (case.floats("x"), case.size("group"));
        let (codes, scales) = (case.signed("codes"), case.floats("scales"));
        let sums: Vec<i32> = case.integers("sums").into_iter().map(|sum| sum as i32).collect();
        let twin = reference::quantize_row(&x, group);
        assert_eq!((&twin.codes, &twin.sums), (&codes, &sums), "{}", case.name());
        same(case.name(), &twin.scales, &scales);
        for stream in &streams {
            let what = format!("{}, {}", case.name(), stream.device());
            let buffer = put(stream, &x);
            let mut quantized = QuantRows::new(stream.device(), 1, x.len()).expect("memory");
            ops::quantize(stream, View::rows(&buffer, 1, x.len()), group, &mut quantized);
            let (fast, fast_scales, fast_sums) = quantized.download(stream, 0).expect("a copy");
            assert_eq!(fast[..x.len()], codes, "{what}");
            assert_eq!(fast_sums, sums, "{what}");
            same(&what, &fast_scales, &scales);
        }
    }
}

#[test]
fn packed_products() {
    let streams = all_streams();
    for case in cases("packed") {
        let w = packed(&case.part("w"));
        let (x, bias, out) = (case.floats("x"), case.floats_or_none("bias"), case.floats("out"));
        let rows = x.chunks_exact(w.cols());
        let twin: Vec<f32> =
            rows.clone().flat_map(|x| reference::packed_linear_row(x, &w, bias.as_deref())).collect();
        same(case.name(), &twin, &out);
        let (no_form, rows) = (Form::of(w.format()).is_err(), rows.len());
        let weight = Weight::from(w);
        for stream in &streams {
            if no_form && matches!(stream.device(), Device::Cuda(_)) {
                continue;
            }
            let fast = project_rows(stream, &weight, rows, &x, bias.as_deref());
            same(&format!("{}, {}", case.name(), stream.device()), &fast, &out);
        }
    }
}

/// A matrix in the layout of packed.rs.
pub fn packed(case: &Case) -> Packed {
    let (rows, cols, group) = (case.size("rows"), case.size("cols"), case.size("group"));
    let (codes, digits) = match case.has("table") {
        true => {
            let table: Vec<i8> = case.integers("table").into_iter().map(|value| value as i8).collect();
            (Codes::Int4 { table: table.try_into().expect("16 integers") }, 1)
        }
        false => (Codes::Int8, 2),
    };
    let scales = if case.text("scale_form") == "f16" { Scales::F16 } else { Scales::F32 };
    let format = PackedFormat { codes, scales, offsets: case.has("offsets"), group };
    let groups = cols.div_ceil(group);
    // What is missing at the edges counts for nothing, whatever its code.
    let (all_codes, all_scales) = (case.codes("codes", digits), case.floats("scales"));
    let all_offsets = case.floats_or_none("offsets");
    let mut bytes = Vec::new();
    for panel in 0..rows.div_ceil(PANEL_ROWS) {
        for within in 0..groups {
            let start = bytes.len();
            bytes.resize(start + format.record(), 0);
            let record = &mut bytes[start..];
            for r in 0..PANEL_ROWS {
                let row = panel * PANEL_ROWS + r;
                let code = |at: usize| match (row < rows, within * group + at) {
                    (true, col) if col < cols => all_codes[row * cols + col],
                    _ => 0,
                };
                (0..group).for_each(|at| place(record, format, r, at, code(at)));
                if row < rows {
                    let at = row * groups + within;
                    put_scales(record, format, r, all_scales[at], all_offsets.as_ref().map(|all| all[at]));
                }
            }
        }
    }
    Packed::new(format, Bytes::copied(&bytes), rows, cols)
}

fn place(record: &mut [u8], format: PackedFormat, r: usize, at: usize, code: u8) {
    let columns = format.codes.line_columns();
    let byte = format.codes_at() + at / columns * LINE + 4 * r + at % 4;
    record[byte] |= if at % columns < 4 { code } else { code << 4 };
}

fn put_scales(record: &mut [u8], format: PackedFormat, r: usize, scale: f32, offset: Option<f32>) {
    match format.scales {
        Scales::F16 => record[2 * r..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes()),
        Scales::F32 => record[4 * r..][..4].copy_from_slice(&scale.to_le_bytes()),
    }
    if let Some(offset) = offset {
        record[format.offsets_at() + 4 * r..][..4].copy_from_slice(&offset.to_le_bytes());
    }
}

#[test]
fn stored_forms() {
    let streams = streams();
    for case in cases("stored") {
        let (cols, values) = (case.size("cols"), case.floats("values"));
        let matrix = stored(&case);
        let given = match case.has("rows_given") {
            true => case.integers("rows_given").into_iter().map(|row| row as usize).collect(),
            false => (0..matrix.rows()).collect::<Vec<_>>(),
        };
        let mut row_values = vec![0.0; cols];
        for (row, values) in given.into_iter().zip(values.chunks_exact(cols)) {
            matrix.dequantize_row(row, &mut row_values);
            same(&format!("{}, row {row}", case.name()), &row_values, values);
        }
        if case.has("packed") {
            streams.iter().for_each(|stream| packed_as_stored(stream.device(), &case, &matrix));
        }
    }
}

fn packed_as_stored(device: &Device, case: &Case, matrix: &Matrix) {
    let (part, what) = (case.part("packed"), case.name());
    let packed = ops::pack(device, matrix, Packing::AsStored, &mut Default::default());
    let integers = part.signed("integers");
    let (mut scales, mut offsets) = (Vec::new(), Vec::new());
    for row in 0..matrix.rows() {
        for (col, &integer) in integers[row * matrix.cols()..][..matrix.cols()].iter().enumerate() {
            let value = packed.format().codes.value(packed.code(row, col));
            assert_eq!(value, i32::from(integer), "{what}, row {row}, column {col}");
        }
        for group in 0..matrix.cols().div_ceil(packed.format().group) {
            scales.push(packed.scale(row, group));
            offsets.extend(packed.offset(row, group));
        }
    }
    same(what, &scales, &part.floats("scales"));
    same(what, &offsets, &part.floats_or_none("offsets").unwrap_or_default());
    if part.has("scale_form") {
        assert_eq!(format!("{:?}", packed.format().scales).to_lowercase(), part.text("scale_form"), "{what}");
    }
}

fn stored(case: &Case) -> Matrix {
    let blocks = Bytes::copied(&case.codes("blocks", 2));
    let plain = |kind| MatrixData::Plain { kind, elements: blocks.clone() };
    let data = match case.text("form") {
        "bf16" => plain(ElementType::Bf16),
        "f16" => plain(ElementType::F16),
        "fp8" => MatrixData::Fp8 { codes: blocks, scales: case.floats("scales").into() },
        "mxfp4" => MatrixData::Mxfp4 { blocks, scales: Bytes::copied(&case.codes("exponents", 2)) },
        "q4_0" => MatrixData::Q4_0 { blocks },
        "q8_0" => MatrixData::Q8_0 { blocks },
        _ => {
            let scales: Vec<u16> =
                case.floats("scales").iter().map(|&scale| half::f16::from_f32(scale).to_bits()).collect();
            let offsets = case.floats_or_none("offsets").map(Into::into);
            let (scales, scale_type) = (Bytes::copied(&scales), Scales::F16);
            let int4 = Int4 { codes: blocks, scales, scale_type, offsets, group: case.size("group") };
            MatrixData::Int4(int4.into())
        }
    };
    Matrix::new(data, case.size("rows"), case.size("cols"))
}

#[test]
fn our_own_codes() {
    let streams = streams();
    for case in cases("pack") {
        let x = case.floats("x");
        for (packing, key) in [(Packing::Int4, "int4"), (Packing::Int8, "int8")] {
            let part = case.part(key);
            let codes: Vec<i32> = part.signed("codes").into_iter().map(i32::from).collect();
            let what = format!("{key} of {}", case.name());
            let (twin, scale) = match packing {
                Packing::Int4 => reference::int4_group(&x),
                _ => reference::int8_group(&x),
            };
            same(&what, &[scale], &part.floats("scale"));
            assert_eq!(twin, codes, "{what}");
            for stream in &streams {
                let matrix = Matrix::from_f32(&x, 1, x.len());
                let packed = ops::pack(stream.device(), &matrix, packing, &mut Default::default());
                let what = format!("{what}, {}", stream.device());
                same(&what, &[packed.scale(0, 0)], &part.floats("scale"));
                let value = |col| packed.format().codes.value(packed.code(0, col));
                assert_eq!((0..x.len()).map(value).collect::<Vec<_>>(), codes, "{what}");
            }
        }
    }
}
