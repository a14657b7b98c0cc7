//! Random cases of every kernel against the plain reference, bit for bit, on any device: the shim in tests, a GPU in
//! `gaterail-gpu-check`. A difference panics with the case.
//!
//! Kernels with several ways of computing are called by their launchers, way by way; all others through `ops`, and those
//! cases run on the CPU too.

mod attention;
mod experts;
mod linear;
mod norm;
mod quantize;
mod rows;
mod select;
mod sums;

pub use attention::attention_cases;
pub use experts::{ExpertCases, experts_cases, experts_of_many_rows, rows_without_an_expert};
pub use linear::{form_without_kernel, linear_cases, plain_linear_cases};
pub use norm::norm_and_rope_cases;
pub use quantize::quantize_cases;
pub use rows::{rows_cases, what_is_not_there};
pub use select::select_cases;
pub use sums::sums_cases;

use gaterail_kernels::cuda::{CudaQueue, DeviceBuffer};
use gaterail_kernels::{Buffer, Bytes, Codes, Packed, PackedFormat, Plain, Scales, Stream};

/// SplitMix64; a failure prints the seed with the case.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
    /// Between -1 and 1, with many exponents.
    fn value(&mut self) -> f32 {
        let magnitude = 2f32.powi(-(self.below(12) as i32));
        ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * magnitude
    }
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// The formats of ARITHMETIC.md, 8.
fn formats() -> Vec<PackedFormat> {
    let form = |codes, scales, offsets, group| PackedFormat { codes, scales, offsets, group };
    vec![
        PackedFormat::INT4,
        PackedFormat::INT8,
        form(Codes::INT4, Scales::F16, false, 32), // Q4_0
        form(Codes::Int8, Scales::F16, false, 32), // Q8_0
        form(Codes::MXFP4, Scales::F32, false, 32),
        form(Codes::MXFP4, Scales::F16, false, 32),
        form(Codes::INT4, Scales::F16, true, 32), // GPTQ, AWQ
        form(Codes::INT4, Scales::F16, true, 64),
        form(Codes::INT4, Scales::F16, true, 128),
        form(Codes::INT4, Scales::F16, false, 128),
        // Tables with values all over i8.
        form(
            Codes::Int4 { table: [-127, -104, -83, -65, -49, -35, -22, -10, 0, 13, 25, 38, 53, 69, 89, 113] },
            Scales::F32,
            true,
            32,
        ),
    ]
}

/// Random codes and scales, in the layout of packed.rs.
fn packed(random: &mut Random, format: PackedFormat, rows: usize, cols: usize) -> Packed {
    let mut bytes: Vec<u8> = (0..format.bytes(rows, cols)).map(|_| random.next() as u8).collect();
    let strange = random.chance(60);
    for record in bytes.chunks_exact_mut(format.record()) {
        for i in 0..16 {
            let mut scale = random.value() / 32.0;
            if strange && random.chance(50) {
                scale = [0.0, 1e-7, 300.0, f32::INFINITY][random.below(4)];
            }
            match format.scales {
                Scales::F16 => {
                    record[2 * i..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                }
                Scales::F32 => record[4 * i..][..4].copy_from_slice(&scale.to_le_bytes()),
            }
            if format.offsets {
                record[format.offsets_at() + 4 * i..][..4].copy_from_slice(&random.value().to_le_bytes());
            }
        }
    }
    Packed::new(format, Bytes::copied(&bytes), rows, cols)
}

/// A row of activations: mostly plain, now and then with what quantising must take care of.
fn activations(random: &mut Random, rows: usize, width: usize) -> Vec<f32> {
    let mut x = random.values(rows * width);
    for row in x.chunks_exact_mut(width) {
        match random.below(24) {
            0 => row.fill(0.0),
            1 => row[random.below(width)] = f32::NAN,
            2 => row[random.below(width)] = f32::NEG_INFINITY,
            3 => row.iter_mut().for_each(|x| *x *= 2f32.powi(-104)),
            4 => row.iter_mut().for_each(|x| *x *= 2f32.powi(60)),
            _ => {}
        }
    }
    x
}

#[track_caller]
fn same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let equal = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(equal, "{what}: element {i} is {got:e}, the reference has {expected:e}");
    }
}

fn get<T: Plain>(queue: &CudaQueue, buffer: &DeviceBuffer<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    queue.download(buffer, 0, &mut values).expect("no fault");
    values
}

fn put<T: Plain>(stream: &Stream, values: &[T]) -> Buffer<T> {
    let mut buffer = Buffer::zeros(stream.device(), values.len()).expect("memory");
    stream.upload(values, &mut buffer).expect("a copy");
    buffer
}

fn fetch<T: Plain>(stream: &Stream, buffer: &Buffer<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    stream.download(buffer, 0, &mut values).expect("no fault");
    values
}
