//! The plain reference and the fast kernels of every device against results that `ops/reference/make_vectors.py` computed by
//! ARITHMETIC.md, in exact arithmetic and without this code: a change of both would show nowhere else.

#[path = "../common/mod.rs"]
mod common;
mod dense;
mod experts;
mod packed;
mod read;
