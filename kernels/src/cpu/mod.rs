//! The CPU's kernels. Each is written once over 16 lanes (`lanes`) and instantiated for AVX-512, AVX2 and plain Rust;
//! since the lanes fix every order of summation, the three give the same bits.

pub(crate) mod attention;
mod decode;
pub(crate) mod experts;
pub(crate) mod gate;
pub(crate) mod lanes;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod pack;
pub(crate) mod packed;
pub(crate) mod packed_experts;
pub(crate) mod rows;
pub(crate) mod travel;
