//! Random values, devices of every kind, and the comparison bit for bit.
#![allow(dead_code)] // each test file uses some of it

use gaterail_kernels::ops::{self, ExpertsArgs, ExpertsScratch, PartialSums, partial_sums};
use gaterail_kernels::{
    Buffer, Bytes, Codes, CpuOptions, Device, Isa, PANEL_ROWS, Packed, PackedFormat, Plain, Scales, Stream,
    ViewMut,
};
use gaterail_shim::Shim;

/// SplitMix64; a failure prints the seed with the case.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Between -1 and 1, with many exponents.
    pub fn value(&mut self) -> f32 {
        let magnitude = 2f32.powi(-(self.below(12) as i32));
        ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * magnitude
    }
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// Those of `streams`, and of a GPU: the shim's, with threads in order and in some other one.
pub fn all_streams() -> Vec<Stream> {
    let shims = [0, 1].map(|seed| Stream::new(&Device::Cuda(Shim::device(seed))));
    streams().into_iter().chain(shims).collect()
}

/// One device per available instruction set, with one thread and with three.
pub fn streams() -> Vec<Stream> {
    let isas = [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| {
        [1, 3].map(|threads| {
            let options = CpuOptions { threads, pin: false, isa, grain: 64 };
            Stream::new(&Device::cpu(options).expect("threads"))
        })
    })
    .collect()
}

pub fn put<T: Plain>(stream: &Stream, values: &[T]) -> Buffer<T> {
    let mut buffer = Buffer::zeros(stream.device(), values.len()).expect("memory");
    stream.upload(values, &mut buffer).expect("a copy");
    buffer
}

pub fn get<T: Plain>(stream: &Stream, buffer: &Buffer<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    stream.download(buffer, 0, &mut values).expect("a copy");
    values
}

#[track_caller]
pub fn same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let equal = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(equal, "{what}: element {i} is {got:e}, the reference has {expected:e}");
    }
}

/// `[rows, top_k]` experts, distinct within a row.
pub fn routing(random: &mut Random, rows: usize, experts: usize, top_k: usize) -> Vec<u32> {
    let row = |_| {
        let first = random.below(experts);
        (0..top_k).map(move |k| ((first + k) % experts) as u32)
    };
    (0..rows).flat_map(row).collect()
}

/// A row's sums as they leave fixed point.
pub fn finished(sums: &[i64], fraction_bits: u32, poisoned: bool) -> Vec<f32> {
    let value = |&sum: &i64| (sum as f64 / 2f64.powi(fraction_bits as i32)) as f32;
    sums.iter().map(|sum| if poisoned { f32::NAN } else { value(sum) }).collect()
}

/// What the experts of a batch give, as f32.
pub fn experts_out(stream: &Stream, args: &ExpertsArgs<'_>) -> Vec<f32> {
    let (rows, width) = (args.x.rows(), args.x.width());
    let mut sums = PartialSums::new(stream.device(), rows, width).expect("memory");
    let mut scratch = ExpertsScratch::new(stream.device()).expect("memory");
    ops::experts(stream, args, &mut scratch, &mut sums).expect("memory");
    let mut out = put(stream, &vec![0.0; rows * width]);
    partial_sums::finish(stream, &sums, args.fraction_bits, ViewMut::rows(&mut out, rows, width));
    get(stream, &out)
}

/// Codes, scales and offsets of every kind, in groups of every size.
pub fn formats() -> Vec<PackedFormat> {
    // The integers of IQ4_NL, wider than any table that saturates 16 bits by accident would allow.
    let wide =
        Codes::Int4 { table: [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113] };
    let zero_table = Codes::Int4 { table: [-128, 0, 127, 3, -3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12] };
    let mut formats = Vec::new();
    for codes in [Codes::INT4, Codes::MXFP4, wide, zero_table, Codes::Int8] {
        for group in [32, 64, 128] {
            for scales in [Scales::F16, Scales::F32] {
                formats.extend([false, true].map(|offsets| PackedFormat { codes, scales, offsets, group }));
            }
        }
    }
    formats
}

/// Any bytes with finite scales and offsets are a packed matrix.
pub fn random_packed(random: &mut Random, format: PackedFormat, rows: usize, cols: usize) -> Packed {
    let mut bytes = vec![0u8; format.bytes(rows, cols)];
    for record in bytes.chunks_exact_mut(format.record()) {
        for r in 0..PANEL_ROWS {
            let scale = random.value() * 0.01;
            match format.scales {
                Scales::F16 => {
                    record[2 * r..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes())
                }
                Scales::F32 => record[4 * r..][..4].copy_from_slice(&scale.to_le_bytes()),
            }
            if format.offsets {
                let at = format.offsets_at() + 4 * r;
                record[at..at + 4].copy_from_slice(&(random.value() * 0.02).to_le_bytes());
            }
        }
        record[format.codes_at()..].iter_mut().for_each(|byte| *byte = random.next() as u8);
    }
    Packed::new(format, Bytes::copied(&bytes), rows, cols)
}
