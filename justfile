# What is done often. `just` alone lists it.

default:
    @just --list

# Formatting, lints, licences: what CI checks before it tests.
check:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings
    cargo deny --offline check bans licenses sources

test:
    cargo test --release --workspace

# Measurements of a model folder, for instance one that `gaterail synth` wrote.
bench MODEL:
    cargo bench -p gaterail-benches --bench forward -- {{MODEL}}

# Every CUDA kernel through NVIDIA's compiler, for every architecture; needs no GPU.
kernels:
    ops/kernel-gate/run.sh --required

# What to carry to a machine with a GPU, to check and measure the kernels there: `run.sh OUT` in that folder.
gpu FOLDER:
    ops/gpu-check/pack.sh {{FOLDER}}

# The tests of the CUDA kernels under the address and undefined-behaviour sanitizers.
sanitize:
    ops/kernel-gate/sanitize.sh

# A random model that looks like the real one, and text (noise) from it.
run-local SHAPE="mini":
    cargo run --release -- synth --shape {{SHAPE}} target/models/{{SHAPE}}
    cargo run --release -- generate target/models/{{SHAPE}} "Hello" -n 40

# Coverage-guided fuzzing of a reader: header, gguf, index, config, tokenizer, template, generation, packed, request, frame or shared_memory.
fuzz TARGET SECONDS="60":
    cd tests && mkdir -p fuzz/corpus/{{TARGET}} && RUSTC_BOOTSTRAP=1 cargo fuzz run {{TARGET}} fuzz/corpus/{{TARGET}} $(ls -d fuzz/seeds/{{TARGET}} 2>/dev/null) -- -max_total_time={{SECONDS}}

# Makes the fixtures again with transformers (needs the packages of requirements.txt).
fixtures:
    python3 ops/reference/make_fixtures.py

# Makes the vectors of ARITHMETIC.md again; they must come out as they are.
vectors:
    python3 ops/reference/make_vectors.py
    git diff --exit-code kernels/tests/vectors
