#!/usr/bin/env bash
# Checks the CUDA kernels on a machine with a GPU: at most ten minutes, no network, no Rust. Carry the folder that
# `pack.sh` makes; run this in it.
#
#   run.sh OUT [gaterail-gpu-check's options]     (--shim proves this script where there is no GPU)
#
# Writes, each as soon as it is known: OUT/checks.txt, OUT/speed.txt, OUT/report.json and OUT/speed.json (whole after every
# line), OUT/torch.json (where python3 with torch is), OUT/sanitizer-*.txt (where compute-sanitizer is), OUT/machine.txt.
# A part that fails or hangs does not keep the next from running. Fails if a kernel differs from the reference, or has a
# fault. The kernels need NVRTC, or a folder `cache` that pack.sh has filled for this GPU's architecture.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?a folder for the results}
shift
mkdir -p "$out" && out=$(cd "$out" && pwd)
failed=0
binary=$here/gaterail-gpu-check
[ -x "$binary" ] || binary=${CARGO_TARGET_DIR:-$here/../../target}/release/gaterail-gpu-check
[ -x "$binary" ] || { echo "no gaterail-gpu-check beside this script: pack.sh builds it"; exit 2; }

# NVRTC: what is carried, the toolkit's, or that of torch's wheels.
for library in "$here"/lib "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda*/lib64 \
    $(python3 -c 'import nvidia.cuda_nvrtc as n; print(n.__path__[0] + "/lib")' 2>/dev/null); do
    if compgen -G "$library/libnvrtc.so*" >/dev/null; then
        export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        echo "== NVRTC of $library"
        break
    fi
done
# What was compiled before is used first; what is compiled now must be kept, for every check is a process of its own.
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$out/cache}
if [ -d "$here/cache" ]; then mkdir -p "$XDG_CACHE_HOME" && cp -R "$here/cache/." "$XDG_CACHE_HOME"; fi
{ date -u; nvidia-smi; nvidia-smi -q -d CLOCK,POWER; nproc; head -n 1 /proc/meminfo; } >"$out/machine.txt" 2>&1

run() { # name, limit in seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name ($SECONDS s)"
    timeout -k 5 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then echo "FAILED: $name still ran after $limit s"; failed=1
    elif [ "$code" != 0 ]; then echo "FAILED: $name ($code)"; failed=1; fi
}
# Seconds left, of `share` at most.
left() { local left=$((580 - SECONDS)); echo $((left < $1 ? (left > 1 ? left : 1) : $1)); }

run checks 190 "$binary" --only checks --budget 180 --json "$out/report.json" "$@"
run speed 130 "$binary" --only speed --budget 120 --json "$out/speed.json" "$@"
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    run torch "$(left 70)" python3 "$here/torch_products.py" "$out/torch.json"
else
    echo "== no python3 with torch and a GPU: nothing to compare with"
fi
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ] && [[ " $* " != *" --shim "* ]]; then
    for tool in memcheck racecheck synccheck; do
        run "sanitizer-$tool" "$(left 75)" "$sanitizer" --tool "$tool" --error-exitcode 1 "$binary" --here --only checks --few "$@"
    done
else
    echo "== no compute-sanitizer here: memory and races were not checked"
fi
echo "== $([ $failed = 0 ] && echo "all well" || echo "FAILED: see above") ($SECONDS s)"
exit $failed
