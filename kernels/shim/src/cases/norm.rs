//! `rms_norm` and `rope`.

use std::sync::Arc;

use gaterail_kernels::cuda::CudaDevice;
use gaterail_kernels::ops::{self, RopeStyle};
use gaterail_kernels::{Buffer, Device, Stream, View, ViewMut, reference};

use super::{Random, same};

/// `rms_norm` and `rope`, through the public types: buffers, views, streams and events of a GPU are those of the CPU.
pub fn norm_and_rope_cases(device: &Arc<CudaDevice>, cases: usize) {
    let mut random = Random(2);
    let device = Device::Cuda(device.clone());
    {
        let (stream, other) = (Stream::new(&device), Stream::new(&device));
        let put = |values: &[f32]| {
            let mut buffer = Buffer::zeros(&device, values.len()).expect("memory");
            stream.upload(values, &mut buffer).expect("a copy");
            buffer
        };
        let get = |buffer: &Buffer<f32>| {
            let mut values = vec![0.0; buffer.len()];
            other.wait(&stream.record());
            other.download(buffer, 0, &mut values).expect("no fault");
            stream.synchronize().expect("no fault");
            values
        };
        for case in 0..cases {
            let (rows, heads, gap) = (1 + random.below(4), 1 + random.below(3), random.below(5));
            let width = 2 * (1 + random.below(300));
            let mut x = random.values(rows * heads * (width + gap));
            let weight = random.values(width);
            let what = format!("{device}, case {case}: {rows} x {heads} x {width}");
            let (mut x_device, weight_device) = (put(&x), put(&weight));
            let mut out = Buffer::zeros(&device, rows * heads * width).expect("memory");
            let used = case % 3 != 0;
            ops::rms_norm(
                &stream,
                View::heads(&x_device, rows, heads, width + gap).columns(0, width),
                used.then_some(&weight_device),
                1e-6,
                ViewMut::heads(&mut out, rows, heads, width),
            );
            let expected: Vec<f32> = x
                .chunks_exact(width + gap)
                .flat_map(|row| reference::rms_norm_row(&row[..width], used.then_some(&weight[..]), 1e-6))
                .collect();
            same(&what, &get(&out), &expected);

            let (cos, sin) = (random.values(rows * width / 2), random.values(rows * width / 2));
            let style = [RopeStyle::Halves, RopeStyle::Pairs][case % 2];
            let (cos_device, sin_device) = (put(&cos), put(&sin));
            let view = ViewMut::heads(&mut x_device, rows, heads, width + gap).columns(0, width);
            ops::rope(&stream, style, &cos_device, &sin_device, view);
            for (i, head) in x.chunks_exact_mut(width + gap).enumerate() {
                let angles = i / heads * width / 2..(i / heads + 1) * width / 2;
                reference::rope_head(&mut head[..width], style, &cos[angles.clone()], &sin[angles]);
            }
            same(&what, &get(&x_device), &x);
        }
    }
}
