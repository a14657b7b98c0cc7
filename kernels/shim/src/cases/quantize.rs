//! `quantize`.

use std::sync::Arc;

use gaterail_kernels::cuda::{CudaDevice, CudaQueue, DeviceBuffer, QuantizedBuffer, Strided, quantize};
use gaterail_kernels::reference::quantize_row;

use super::{Random, activations, get, same};

/// `quantize`: `cases` random shapes.
pub fn quantize_cases(device: &Arc<CudaDevice>, cases: usize) {
    let mut random = Random(1);
    {
        let queue = CudaQueue::new(device).expect("a queue");
        for case in 0..cases {
            let (group, rows) = ([32, 64, 128][case % 3], random.below(5));
            let (width, gap) = (1 + random.below(700), random.below(9));
            let mut x = activations(&mut random, rows.max(1), width + gap);
            if case % 5 == 0 {
                // Halves, where rounding goes to even.
                x.iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = (i % 255) as f32 - 127.0 + 0.5 * (i % 2) as f32);
            }
            let x_device = DeviceBuffer::copied(device, &x).expect("memory");
            let out = QuantizedBuffer::new(device, rows, width, group).expect("memory");
            let view = Strided { row_stride: width + gap, ..Strided::rows(&x_device, rows, width) };
            quantize(&queue, view, out.rows(rows, width, group));
            queue.synchronize().expect("no fault");
            let (codes, scales, sums) =
                (get(&queue, &out.codes), get(&queue, &out.scales), get(&queue, &out.sums));
            let groups = width.div_ceil(group);
            for row in 0..rows {
                let what = format!("{device}, case {case}: {rows} x {width} by {group}, row {row}");
                let expected = quantize_row(&x[row * (width + gap)..][..width], group);
                let row_codes = &codes[row * groups * group..][..groups * group];
                assert_eq!(row_codes[..width], expected.codes, "{what}");
                assert!(row_codes[width..].iter().all(|&code| code == 0), "{what}");
                same(&what, &scales[row * groups..][..groups], &expected.scales);
                assert_eq!(sums[row * groups..][..groups], expected.sums, "{what}");
            }
        }
    }
}
