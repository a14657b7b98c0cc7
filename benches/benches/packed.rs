//! Products of packed weights, kernel by kernel, as shares of what this machine can do, measured in the same run with
//! the same threads, in turns: bytes of weights against the read bandwidth where few rows meet them, operations against
//! the int8 peak where many do.
//!
//! `cargo bench -p gaterail-benches --bench packed -- [avx512|avx2|portable] [rounds]`

use std::time::{Duration, Instant};

use gaterail_benches::{Spread, random_bytes};
use gaterail_kernels::ops::{self, Projection, QuantRows};
use gaterail_kernels::{
    Buffer, Codes, CpuOptions, Device, Isa, Packed, PackedFormat, Scales, Stream, View, ViewMut, Weight,
    measure,
};

/// Rows of activations.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];
/// Columns of the weights: OLMoE's hidden size.
const COLS: usize = 2048;
/// Rows of a matrix of weights.
const OUT: usize = 4096;
/// Matrices that are taken in turns where memory is what counts: far more bytes than the caches hold.
const MATRICES: usize = 24;

fn main() {
    // `cargo bench` passes `--bench` as well.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let isa = match args.first().map(String::as_str) {
        Some("avx512") => Isa::Avx512,
        Some("avx2") => Isa::Avx2,
        Some("portable") => Isa::Portable,
        _ => Isa::detect(),
    };
    let rounds = args.iter().find_map(|text| text.parse().ok()).unwrap_or(5);
    let device = Device::cpu(CpuOptions { pin: true, isa, ..CpuOptions::default() }).expect("threads");
    println!("{device}, {rounds} rounds, medians (smallest to largest)");
    let plain = PackedFormat { group: 32, ..PackedFormat::INT4 };
    let formats = [
        ("int4, groups of 32 (Q4_0)", plain),
        ("int4, groups of 64", PackedFormat { group: 64, ..plain }),
        ("int4, groups of 128", PackedFormat { group: 128, ..plain }),
        ("int4, groups of 128, offsets", PackedFormat { group: 128, offsets: true, ..plain }),
        ("MXFP4", PackedFormat { codes: Codes::MXFP4, scales: Scales::F32, ..plain }),
        ("int8, groups of 32 (Q8_0)", PackedFormat { group: 32, ..PackedFormat::INT8 }),
    ];
    for (name, format) in formats {
        println!("\n{name}");
        for rows in ROWS {
            line(&device, format, rows, rounds);
        }
    }
}

/// One line of the table.
fn line(device: &Device, format: PackedFormat, rows: usize, rounds: usize) {
    let matrices = if rows <= 16 { MATRICES } else { 1 };
    let stream = Stream::new(device);
    let size = format.bytes(OUT, COLS);
    let bytes = random_bytes(size * matrices);
    let packed = |i: usize| Packed::new(format, bytes.slice(i * size..(i + 1) * size), OUT, COLS);
    let weights: Vec<Weight> = (0..matrices).map(|i| packed(i).into()).collect();
    let mut x = Buffer::zeros(device, rows * COLS).expect("memory");
    let values: Vec<f32> = (0..rows * COLS).map(|i| ((i * 37) % 201) as f32 / 100.0 - 1.0).collect();
    stream.upload(&values, &mut x).expect("a copy");
    let mut quantized = QuantRows::new(device, rows, COLS).expect("memory");
    let mut y = Buffer::zeros(device, rows * OUT).expect("memory");
    let (mut bandwidths, mut peaks) = (Vec::new(), Vec::new());
    let seconds = Spread::of(rounds, || {
        bandwidths.push(measure::read_bandwidth(device, 256 << 20, Duration::ZERO).expect("memory"));
        peaks.push(measure::int8_peak(device, Duration::ZERO));
        let repeats = (4_000_000_000 / (rows * matrices * OUT * COLS)).max(1);
        let started = Instant::now();
        for w in std::iter::repeat_n(&weights, repeats).flatten() {
            let out = ViewMut::rows(&mut y, rows, OUT);
            let x = View::rows(&x, rows, COLS);
            ops::project(&stream, x, &mut quantized, &mut [Projection { w, bias: None, out }]);
        }
        started.elapsed().as_secs_f64() / (repeats * matrices) as f64
    });
    let (bandwidth, peak) = (median(&mut bandwidths), median(&mut peaks));
    let bytes = size as f64 / seconds.median;
    let operations = (2 * rows * OUT * COLS) as f64 / seconds.median;
    println!(
        "{rows:5} rows  {:7.1} GB/s ({:.1} to {:.1}) = {:3.0} % of {:.1}   {:6.3} TOPS = {:3.0} % of {:.3}",
        bytes / 1e9,
        size as f64 / seconds.largest / 1e9,
        size as f64 / seconds.smallest / 1e9,
        bytes / bandwidth * 100.0,
        bandwidth / 1e9,
        operations / 1e12,
        operations / peak * 100.0,
        peak / 1e12,
    );
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
