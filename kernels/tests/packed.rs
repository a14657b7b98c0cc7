//! Packed weights of every format and instruction set against the plain twins, bit for bit, on random shapes.

use gaterail_kernels::cuda::{CudaError, Form};
use gaterail_kernels::ops::{self, *};
use gaterail_kernels::{
    Bytes, Device, Int4, KernelError, LINE, Matrix, MatrixData, Packed, PackedFormat, Scales, Stream, View,
    ViewMut, Weight, reference,
};

mod common;
use common::{
    Random, all_streams, experts_out, finished, formats, get, put, random_packed, routing, same, streams,
};

/// Values with groups of zeros, of tiny values and of one outlier.
fn activations(random: &mut Random, n: usize) -> Vec<f32> {
    let mut x = random.values(n);
    for chunk in x.chunks_mut(32) {
        match random.below(9) {
            0 => chunk.fill(0.0),
            1 => chunk.iter_mut().for_each(|x| *x *= 2f32.powi(-105)),
            2 => chunk[0] = 900.0,
            3 => chunk.iter_mut().for_each(|x| *x = x.signum() * 1.5),
            _ => {}
        }
    }
    x
}

#[test]
fn rows_are_quantised_like_their_twins() {
    for stream in all_streams() {
        for seed in 0..40 {
            let random = &mut Random(seed);
            let (rows, group) = (1 + random.below(9), 32 << random.below(3));
            // Ragged ends, and ends that are whole groups of another size.
            let width = if seed % 2 == 0 { 1 + random.below(400) } else { 32 * (1 + random.below(12)) };
            let mut x = activations(random, rows * width);
            match seed {
                5 => x[width / 2] = f32::NAN,
                6 => x[width / 2] = f32::NEG_INFINITY,
                _ => {}
            }
            let buffer = put(&stream, &x);
            let mut quantized = QuantRows::new(stream.device(), rows, width).expect("memory");
            // Another use before has left its codes behind.
            let other = put(&stream, &vec![1.0; rows * width]);
            ops::quantize(&stream, View::rows(&other, rows, width), 32, &mut quantized);
            ops::quantize(&stream, View::rows(&buffer, rows, width), group, &mut quantized);
            for (row, x) in x.chunks_exact(width).enumerate() {
                let (codes, scales, sums) = quantized.download(&stream, row).expect("a copy");
                let twin = reference::quantize_row(x, group);
                assert_eq!(codes[..width], twin.codes, "codes, seed {seed}");
                assert!(codes[width..].iter().all(|&code| code == 0), "codes behind the row, seed {seed}");
                assert_eq!(sums, twin.sums, "sums, seed {seed}");
                same(&format!("scales, seed {seed}"), &scales, &twin.scales);
            }
        }
    }
}

#[test]
fn products_are_their_twins() {
    let streams = all_streams();
    for (index, format) in formats().into_iter().enumerate() {
        for case in 0..4 {
            let seed = (index * 10 + case) as u64;
            let random = &mut Random(seed);
            let (rows, n, cols) = (1 + random.below(19), 1 + random.below(90), 1 + random.below(700));
            let w = random_packed(random, format, n, cols);
            let x = activations(random, rows * cols);
            let bias = seed.is_multiple_of(2).then(|| random.values(n));
            let expected: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| reference::packed_linear_row(x, &w, bias.as_deref()))
                .collect();
            let weight = Weight::from(w);
            for stream in &streams {
                if Form::of(format).is_err() && matches!(stream.device(), Device::Cuda(_)) {
                    continue;
                }
                let weight = weight.on(stream.device()).expect("memory");
                let (x, bias) = (put(stream, &x), bias.as_ref().map(|bias| put(stream, bias)));
                let mut quantized = QuantRows::new(stream.device(), rows, cols).expect("memory");
                let mut out = put(stream, &vec![0.0; rows * n]);
                let projection =
                    Projection { w: &weight, bias: bias.as_ref(), out: ViewMut::rows(&mut out, rows, n) };
                ops::project(stream, View::rows(&x, rows, cols), &mut quantized, &mut [projection]);
                same(&format!("{format:?}, seed {seed}"), &get(stream, &out), &expected);
            }
        }
    }
}

#[test]
fn our_own_groups_are_their_twins() {
    for stream in streams() {
        for seed in 0..30 {
            let random = &mut Random(seed);
            let (rows, cols) = (1 + random.below(40), 1 + random.below(300));
            let mut values = activations(random, rows * cols);
            match seed {
                3 => values[0] = f32::INFINITY,
                4 => values[0] = f32::NAN,
                5 => values[0] = -3e38,
                6 => values.iter_mut().for_each(|x| *x *= 1e-7),
                _ => {}
            }
            let matrix = Matrix::from_f32(&values, rows, cols);
            for packing in [Packing::Int4, Packing::Int8] {
                let packed = ops::pack(stream.device(), &matrix, packing, &mut Default::default());
                for (row, values) in values.chunks_exact(cols).enumerate() {
                    for (group, x) in values.chunks(64).enumerate() {
                        let (w, scale) = match packing {
                            Packing::Int4 => reference::int4_group(x),
                            _ => reference::int8_group(x),
                        };
                        let what = format!("{packing:?}, seed {seed}, row {row}, group {group}");
                        same(&what, &[packed.scale(row, group)], &[scale]);
                        for (i, &w) in w.iter().enumerate() {
                            let code = packed.code(row, group * 64 + i);
                            assert_eq!(packed.format().codes.value(code), w, "{what}, element {i}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn stored_groups_keep_their_values() {
    for seed in 0..10 {
        let random = &mut Random(seed);
        let (rows, groups) = (1 + random.below(40), 1 + random.below(9));
        let codes: Vec<u8> = (0..rows * groups * 16).map(|_| random.next() as u8).collect();
        // Exponents that f16 scales hold, and beyond.
        let span = if seed < 5 { 104..144 } else { 1..255 };
        let exponents: Vec<u8> =
            (0..rows * groups).map(|_| (span.start + random.below(span.len())) as u8).collect();
        let data = MatrixData::Mxfp4 { blocks: Bytes::copied(&codes), scales: Bytes::copied(&exponents) };
        let matrix = Matrix::new(data, rows, groups * 32);
        check_stored(&matrix, if seed < 5 { Some(Scales::F16) } else { None });
        for block in [18, 34] {
            let mut blocks: Vec<u8> = (0..rows * groups * block).map(|_| random.next() as u8).collect();
            for block in blocks.chunks_exact_mut(block) {
                let scale = half::f16::from_f32(random.value());
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
            let blocks = Bytes::copied(&blocks);
            let data = if block == 18 { MatrixData::Q4_0 { blocks } } else { MatrixData::Q8_0 { blocks } };
            check_stored(&Matrix::new(data, rows, groups * 32), Some(Scales::F16));
        }
    }
    for seed in 0..24 {
        let random = &mut Random(seed);
        let group = [32, 64, 128][seed as usize % 3];
        // A short last group too.
        let (rows, cols) = (1 + random.below(40), 2 * (1 + random.below(250)));
        let groups = rows * cols.div_ceil(group);
        let codes: Vec<u8> = (0..rows * cols / 2).map(|_| random.next() as u8).collect();
        let scales: Vec<half::f16> = random.values(groups).into_iter().map(half::f16::from_f32).collect();
        let widened: Vec<f32> = scales.iter().map(|scale| scale.to_f32()).collect();
        let zero = |scale: &f32| scale * (8.0 - random.below(16) as f32);
        let offsets = (seed % 2 == 0).then(|| widened.iter().map(zero).collect());
        let (scale_type, scales) = match seed % 4 {
            0 | 1 => {
                let halves: Vec<u16> = scales.iter().map(|scale| scale.to_bits()).collect();
                (Scales::F16, Bytes::copied(&halves))
            }
            _ => (Scales::F32, Bytes::copied(&widened)),
        };
        let int4 = Int4 { codes: Bytes::copied(&codes), scales, scale_type, offsets, group };
        let matrix = Matrix::new(MatrixData::Int4(int4.into()), rows, cols);
        check_stored(&matrix, Some(scale_type));
        check_stored(&matrix.col_slice(0, cols / group * group), Some(scale_type));
        if cols > group {
            check_stored(&matrix.col_slice(group, cols - group), Some(scale_type));
        }
    }
}

/// Packs a matrix whole and a part of it, and compares every value.
fn check_stored(matrix: &Matrix, scales: Option<Scales>) {
    let stream = &streams()[0];
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let part = matrix.row_slice(rows / 3, 1, rows - rows / 3);
    for matrix in [matrix, &part] {
        let packed = ops::pack(stream.device(), matrix, Packing::AsStored, &mut Default::default());
        assert!(scales.is_none_or(|scales| packed.format().scales == scales), "{:?}", packed.format());
        let (mut got, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..matrix.rows() {
            packed.dequantize_row(row, &mut got);
            matrix.dequantize_row(row, &mut expected);
            // The sign of a zero is all that integers cannot keep.
            let unsigned = |values: &[f32]| values.iter().map(|x| x + 0.0).collect::<Vec<f32>>();
            same("stored groups", &unsigned(&got), &unsigned(&expected));
        }
    }
}

/// One expert's packed matrices and biases.
struct Expert {
    gate: Packed,
    up: Packed,
    down: Packed,
    gate_bias: Option<Vec<f32>>,
    up_bias: Option<Vec<f32>>,
    down_bias: Option<Vec<f32>>,
}

#[test]
fn experts_are_their_twins() {
    let streams = all_streams();
    let on_all = (0..60).filter(|&seed| experts_case(&streams, seed) == streams.len()).count();
    // The GPU has kernels for what models come in; every other format is one of those.
    assert!(on_all >= 20, "{on_all} cases on every device");
    // Experts as wide as real models' go through several rounds of units.
    let cpus = common::streams();
    (100..124).for_each(|seed| assert_eq!(experts_case(&cpus, seed), cpus.len()));
}

/// The number of devices that computed it: a GPU does not have all formats.
fn experts_case(streams: &[Stream], seed: u64) -> usize {
    let random = &mut Random(seed);
    let mut all = formats();
    if seed % 2 == 1 {
        all.retain(|&format| Form::of(format).is_ok());
    }
    let (inner, down) = (all[random.below(all.len())], all[random.below(all.len())]);
    let wide = seed >= 100;
    let (h, f) = match wide {
        true => (1 + random.below(40), [1024, 1025, 1152, 2880][random.below(4)]),
        false => (1 + random.below(300), 1 + random.below(400)),
    };
    let (experts, rows) =
        (1 + random.below(5), if seed.is_multiple_of(7) { 70 } else { 1 + random.below(12) });
    let top_k = 1 + random.below(experts);
    let activation = match seed % 3 {
        0 => Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.5 },
        _ => Activation::SwiGlu,
    };
    let weight_on = if seed % 5 == 4 { WeightOn::Input } else { WeightOn::Output };
    let weights: Vec<Expert> = (0..experts)
        .map(|_| {
            let bias = |random: &mut Random, n| seed.is_multiple_of(2).then(|| random.values(n));
            // Gate and up may be stored with and without offsets, or with scales of two kinds.
            let mixed = PackedFormat { offsets: random.below(2) == 0, ..inner };
            Expert {
                gate: random_packed(random, inner, f, h),
                up: random_packed(random, mixed, f, h),
                down: random_packed(random, down, h, f),
                gate_bias: bias(random, f),
                up_bias: bias(random, f),
                down_bias: bias(random, h),
            }
        })
        .collect();
    let mut x = activations(random, rows * h);
    if seed % 10 == 3 {
        x[0] = f32::NAN;
    }
    let ids = routing(random, rows, experts, top_k);
    let mut shares = random.values(rows * top_k);
    if seed % 10 == 5 {
        // A term beyond what fixed point holds.
        shares[0] = 1e12;
    }
    // Shards hold runs of units; experts past `held` live elsewhere.
    let held = if seed % 4 == 1 { experts.div_ceil(2) } else { experts };
    let mut pieces = Vec::new();
    for (expert, w) in weights.iter().enumerate().take(held) {
        let cut = if wide && seed.is_multiple_of(2) { f } else { f.min(128) };
        for (start, end) in [(0, cut), (cut, f)].into_iter().filter(|(start, end)| start < end) {
            pieces.push(piece(w, expert as u32, start, end));
        }
    }
    let mut expected = Vec::new();
    for row in 0..rows {
        let (mut sums, mut poisoned) = (vec![0i64; h], false);
        for k in (0..top_k).filter(|k| (ids[row * top_k + k] as usize) < held) {
            let w = &weights[ids[row * top_k + k] as usize];
            let expert = reference::ExpertRow {
                x: &x[row * h..][..h],
                f,
                weight: shares[row * top_k + k],
                gate: reference::RowWeight::Packed(&w.gate),
                up: reference::RowWeight::Packed(&w.up),
                down: reference::RowWeight::Packed(&w.down),
                gate_bias: w.gate_bias.as_deref(),
                up_bias: w.up_bias.as_deref(),
                down_bias: w.down_bias.as_deref(),
                activation,
                weight_on,
                unit: 128,
                fraction_bits: 24,
            };
            poisoned |= reference::add_expert_row(&expert, &mut sums);
        }
        expected.extend(finished(&sums, FRACTION_BITS, poisoned));
    }
    assert!(seed != 3 || expected[0].is_nan(), "the poisoned row of seed 3");
    let mut computed = 0;
    for stream in streams {
        let pieces = match ExpertPieces::on(stream.device(), pieces.clone()) {
            Ok(pieces) => pieces,
            Err(KernelError::Cuda(CudaError::NoForm(_))) => continue,
            Err(error) => panic!("{error}"),
        };
        let (x, ids, weights) = (put(stream, &x), put(stream, &ids), put(stream, &shares));
        let args = ExpertsArgs {
            x: View::rows(&x, rows, h).into(),
            ids: &ids,
            weights: &weights,
            top_k,
            pieces: &pieces,
            activation,
            weight_on,
            unit: 128,
            fraction_bits: FRACTION_BITS,
        };
        let out = experts_out(stream, &args);
        same(&format!("experts, seed {seed}, {inner:?}, {down:?}"), &out, &expected);
        // The same rows, made int8 before they came.
        let int8 = travelled(stream, View::rows(&x, rows, h), inner.group);
        let out = experts_out(stream, &ExpertsArgs { x: ExpertRows::Int8(&int8), ..args });
        same(&format!("experts of int8 rows, seed {seed}, {inner:?}, {down:?}"), &out, &expected);
        computed += 1;
    }
    computed
}

/// Rows that were made int8, and went through memory that is no device's.
fn travelled(stream: &Stream, x: View<'_>, group: usize) -> QuantRows {
    let (rows, width) = (x.layout().rows, x.layout().width);
    let room = || QuantRows::new(stream.device(), rows, width).expect("memory");
    let (mut here, mut there) = (room(), room());
    ops::quantize(stream, x, group, &mut here);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    here.download_all(stream, &mut codes, &mut scales).expect("the rows");
    there.upload(stream, [rows, width, group], &codes, &scales).expect("room");
    let row = |from: &QuantRows, row| {
        let (codes, scales, sums) = from.download(stream, row).expect("a row");
        (codes, scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>(), sums)
    };
    (0..rows).for_each(|at| assert_eq!(row(&here, at), row(&there, at), "row {at}"));
    there
}

fn piece(w: &Expert, expert: u32, start: usize, end: usize) -> ExpertPiece {
    let bias = |bias: &Option<Vec<f32>>| bias.as_ref().map(|bias| bias[start..end].to_vec());
    let run = |w: &Packed| Weight::from(w.row_slice(start, end - start));
    ExpertPiece {
        expert,
        gate: run(&w.gate),
        up: run(&w.up),
        down: w.down.col_slice(start, end - start).into(),
        gate_bias: bias(&w.gate_bias),
        up_bias: bias(&w.up_bias),
        down_bias: w.down_bias.clone().filter(|_| start == 0),
    }
}

/// One piece of several that does not fit is refused before anything is computed, wherever it stands.
#[test]
fn pieces_that_do_not_fit_are_refused() {
    let cpu = streams().pop().expect("a CPU");
    let (h, f) = (128, 256);
    let mut random = Random(17);
    let mut packed = |group, rows, cols| -> Weight {
        random_packed(&mut random, PackedFormat { group, ..PackedFormat::INT4 }, rows, cols).into()
    };
    let mut good = |expert| ExpertPiece {
        expert,
        gate: packed(64, f, h),
        up: packed(64, f, h),
        down: packed(32, h, f),
        gate_bias: Some(vec![0.0; f]),
        up_bias: None,
        down_bias: None,
    };
    let pieces: Vec<ExpertPiece> = (0..3).map(&mut good).collect();
    let other = |change: &dyn Fn(&mut ExpertPiece)| {
        let mut piece = pieces[1].clone();
        change(&mut piece);
        piece
    };
    let (short, wide, fine) = (packed(64, f - 16, h), packed(64, f, 2 * h), packed(32, f, h));
    let cases = [
        ("nothing", false, pieces[1].clone()),
        ("up of fewer rows", true, other(&|piece| piece.up = short.clone())),
        ("gate of another width", true, other(&|piece| piece.gate = wide.clone())),
        ("down turned round", true, other(&|piece| piece.down = piece.gate.clone())),
        ("a short bias", true, other(&|piece| piece.gate_bias = Some(vec![0.0; f - 1]))),
        ("a long bias", true, other(&|piece| piece.down_bias = Some(vec![0.0; h + 1]))),
        ("gate in other groups", true, other(&|piece| piece.gate = fine.clone())),
        ("up in other groups", true, other(&|piece| piece.up = fine.clone())),
    ];
    for (name, refused, odd) in cases {
        for place in 0..pieces.len() {
            for width in [h, 2 * h] {
                let mut held = pieces.clone();
                held[place] = odd.clone();
                let (x, ids, weights) =
                    (put(&cpu, &vec![1.0; width]), put(&cpu, &[0u32]), put(&cpu, &[1.0f32]));
                let args = ExpertsArgs {
                    x: View::rows(&x, 1, width).into(),
                    ids: &ids,
                    weights: &weights,
                    top_k: 1,
                    pieces: &held.into(),
                    activation: Activation::SwiGlu,
                    weight_on: WeightOn::Output,
                    unit: 128,
                    fraction_bits: FRACTION_BITS,
                };
                let run = std::panic::AssertUnwindSafe(|| experts_out(&cpu, &args));
                let panicked = std::panic::catch_unwind(run).is_err();
                assert_eq!(panicked, refused || width != h, "{name} at {place}, rows of {width}");
            }
        }
    }
}

#[test]
fn a_line_is_what_the_layout_says() {
    // Row 3, column 13 of a 4-bit matrix in groups of 32: line 1, byte 4 * 3 + 1, high nibble.
    let format = PackedFormat { group: 32, ..PackedFormat::INT4 };
    let mut bytes = vec![0x88u8; format.bytes(16, 32)];
    bytes[32 + LINE + 13] = 0xf8;
    bytes[2 * 3..2 * 3 + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
    let packed = Packed::new(format, Bytes::copied(&bytes), 16, 32);
    let mut row = [0.0; 32];
    packed.dequantize_row(3, &mut row);
    let expected: [f32; 32] = std::array::from_fn(|col| if col == 13 { 3.5 } else { 0.0 });
    assert_eq!(row, expected);
}
