#!/usr/bin/env bash
# Builds what `run.sh` needs on a machine with a GPU into one folder to carry there: pack.sh FOLDER [ARCHITECTURE]
#
# Kernels are compiled here for the architecture (sm_90 by default: H100, H200) where NVRTC is at hand, as
# `ops/kernel-gate/run.sh` fetches it; another GPU, or none at hand here, needs NVRTC there. At most 64 MiB.
set -euo pipefail
folder=$(mkdir -p "${1:?a folder to carry}" && cd "$1" && pwd)
architecture=${2:-sm_90}
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cargo build --release -p gaterail-shim --bin gaterail-gpu-check
# Removed first: a folder that was carried before may hold read-only copies.
for file in "$target/release/gaterail-gpu-check" ops/gpu-check/run.sh ops/gpu-check/torch_products.py; do
    cp --remove-destination "$file" "$folder"
done
strip "$folder/gaterail-gpu-check"

library=$(find "$target/kernel-gate" -name 'libnvrtc.so*' 2>/dev/null | head -n 1 || true)
if [ -n "$library" ]; then
    rm -rf "$folder/cache"
    LD_LIBRARY_PATH=$(dirname "$library") XDG_CACHE_HOME=$folder/cache \
        "$folder/gaterail-gpu-check" --compile "$architecture"
else
    echo "NO KERNEL IS CARRIED: no libnvrtc in $target/kernel-gate (ops/kernel-gate/run.sh fetches it)"
fi
ls -l "$folder"
kib=$(du -sk "$folder" | cut -f 1)
echo "$kib KiB"
[ "$kib" -le 65536 ] || { echo "more than 64 MiB"; exit 1; }
