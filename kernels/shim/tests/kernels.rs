//! Every CUDA kernel in the shim against the plain reference, bit for bit, on random shapes and in random orders.

use gaterail_kernels::cuda::Path;
use gaterail_kernels::{CpuOptions, Device};
use gaterail_shim::{Shim, cases::*};

/// Of the order of threads; 0 is eager.
const SEEDS: [u64; 3] = [0, 1, 2];

#[test]
fn quantize_equals_the_reference() {
    SEEDS.map(Shim::device).iter().for_each(|device| quantize_cases(device, 40));
}

#[test]
fn rms_norm_and_rope_equal_the_reference() {
    SEEDS.map(Shim::device).iter().for_each(|device| norm_and_rope_cases(device, 24));
}

#[test]
fn packed_linear_equals_the_reference() {
    SEEDS.into_iter().for_each(|seed| linear_cases(&Shim::device(seed), 30 + seed, 66));
}

/// The CPU, and the shim under every order of threads: the same calls of `ops`.
fn devices() -> Vec<Device> {
    let options = CpuOptions { threads: 2, grain: 64, ..CpuOptions::default() };
    let cpu = Device::cpu(options).expect("threads");
    SEEDS.into_iter().map(|seed| Device::Cuda(Shim::device(seed))).chain([cpu]).collect()
}

#[test]
fn plain_linear_equals_the_reference() {
    devices().iter().for_each(|device| plain_linear_cases(device, 24));
}

#[test]
fn rows_equal_the_reference() {
    devices().iter().for_each(|device| rows_cases(device, 12));
}

#[test]
fn what_is_not_there_is_not_read() {
    SEEDS.map(Shim::device).iter().for_each(what_is_not_there);
}

#[test]
fn select_equals_the_reference() {
    devices().iter().for_each(|device| select_cases(device, 200));
}

#[test]
fn partial_sums_equal_the_reference() {
    devices().iter().for_each(|device| sums_cases(device, 16));
}

/// Other shards for every order of threads.
fn experts(cases: usize, most_rows: usize, paths: &[Path]) {
    for seed in SEEDS {
        experts_cases(&Shim::device(seed), ExpertCases { seed: 40 + seed, cases, most_rows, paths });
    }
}

#[test]
fn experts_of_few_rows_equal_the_reference() {
    experts(34, 20, &[Path::Auto, Path::Dot, Path::Eight, Path::ThirtyTwo]);
}

#[test]
fn experts_of_one_row_equal_the_reference() {
    experts(40, 1, &[Path::Auto]);
}

#[test]
fn experts_of_more_rows_equal_the_reference() {
    experts(11, 90, &[Path::Tiles]);
}

#[test]
fn experts_of_thousands_of_rows_equal_the_reference() {
    experts_of_many_rows(&Shim::device(3), 2100);
}

#[test]
fn rows_without_an_expert_here_keep_their_sums() {
    rows_without_an_expert(&Shim::device(4));
}

#[test]
fn a_form_that_has_no_kernel_is_a_clear_error() {
    form_without_kernel(&Shim::device(0));
}
