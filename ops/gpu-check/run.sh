#!/usr/bin/env bash
# Checks the CUDA kernels on a machine with a GPU: at most ten minutes, no network, no Rust. Carry the folder that
# `pack.sh` makes; run this in it.
#
#   run.sh OUT [gaterail-gpu-check's options]     (--shim proves this script where there is no GPU)
#
# Writes OUT/checks.txt, OUT/sanitizer-*.txt (where compute-sanitizer is), OUT/speed.txt and OUT/report.json, and
# OUT/torch.json (where python3 with torch is). Fails if a kernel differs from the reference, or has a fault.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?a folder for the results}
shift
mkdir -p "$out"
failed=0
binary=$here/gaterail-gpu-check
[ -x "$binary" ] || binary=${CARGO_TARGET_DIR:-$here/../../target}/release/gaterail-gpu-check
[ -x "$binary" ] || { echo "no gaterail-gpu-check beside this script: pack.sh builds it"; exit 2; }

# NVRTC: what is carried, the toolkit's, or that of torch's wheels.
for library in "$here"/lib "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda*/lib64 \
    $(python3 -c 'import nvidia.cuda_nvrtc as n; print(n.__path__[0] + "/lib")' 2>/dev/null); do
    if compgen -G "$library/libnvrtc.so*" >/dev/null; then
        export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        break
    fi
done
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$out/cache}

run() { # name, limit in seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || { echo "FAILED: $name ($code)"; failed=1; }
}

run checks 120 "$binary" --only checks --json "$out/checks.json" "$@"
run speed 180 "$binary" --only speed --json "$out/report.json" "$@"
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ] && [[ " $* " != *" --shim "* ]]; then
    for tool in memcheck racecheck synccheck; do
        run "sanitizer-$tool" 70 "$sanitizer" --tool "$tool" --error-exitcode 1 "$binary" --only checks --few "$@"
    done
else
    echo "== no compute-sanitizer here: memory and races were not checked"
fi
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    run torch 60 python3 "$here/torch_products.py" "$out/torch.json"
else
    echo "== no python3 with torch and a GPU: nothing to compare with"
fi
exit $failed
