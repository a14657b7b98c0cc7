//! Every operation of every instruction set against its plain twin, bit for bit, on random shapes.

use gaterail_kernels::ops::{self, *};
use gaterail_kernels::{
    Bytes, ElementType, Int4, Matrix, MatrixData, Q4_0_BLOCK, Q8_0_BLOCK, Scales, Stream, View, ViewMut,
    Weight, reference,
};

use gaterail_shim::cases;

mod common;
use common::{Random, all_streams, experts_out, finished, get, put, routing, same, streams};

/// The stored forms below.
const FORMS: usize = 8;

/// A matrix in one of the stored forms, and its values.
fn stored(random: &mut Random, form: usize, rows: usize, cols: usize) -> (Matrix, Vec<f32>) {
    let plain = |kind, elements| Matrix::new(MatrixData::Plain { kind, elements }, rows, cols);
    let values = random.values(rows * cols);
    let matrix = match form {
        0 => plain(ElementType::F32, Bytes::copied(&values)),
        1 => {
            let halves: Vec<u16> = values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
            plain(ElementType::Bf16, Bytes::copied(&halves))
        }
        2 => {
            let halves: Vec<u16> = values.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
            plain(ElementType::F16, Bytes::copied(&halves))
        }
        3 => {
            let codes: Vec<u8> = (0..rows * cols).map(|_| (random.next() as u8) & 0xbf).collect();
            let scales = random.values(rows.div_ceil(128) * cols.div_ceil(128));
            Matrix::new(MatrixData::Fp8 { codes: Bytes::copied(&codes), scales: scales.into() }, rows, cols)
        }
        5 | 6 => {
            let block = if form == 5 { Q4_0_BLOCK } else { Q8_0_BLOCK };
            let mut blocks: Vec<u8> = (0..rows * cols / 32 * block).map(|_| random.next() as u8).collect();
            for block in blocks.chunks_exact_mut(block) {
                let scale = half::f16::from_f32(random.values(1)[0] / if form == 5 { 8.0 } else { 127.0 });
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
            let blocks = Bytes::copied(&blocks);
            let data = if form == 5 { MatrixData::Q4_0 { blocks } } else { MatrixData::Q8_0 { blocks } };
            Matrix::new(data, rows, cols)
        }
        4 => {
            let blocks: Vec<u8> = (0..rows * cols / 2).map(|_| random.next() as u8).collect();
            let scales: Vec<u8> = (0..rows * cols / 32).map(|_| 118 + random.below(10) as u8).collect();
            let data = MatrixData::Mxfp4 { blocks: Bytes::copied(&blocks), scales: Bytes::copied(&scales) };
            Matrix::new(data, rows, cols)
        }
        _ => {
            let codes: Vec<u8> = (0..rows * cols / 2).map(|_| random.next() as u8).collect();
            let groups = rows * cols.div_ceil(32);
            let scales = Bytes::copied(&random.values(groups));
            let offsets = (random.below(2) == 0).then(|| random.values(groups).into());
            let codes = Bytes::copied(&codes);
            let int4 = Int4 { codes, scales, scale_type: Scales::F32, offsets, group: 32 };
            Matrix::new(MatrixData::Int4(int4.into()), rows, cols)
        }
    };
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        matrix.dequantize_row(row, out);
    }
    (matrix, values)
}

#[test]
fn linear_is_the_plain_dot() {
    for stream in all_streams() {
        for seed in 0..60 {
            let random = &mut Random(seed);
            let form = seed as usize % FORMS;
            let cols = match form {
                4..7 => 32 * (1 + random.below(8)),
                7 => 2 * (1 + random.below(150)),
                _ => 1 + random.below(300),
            };
            let (rows, tokens) = (1 + random.below(90), 1 + random.below(11));
            let (matrix, w) = stored(random, form, rows, cols);
            let (x, bias) = (random.values(tokens * cols), random.values(rows));
            let bias = (seed % 2 == 0).then_some(bias);
            let mut out = put(&stream, &vec![0.0; tokens * rows]);
            let bias_buffer = bias.as_ref().map(|bias| put(&stream, bias));
            let x_buffer = put(&stream, &x);
            let w_here = Weight::from(matrix).on(stream.device()).expect("memory");
            let to = ViewMut::rows(&mut out, tokens, rows);
            let projection = Projection { w: &w_here, bias: bias_buffer.as_ref(), out: to };
            let mut unused = QuantRows::new(stream.device(), 0, 0).expect("memory");
            let x_view = View::rows(&x_buffer, tokens, cols);
            ops::project(&stream, x_view, &mut unused, &mut [projection]);
            let expected: Vec<f32> =
                x.chunks_exact(cols).flat_map(|x| reference::linear_row(x, &w, bias.as_deref())).collect();
            same(&format!("linear, seed {seed}, {}", stream.device()), &get(&stream, &out), &expected);
        }
    }
}

#[test]
fn large_products_are_shared_out_and_stay_the_same() {
    for stream in streams() {
        let random = &mut Random(5);
        let (rows, cols, tokens) = (517, 130, 37);
        let (matrix, w) = stored(random, 1, rows, cols);
        let x = random.values(tokens * cols);
        let mut out = put(&stream, &vec![0.0; tokens * rows]);
        let x_buffer = put(&stream, &x);
        linear(
            &stream,
            View::rows(&x_buffer, tokens, cols),
            &matrix,
            None,
            ViewMut::rows(&mut out, tokens, rows),
        );
        let expected: Vec<f32> =
            x.chunks_exact(cols).flat_map(|x| reference::linear_row(x, &w, None)).collect();
        same(&stream.device().to_string(), &get(&stream, &out), &expected);
    }
}

#[test]
fn norm_rope_and_activation_are_their_twins() {
    for stream in all_streams() {
        for seed in 0..40 {
            let random = &mut Random(seed);
            let (rows, heads, width) = (1 + random.below(5), 1 + random.below(4), 2 * (1 + random.below(40)));
            let n = rows * heads * width;
            let (x, weight) = (random.values(n), random.values(width));
            let weight = (seed % 3 != 0).then_some(weight);
            let x_buffer = put(&stream, &x);
            let mut out = put(&stream, &vec![0.0; n]);
            let weight_buffer = weight.as_ref().map(|weight| put(&stream, weight));
            let view = View::heads(&x_buffer, rows, heads, width);
            rms_norm(
                &stream,
                view,
                weight_buffer.as_ref(),
                1e-5,
                ViewMut::heads(&mut out, rows, heads, width),
            );
            let expected: Vec<f32> = x
                .chunks_exact(width)
                .flat_map(|x| reference::rms_norm_row(x, weight.as_deref(), 1e-5))
                .collect();
            same(&format!("rms_norm, seed {seed}"), &get(&stream, &out), &expected);

            let style = if seed % 2 == 0 { RopeStyle::Halves } else { RopeStyle::Pairs };
            let (cos, sin) = (random.values(rows * width / 2), random.values(rows * width / 2));
            let mut turned = put(&stream, &x);
            let (c, s) = (put(&stream, &cos), put(&stream, &sin));
            rope(&stream, style, &c, &s, ViewMut::heads(&mut turned, rows, heads, width));
            let mut expected = x.clone();
            for (i, head) in expected.chunks_exact_mut(width).enumerate() {
                let at = i / heads * (width / 2);
                reference::rope_head(head, style, &cos[at..at + width / 2], &sin[at..at + width / 2]);
            }
            same(&format!("rope, seed {seed}"), &get(&stream, &turned), &expected);

            let kind = if seed % 2 == 0 {
                Activation::SwiGlu
            } else {
                Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.25 }
            };
            let gate: Vec<f32> = x.iter().map(|x| x * 40.0).collect();
            let up = random.values(n);
            let mut gate_buffer = put(&stream, &gate);
            let up_buffer = put(&stream, &up);
            let view = ViewMut::rows(&mut gate_buffer, rows, heads * width);
            activation(&stream, kind, view, View::rows(&up_buffer, rows, heads * width));
            let expected: Vec<f32> =
                gate.iter().zip(&up).map(|(&g, &u)| reference::activate(kind, g, u)).collect();
            same(&format!("activation, seed {seed}"), &get(&stream, &gate_buffer), &expected);
        }
    }
}

#[test]
fn gate_is_its_twin() {
    let scores = [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfSelected, Score::SigmoidOfSelected];
    for stream in all_streams() {
        for seed in 0..200 {
            let random = &mut Random(seed);
            let score = scores[seed as usize % 4];
            let (count, size) = (1 + random.below(4), 2 + random.below(9));
            let experts = count * size;
            let groups = (seed % 3 == 0).then(|| Groups {
                count,
                taken: 1 + random.below(count),
                score: if seed % 2 == 0 { GroupScore::Largest } else { GroupScore::TwoLargest },
            });
            let top_k = 1 + random.below(groups.map_or(experts, |groups| groups.taken * size));
            let gate = Gate {
                score,
                groups,
                normalise: [None, Some(0.0), Some(1e-20)][random.below(3)],
                scale: if seed % 5 == 0 { 2.5 } else { 1.0 },
            };
            let rows = 1 + random.below(5);
            // Few distinct values, so that ties happen.
            let logits: Vec<f32> =
                (0..rows * experts).map(|_| random.below(12) as f32 * 0.25 - 1.0).collect();
            let correction = (seed % 2 == 0).then(|| random.values(experts));
            let logits_buffer = put(&stream, &logits);
            let correction_buffer = correction.as_ref().map(|c| put(&stream, c));
            let mut ids = put(&stream, &vec![0u32; rows * top_k]);
            let mut weights = put(&stream, &vec![0f32; rows * top_k]);
            let out = GateOutput { ids: &mut ids, weights: &mut weights, top_k };
            let view = View::rows(&logits_buffer, rows, experts);
            select(&stream, &gate, view, correction_buffer.as_ref(), out);
            let (mut expected_ids, mut expected_weights) = (Vec::new(), Vec::new());
            for row in logits.chunks_exact(experts) {
                let (ids, weights) = reference::gate_row(&gate, top_k, row, correction.as_deref());
                expected_ids.extend(ids);
                expected_weights.extend(weights);
            }
            assert_eq!(get(&stream, &ids), expected_ids, "seed {seed}: {gate:?}");
            same(&format!("gate, seed {seed}"), &get(&stream, &weights), &expected_weights);
        }
    }
}

#[test]
fn gate_orders_what_is_not_a_number() {
    let groups = Groups { count: 4, taken: 2, score: GroupScore::TwoLargest };
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5, -0.0];
    for stream in all_streams() {
        for seed in 0..200 {
            let random = &mut Random(seed);
            let score = if seed % 2 == 0 { Score::SoftmaxOfSelected } else { Score::Sigmoid };
            let gate = Gate { score, groups: (seed % 4 < 2).then_some(groups), normalise: None, scale: 1.0 };
            let logits: Vec<f32> = (0..8).map(|_| odd[random.below(odd.len())]).collect();
            let buffer = put(&stream, &logits);
            let (mut ids, mut weights) = (put(&stream, &[0u32; 4]), put(&stream, &[0f32; 4]));
            let out = GateOutput { ids: &mut ids, weights: &mut weights, top_k: 4 };
            select(&stream, &gate, View::rows(&buffer, 1, 8), None, out);
            let (expected, _) = reference::gate_row(&gate, 4, &logits, None);
            assert_eq!(get(&stream, &ids), expected, "seed {seed}: {logits:?}");
            let mut distinct = expected.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 4, "seed {seed}: an expert twice");
        }
    }
}

#[test]
fn attention_is_its_twin() {
    streams().iter().for_each(|stream| cases::attention_cases(stream.device(), 90));
    all_streams().iter().skip(streams().len()).for_each(|stream| cases::attention_cases(stream.device(), 36));
}

#[test]
fn experts_are_their_twins() {
    for stream in streams() {
        for seed in 0..20 {
            experts_case(&stream, seed);
        }
    }
}

fn experts_case(stream: &Stream, seed: u64) {
    let random = &mut Random(seed);
    let (h, f) = (1 + random.below(70), 1 + random.below(300));
    let (experts, rows) = (1 + random.below(5), 1 + random.below(9));
    let top_k = 1 + random.below(experts);
    let biased = seed.is_multiple_of(2);
    let activation = match seed % 3 {
        0 => Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.5 },
        _ => Activation::SwiGlu,
    };
    let weight_on = if seed % 5 == 4 { WeightOn::Input } else { WeightOn::Output };
    let mut x = random.values(rows * h);
    if seed == 7 {
        x[0] = f32::NAN;
    }
    let large = [2f32.powi(27), 2f32.powi(27) - 8.0, 2f32.powi(26), -2f32.powi(27) + 8.0, 2e8];
    let mut weights: Vec<ExpertValues> = Vec::new();
    for _ in 0..experts {
        let bias = |random: &mut Random, n| biased.then(|| random.values(n));
        weights.push(ExpertValues {
            gate: random.values(f * h),
            up: random.values(f * h),
            down: random.values(h * f),
            gate_bias: bias(random, f),
            up_bias: bias(random, f),
            down_bias: bias(random, h),
        });
        // Terms at the edge of what fixed point holds, and beyond it.
        if let (true, Some(bias)) = (seed >= 10, &mut weights.last_mut().expect("an expert").down_bias) {
            bias[0] = large[random.below(large.len())];
        }
    }
    let ids = routing(random, rows, experts, top_k);
    let shares: Vec<f32> = if seed >= 10 { vec![1.0; rows * top_k] } else { random.values(rows * top_k) };
    let mut pieces = Vec::new();
    for (expert, w) in weights.iter().enumerate() {
        for (start, end) in [(0, f.min(128)), (128, f)].into_iter().filter(|(start, end)| start < end) {
            pieces.push(w.piece(expert as u32, h, f, start..end));
        }
    }
    let pieces = pieces.into();
    let (x_buffer, ids_buffer, share_buffer) = (put(stream, &x), put(stream, &ids), put(stream, &shares));
    let args = ExpertsArgs {
        x: View::rows(&x_buffer, rows, h).into(),
        ids: &ids_buffer,
        weights: &share_buffer,
        top_k,
        pieces: &pieces,
        activation,
        weight_on,
        unit: unit_length(1),
        fraction_bits: FRACTION_BITS,
    };
    let out = experts_out(stream, &args);

    let mut expected = Vec::new();
    for row in 0..rows {
        let (mut sums, mut poisoned) = (vec![0i64; h], false);
        for k in 0..top_k {
            let w = &weights[ids[row * top_k + k] as usize];
            let expert = reference::ExpertRow {
                x: &x[row * h..][..h],
                weight: shares[row * top_k + k],
                f,
                gate: reference::RowWeight::Plain(&w.gate),
                up: reference::RowWeight::Plain(&w.up),
                down: reference::RowWeight::Plain(&w.down),
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
    assert!(seed != 7 || expected[0].is_nan(), "the poisoned row of seed 7");
    same(&format!("experts, seed {seed}"), &out, &expected);
}

struct ExpertValues {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    gate_bias: Option<Vec<f32>>,
    up_bias: Option<Vec<f32>>,
    down_bias: Option<Vec<f32>>,
}

impl ExpertValues {
    fn piece(&self, expert: u32, h: usize, f: usize, run: std::ops::Range<usize>) -> ExpertPiece {
        let rows = |values: &[f32]| Matrix::from_f32(values, f, h).row_slice(run.start, 1, run.len());
        let bias = |bias: &Option<Vec<f32>>| bias.as_ref().map(|bias| bias[run.clone()].to_vec());
        ExpertPiece {
            expert,
            gate: rows(&self.gate).into(),
            up: rows(&self.up).into(),
            down: Matrix::from_f32(&self.down, h, f).col_slice(run.start, run.len()).into(),
            gate_bias: bias(&self.gate_bias),
            up_bias: bias(&self.up_bias),
            down_bias: self.down_bias.clone().filter(|_| run.start == 0),
        }
    }
}

/// Rounding to f16 as the `half` crate does it, but for the ends of the range.
#[test]
fn kv_in_f16_is_rounded_half_to_even_and_stays_in_range() {
    let mut random = Random(7);
    let mut values: Vec<f32> = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).collect();
    // Exact ties, and neighbours of f16 values.
    let pairs: Vec<f32> = values.windows(2).map(|pair| pair[0] / 2.0 + pair[1] / 2.0).collect();
    values.extend(pairs);
    values.extend([65519.99, 65520.0, -65520.0, 1e9, -1e9, f32::INFINITY, f32::NEG_INFINITY, 1e-8, -1e-8]);
    values.extend(random.values(1000).iter().map(|v| v * 1e-5));
    let width = 37;
    values.resize(values.len().next_multiple_of(width), 1.0);
    let rows = values.len() / width;
    let slots: Vec<u32> = (0..rows as u32).rev().collect();
    for stream in all_streams() {
        let from = put(&stream, &values);
        let pages = rows.div_ceil(PAGE_POSITIONS);
        let cache = put(&stream, &vec![half::f16::ZERO; pages * PAGE_POSITIONS * width]);
        let mut cache = KvBuffer::F16(cache);
        let slots = put(&stream, &slots);
        let from = View::heads(&from, rows, 1, width);
        kv_write(&stream, &KvWrite { from, slots: &slots, width, column: 0 }, &mut cache);
        let KvBuffer::F16(cache) = &cache else { panic!("another form") };
        let stored = get(&stream, cache);
        for (index, value) in values.iter().enumerate() {
            let at = (rows - 1 - index / width) * width + index % width;
            let expected = half::f16::from_f32(value.clamp(-65504.0, 65504.0));
            let same = stored[at].to_bits() == expected.to_bits() || (value.is_nan() && stored[at].is_nan());
            assert!(same, "{value} became {} instead of {expected}", stored[at]);
        }
    }
}

/// With few rows, whose places are asked for first, and with many; a part of each head, and nothing beside it.
#[test]
fn kv_rows_lie_where_their_slots_say() {
    let (heads, width, part, column, pages) = (3, 24, 17, 5, 3);
    let mut random = Random(11);
    for rows in [1, 2, 15, 16, 17, 40] {
        let values = random.values(rows * heads * part);
        // Each slot once, all over the pages.
        let slots: Vec<u32> = (0..rows).map(|row| (row * 7 % (pages * PAGE_POSITIONS)) as u32).collect();
        let mut expected = vec![9.0f32; pages * heads * PAGE_POSITIONS * width];
        for (at, value) in values.iter().enumerate() {
            let (row, head, place) = (at / (heads * part), at / part % heads, at % part);
            let (page, offset) = (slots[row] as usize / PAGE_POSITIONS, slots[row] as usize % PAGE_POSITIONS);
            expected[((page * heads + head) * PAGE_POSITIONS + offset) * width + column + place] = *value;
        }
        for stream in all_streams() {
            let from = put(&stream, &values);
            let slots = put(&stream, &slots);
            let write = KvWrite { from: View::heads(&from, rows, heads, part), slots: &slots, width, column };
            let mut cache = KvBuffer::F32(put(&stream, &vec![9.0f32; expected.len()]));
            kv_write(&stream, &write, &mut cache);
            let KvBuffer::F32(stored) = &cache else { panic!("another form") };
            same(&format!("{rows} rows of KV"), &get(&stream, stored), &expected);
            let mut cache = KvBuffer::F16(put(&stream, &vec![half::f16::from_f32(9.0); expected.len()]));
            kv_write(&stream, &write, &mut cache);
            let KvBuffer::F16(stored) = &cache else { panic!("another form") };
            let rounded: Vec<half::f16> = expected.iter().map(|value| half::f16::from_f32(*value)).collect();
            assert_eq!(get(&stream, stored), rounded, "{rows} rows of KV in f16");
        }
    }
}

/// A page lies where it was copied, bit for bit, and all others are as they were.
#[test]
fn pages_of_kv_are_copied_whole() {
    let (pages, page) = (5, 2 * PAGE_POSITIONS * 3);
    let values = Random(12).values(pages * page);
    let mut expected = values.clone();
    expected.copy_within(3 * page..4 * page, page);
    expected.copy_within(page..2 * page, 4 * page);
    for stream in all_streams() {
        let copies = [PageCopy { from: 3, to: 1 }, PageCopy { from: 1, to: 4 }];
        let mut cache = KvBuffer::F32(put(&stream, &values));
        copies.iter().for_each(|copy| kv_copy(&stream, *copy, pages, &mut cache));
        let KvBuffer::F32(stored) = &cache else { panic!("another form") };
        same("pages of KV", &get(&stream, stored), &expected);
        let narrow = |values: &[f32]| values.iter().map(|v| half::f16::from_f32(*v)).collect::<Vec<_>>();
        let mut cache = KvBuffer::F16(put(&stream, &narrow(&values)));
        copies.iter().for_each(|copy| kv_copy(&stream, *copy, pages, &mut cache));
        let KvBuffer::F16(stored) = &cache else { panic!("another form") };
        assert_eq!(get(&stream, stored), narrow(&expected));
    }
}

/// Products that underflow to -0 in lanes beyond a ragged end stay -0.
#[test]
fn a_ragged_end_leaves_the_other_lanes_alone() {
    for k in [17, 31, 33] {
        let (x, w) = (vec![1e-30; k], vec![-1e-30f32; k]);
        let expected = reference::dot(&x, &w);
        assert_eq!(expected.to_bits(), (-0.0f32).to_bits());
        for stream in streams() {
            let plain = MatrixData::Plain { kind: ElementType::F32, elements: Bytes::copied(&w) };
            let w = Matrix::new(plain, 1, k);
            let (x, mut out) = (put(&stream, &x), put(&stream, &[1.0]));
            ops::linear(&stream, View::rows(&x, 1, k), &w, None, ViewMut::rows(&mut out, 1, 1));
            same("a ragged dot", &get(&stream, &out), &[expected]);
        }
    }
}
