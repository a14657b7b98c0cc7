#!/usr/bin/env bash
# The CUDA kernels in the shim under AddressSanitizer and UndefinedBehaviorSanitizer: every read and write of device
# memory is one of the heap there, with red zones around it. A part of the tests, some minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

sanitizers=address,undefined
target=${CARGO_TARGET_DIR:-target}/sanitize
# Rust's linker is told of the runtimes. What its test harness keeps is no leak.
export GATERAIL_SHIM_SANITIZE=$sanitizers CARGO_TARGET_DIR=$target
export RUSTFLAGS="-C link-arg=-fsanitize=$sanitizers"
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
cargo test --release -p gaterail-shim -- "${@:-equal}"
