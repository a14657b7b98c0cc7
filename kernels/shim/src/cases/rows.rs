//! Row-wise operations: activation, sums, copies, gathering, embedding.

use std::sync::Arc;

use gaterail_kernels::cuda::CudaDevice;
use gaterail_kernels::ops::{
    self, Activation, AttentionArgs, KvBuffer, KvView, KvWrite, Mask, PAGE_POSITIONS,
};
use gaterail_kernels::{
    Bytes, Device, ElementType, Matrix, MatrixData, Stream, View, ViewMut, Weight, reference, sigmoid,
};

use super::{Random, fetch, put, same};

/// A row's result of its row of `to`, its row of `from`, and its scale.
type Twin = dyn Fn(f32, f32, f32) -> f32;

/// All of them: `cases` random shapes, with gaps between rows that must stay.
pub fn rows_cases(device: &Device, cases: usize) {
    let mut random = Random(12);
    let stream = Stream::new(device);
    for case in 0..cases {
        for operation in 0..7 {
            row_wise(&mut random, &stream, operation, &format!("{device}, case {case}"));
        }
        gather(&mut random, &stream, &format!("{device}, case {case}, gather_rows"));
        embed(&mut random, &stream, case, &format!("{device}, case {case}, embed"));
    }
}

fn row_wise(random: &mut Random, stream: &Stream, operation: usize, what: &str) {
    let (rows, heads) = (1 + random.below(5), 1 + random.below(3));
    let (width, gap) = (1 + random.below(600), random.below(4));
    let stride = width + gap;
    let many = |random: &mut Random| -> Vec<f32> {
        random.values(rows * heads * stride).into_iter().map(|value| value * 30.0).collect()
    };
    let (to, from, scales) = (many(random), many(random), random.values(rows));
    let (limit, clamped) = (3.0, Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 });
    let (mut to_here, from_here) = (put(stream, &to), put(stream, &from));
    let scales_here = put(stream, &scales);
    let x = ViewMut::heads(&mut to_here, rows, heads, stride).columns(0, width);
    let y = View::heads(&from_here, rows, heads, stride).columns(0, width);
    let (name, twin): (&str, Box<Twin>) = match operation {
        0 => {
            ops::activation(stream, Activation::SwiGlu, x, y);
            ("activation", Box::new(|to, from, _| reference::activate(Activation::SwiGlu, to, from)))
        }
        1 => {
            ops::activation(stream, clamped, x, y);
            ("clamped activation", Box::new(move |to, from, _| reference::activate(clamped, to, from)))
        }
        2 => {
            ops::add(stream, x, y);
            ("add", Box::new(|to, from, _| to + from))
        }
        3 => {
            ops::add_gated(stream, x, y, &scales_here);
            ("add_gated", Box::new(|to, from, scale| to + sigmoid(scale) * from))
        }
        4 => {
            ops::copy_rows(stream, y, x);
            ("copy_rows", Box::new(|_, from, _| from))
        }
        5 => {
            ops::clamp(stream, limit, x);
            ("clamp", Box::new(move |to, _, _| to.clamp(-limit, limit)))
        }
        _ => {
            ops::scale_rows(stream, &scales_here, x);
            ("scale_rows", Box::new(|to, _, scale| to * scale))
        }
    };
    let expected: Vec<f32> = (0..to.len())
        .map(|i| match i % stride < width {
            true => twin(to[i], from[i], scales[i / (heads * stride)]),
            false => to[i],
        })
        .collect();
    same(&format!("{what}, {name}: {rows} x {heads} x {width}"), &fetch(stream, &to_here), &expected);
}

fn gather(random: &mut Random, stream: &Stream, what: &str) {
    let (rows, taken, width) = (1 + random.below(9), 1 + random.below(9), 1 + random.below(600));
    let x = random.values(rows * width);
    let indices: Vec<u32> = (0..taken).map(|_| random.below(rows) as u32).collect();
    let (x_here, indices_here) = (put(stream, &x), put(stream, &indices));
    let mut out = put(stream, &vec![0.0; taken * width]);
    let to = ViewMut::rows(&mut out, taken, width);
    ops::gather_rows(stream, View::rows(&x_here, rows, width), &indices_here, to);
    let expected: Vec<f32> =
        indices.iter().flat_map(|&row| x[row as usize * width..][..width].to_vec()).collect();
    same(what, &fetch(stream, &out), &expected);
}

fn embed(random: &mut Random, stream: &Stream, case: usize, what: &str) {
    let (vocabulary, taken, width) = (1 + random.below(50), 1 + random.below(9), 1 + random.below(600));
    let values = random.values(vocabulary * width);
    let halves: Vec<u16> = values.iter().map(|&value| half::bf16::from_f32(value).to_bits()).collect();
    let (kind, elements) = match case % 2 {
        0 => (ElementType::F32, Bytes::copied(&values)),
        _ => (ElementType::Bf16, Bytes::copied(&halves)),
    };
    let table = Matrix::new(MatrixData::Plain { kind, elements }, vocabulary, width);
    let ids: Vec<u32> = (0..taken).map(|_| random.below(vocabulary) as u32).collect();
    let mut expected = vec![0.0; taken * width];
    for (out, &id) in expected.chunks_exact_mut(width).zip(&ids) {
        table.dequantize_row(id as usize, out);
    }
    let table = Weight::from(table).on(stream.device()).expect("memory");
    let mut out = put(stream, &vec![0.0; taken * width]);
    ops::embed(stream, &put(stream, &ids), &table, ViewMut::rows(&mut out, taken, width));
    same(what, &fetch(stream, &out), &expected);
}

/// Rows, ids, pages and sequences that are not there give NaN and no fault, and a slot that is not there is not written.
/// A GPU's only: what the host may read, it checks.
pub fn what_is_not_there(device: &Arc<CudaDevice>) {
    let stream = Stream::new(&Device::Cuda(device.clone()));
    let (x, indices) = (put(&stream, &[1.0f32; 12]), put(&stream, &[1u32, 3, u32::MAX]));
    let mut out = put(&stream, &[0.0f32; 12]);
    ops::gather_rows(&stream, View::rows(&x, 3, 4), &indices, ViewMut::rows(&mut out, 3, 4));
    assert_nan_from(4, &fetch(&stream, &out));
    let table = Weight::from(Matrix::from_f32(&[1.0; 12], 3, 4)).on(stream.device()).expect("memory");
    ops::embed(&stream, &indices, &table, ViewMut::rows(&mut out, 3, 4));
    assert_nan_from(4, &fetch(&stream, &out));

    let mut cache = KvBuffer::F32(put(&stream, &[1.0f32; 2 * PAGE_POSITIONS * 4]));
    let slots = put(&stream, &[2 * PAGE_POSITIONS as u32, u32::MAX, 0]);
    let from = View::heads(&out, 3, 1, 4);
    let mut unwritten = KvBuffer::F32(put(&stream, &[1.0f32; 2 * PAGE_POSITIONS * 4]));
    ops::kv_write(&stream, &KvWrite { from, slots: &slots, width: 4, column: 0 }, &mut unwritten);
    let KvBuffer::F32(unwritten) = &unwritten else { panic!("another form") };
    assert!(fetch(&stream, unwritten)[4..].iter().all(|&value| value == 1.0), "only slot 0 is there");
    let from = View::heads(&x, 3, 1, 4);
    ops::kv_write(&stream, &KvWrite { from, slots: &slots, width: 4, column: 0 }, &mut cache);
    let attended = |tables: [u32; 2], sequence: u32, position: u32| {
        let args = AttentionArgs {
            q: View::heads(&x, 1, 1, 4),
            kv: KvView { keys: &cache, values: None, kv_heads: 1, key_width: 4, value_width: 4 },
            tables: &put(&stream, &tables),
            table_stride: 2,
            sequences: &put(&stream, &[sequence]),
            positions: &put(&stream, &[position]),
            mask: Mask::Full,
            sinks: None,
            scale: 1.0,
        };
        let mut out = put(&stream, &[0.0f32; 4]);
        ops::attention(&stream, &args, ViewMut::heads(&mut out, 1, 1, 4));
        fetch(&stream, &out)
    };
    assert_eq!(attended([1, 0], 0, 127), [1.0; 4]);
    for (tables, sequence, position) in
        [([1, 2], 0, 127), ([u32::MAX, 0], 0, 0), ([1, 0], 1, 0), ([1, 0], 0, 128), ([1, 0], 0, u32::MAX)]
    {
        assert_nan_from(0, &attended(tables, sequence, position));
    }
}

#[track_caller]
fn assert_nan_from(start: usize, values: &[f32]) {
    assert!(values[..start].iter().all(|&value| value == 1.0), "{values:?}");
    assert!(values[start..].iter().all(|value| value.is_nan()), "{values:?}");
}
