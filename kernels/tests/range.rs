//! Packed weights and rows from all over the range of f32 against the plain twins, bit for bit.

use gaterail_kernels::cuda::Form;
use gaterail_kernels::ops::{self, *};
use gaterail_kernels::{Bytes, Device, PANEL_ROWS, Packed, Scales, View, ViewMut, Weight, reference};

mod common;
use common::{Random, all_streams, formats, get, put, random_packed, same};

/// Scales of weights and magnitudes of activations from all over their range, which meet in a product of scales.
#[test]
fn products_at_the_ends_of_the_range_are_their_twins() {
    const EDGES: [f32; 10] =
        [0.0, -0.0, 1e-7, -6.1e-5, 65504.0, f32::INFINITY, f32::NAN, 1e-41, -1.2e-38, 3e38];
    let streams = all_streams();
    for (index, format) in formats().into_iter().enumerate() {
        let random = &mut Random(index as u64);
        let (rows, n, cols) = (1 + index % 9, 70, 3 * format.group + 5);
        let finite = random_packed(random, format, n, cols);
        let mut bytes = finite.panel_run(0..finite.panels()).to_vec();
        for record in bytes.chunks_exact_mut(format.record()) {
            for r in (0..PANEL_ROWS).filter(|r| r % 3 > 0) {
                let edge = EDGES[random.below(EDGES.len())];
                match format.scales {
                    Scales::F16 => {
                        record[2 * r..][..2].copy_from_slice(&half::f16::from_f32(edge).to_le_bytes())
                    }
                    Scales::F32 => record[4 * r..][..4].copy_from_slice(&edge.to_le_bytes()),
                }
                if format.offsets && r % 3 == 2 {
                    let at = format.offsets_at() + 4 * r;
                    record[at..at + 4].copy_from_slice(&EDGES[random.below(EDGES.len())].to_le_bytes());
                }
            }
        }
        let w = Packed::new(format, Bytes::copied(&bytes), n, cols);
        let mut x = random.values(rows * cols);
        for group in x.chunks_mut(format.group) {
            let power =
                2f32.powi([-120, -101, -100, -99, -60, -20, 0, 20, 60, 100, 126, 127][random.below(12)]);
            group.iter_mut().for_each(|x| *x *= power);
            // The last magnitudes before, at and behind the step to the next exponent.
            let ends = [1.984375, 1.992, 1.9921875, 1.9922, f32::NAN, f32::INFINITY];
            group[0] = power * ends[random.below(6).min(random.below(6))];
        }
        let expected: Vec<f32> =
            x.chunks_exact(cols).flat_map(|x| reference::packed_linear_row(x, &w, None)).collect();
        let weight = Weight::from(w);
        for stream in &streams {
            if Form::of(format).is_err() && matches!(stream.device(), Device::Cuda(_)) {
                continue;
            }
            let weight = weight.on(stream.device()).expect("memory");
            let x = put(stream, &x);
            let mut quantized = QuantRows::new(stream.device(), rows, cols).expect("memory");
            let mut out = put(stream, &vec![0.0; rows * n]);
            let projection = Projection { w: &weight, bias: None, out: ViewMut::rows(&mut out, rows, n) };
            ops::project(stream, View::rows(&x, rows, cols), &mut quantized, &mut [projection]);
            same(&format!("{format:?}"), &get(stream, &out), &expected);
        }
    }
}
