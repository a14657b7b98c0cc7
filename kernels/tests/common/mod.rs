//! Random values, devices of every kind, and the comparison bit for bit.
#![allow(dead_code)] // each test file uses some of it

use gaterail_kernels::{Buffer, CpuOptions, Device, Isa, Plain, Stream};

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
