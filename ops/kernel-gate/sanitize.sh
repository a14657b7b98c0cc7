#!/usr/bin/env bash
# The CUDA kernels in the shim under AddressSanitizer and UndefinedBehaviorSanitizer: every read and write of device
# memory is one of the heap there, with red zones around it.
set -euo pipefail
cd "$(dirname "$0")/../.."

host=$(rustc -vV | sed -n 's/^host: //p')
runtime() { c++ -print-file-name="lib$1.so"; }
# Rust links without the compiler's own libraries, so the runtimes are named; they must be loaded first. With a target
# given, neither is asked of build scripts. What the test harness keeps is no leak.
export GATERAIL_SHIM_SANITIZE=address,undefined CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/sanitize
export RUSTFLAGS="-C link-arg=-lasan -C link-arg=-lubsan -L $(dirname "$(runtime asan)")"
runner=CARGO_TARGET_$(echo "$host" | tr 'a-z-' 'A-Z_')_RUNNER
export "$runner=env LD_PRELOAD=$(runtime asan):$(runtime ubsan)"
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
cargo test --release -p gaterail-shim --target "$host" --test kernels -- "$@"
