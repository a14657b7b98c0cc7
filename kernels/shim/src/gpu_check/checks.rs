//! The checks: every kernel against the reference.

use std::sync::Arc;

use gaterail_kernels::Device;
use gaterail_kernels::cuda::{CudaDevice, Path};
use gaterail_shim::cases;

/// Names, in the order in which they run: what others build on comes first.
pub const NAMES: [&str; 13] = [
    "quantize",
    "rms_norm, rope",
    "row-wise operations",
    "linear",
    "select",
    "packed_linear",
    "experts, one row",
    "experts, few rows",
    "experts, many rows",
    "experts, thousands of rows",
    "experts elsewhere",
    "partial sums",
    "attention",
];

/// Runs one; a difference panics.
pub fn run(name: &str, device: &Arc<CudaDevice>, few_cases: bool) {
    let times = |few: usize, many: usize| if few_cases { few } else { many };
    let any = &Device::Cuda(device.clone());
    let experts = |seed, cases, most_rows, paths: &[Path]| {
        cases::experts_cases(device, cases::ExpertCases { seed, cases, most_rows, paths });
    };
    let few_rows: &[Path] = &[Path::Auto, Path::Dot, Path::Eight, Path::ThirtyTwo];
    match name {
        "quantize" => cases::quantize_cases(device, times(4, 200)),
        "rms_norm, rope" => cases::norm_and_rope_cases(device, times(4, 200)),
        "row-wise operations" => {
            cases::rows_cases(any, times(2, 40));
            cases::what_is_not_there(device);
        }
        "linear" => cases::plain_linear_cases(any, times(6, 100)),
        "select" => cases::select_cases(any, times(20, 1000)),
        "packed_linear" => cases::linear_cases(device, 100, times(11, 440)),
        "experts, one row" => experts(102, times(40, 300), 1, &[Path::Auto]),
        "experts, few rows" => experts(101, times(8, 300), 20, few_rows),
        "experts, many rows" => experts(103, times(11, 60), 90, &[Path::Tiles]),
        "experts, thousands of rows" => cases::experts_of_many_rows(device, times(300, 3000)),
        "experts elsewhere" => cases::rows_without_an_expert(device),
        "partial sums" => cases::sums_cases(any, times(3, 60)),
        "attention" => cases::attention_cases(any, times(4, 60)),
        other => panic!("no check is called {other}"),
    }
}
