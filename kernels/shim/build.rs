//! Compiles the CUDA kernels as C++, with the shim that runs them.
//!
//! `GATERAIL_SHIM_SANITIZE` adds a list of sanitizers, for instance `address,undefined` (`just sanitize`).

use std::path::PathBuf;

/// CODES and GROUP: `cuda::Form::ALL`.
const FORMS: [(u8, u16); 6] = [(0, 32), (0, 64), (0, 128), (1, 32), (2, 32), (2, 64)];

fn main() {
    let cuda = PathBuf::from("../cuda").canonicalize().expect("the folder of the kernels");
    println!("cargo::rerun-if-changed={}", cuda.display());
    println!("cargo::rerun-if-env-changed=GATERAIL_SHIM_SANITIZE");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("a build script's folder"));

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include(cuda.join("shim")).opt_level(2).debug(true);
    // As NVRTC is told: ARITHMETIC.md writes every rounding, and no product joins a sum by itself.
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing");
    // `#pragma unroll` is the GPU's.
    build.flag("-Wno-unknown-pragmas");
    println!("cargo::rustc-check-cfg=cfg(sanitized)");
    if let Ok(sanitizers) = std::env::var("GATERAIL_SHIM_SANITIZE") {
        println!("cargo::rustc-cfg=sanitized");
        build.flag(format!("-fsanitize={sanitizers}")).flag("-fno-sanitize-recover=all").opt_level(1);
    }
    for name in ["shim.cpp", "plain.cpp", "wrong.cpp"] {
        build.file(cuda.join("shim").join(name));
    }
    for (codes, group) in FORMS {
        let path = out.join(format!("form_c{codes}_g{group}.cpp"));
        let text = format!("#define CODES {codes}\n#define GROUP {group}\n#include \"forms.h\"\n");
        std::fs::write(&path, text).expect("a file in the build's folder");
        build.file(path);
    }
    build.compile("gaterail_shim_kernels");
}
