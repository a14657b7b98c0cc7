//! The mathematics of a Mixture-of-Experts model, in one process: a checkpoint goes in, logits and text come out.
#![deny(unsafe_code)]

pub mod sampler;
pub mod text;
