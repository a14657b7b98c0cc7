#!/usr/bin/env bash
# Compiles every CUDA kernel with NVIDIA's compiler, for every architecture, where there is no GPU: gate.py says what
# fails. Then the program's own way of compiling, with the same library.
#
# The library comes from PyPI into target/kernel-gate and stays there. Without network it is skipped, in capitals; with
# --required it fails instead. Needs python3 with venv (apt installs python3-venv where it is missing).
set -euo pipefail
cd "$(dirname "$0")/../.."

package=nvidia-cuda-nvrtc-cu12==12.9.86
folder=${CARGO_TARGET_DIR:-target}/kernel-gate
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

skip() {
    echo "SKIPPED: $1; NO KERNEL WAS COMPILED"
    if [ "$required" = yes ]; then exit 1; else exit 0; fi
}
required=no
if [ "${1-}" = --required ]; then required=yes; fi

library=$folder/$package
if [ ! -d "$library" ]; then
    if ! python3 -m venv "$folder/venv" >/dev/null 2>&1; then
        apt-get update -qq && apt-get install -y -qq python3 python3-venv || skip "python3 with venv could not be installed"
        python3 -m venv --clear "$folder/venv"
    fi
    rm -rf "$folder/wheels"
    "$folder/venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$folder/wheels" "$package" \
        || skip "$package could not be fetched"
    python3 -m zipfile -e "$folder"/wheels/*.whl "$library.part"
    mv "$library.part" "$library"
fi

python3 ops/kernel-gate/gate.py "$library" kernels/cuda

libraries=$(dirname "$(find "$library" -name 'libnvrtc.so*' | head -n 1)")
LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    cargo test --release -q -p gaterail-kernels --lib -- --ignored nvrtc
