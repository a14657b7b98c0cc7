#!/usr/bin/env bash
# Builds what `run.sh` needs on a machine with a GPU into one folder to carry there: pack.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?a folder to carry}
cargo build --release -p gaterail-shim --bin gaterail-gpu-check
mkdir -p "$folder"
cp "${CARGO_TARGET_DIR:-target}/release/gaterail-gpu-check" ops/gpu-check/run.sh ops/gpu-check/torch_products.py "$folder"
strip "$folder/gaterail-gpu-check"
ls -l "$folder"
