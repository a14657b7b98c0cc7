//! The mathematics of a Mixture-of-Experts model, in one process: a checkpoint goes in, logits and text come out.
//!
//! `source` is a model on disk. `config` and `arch` turn `config.json` into a `spec`; `checkpoint` opens the tensors and
//! `weights` loads them; `gguf` does both for files that hold everything; `walk` runs batches over `kv` pages; `sampler` and `text` lie at the two ends. ARCHITECTURE.md has the map.
#![deny(unsafe_code)]

pub mod arch;
pub mod checkpoint;
pub mod config;
mod error;
mod file;
pub mod gguf;
pub mod kv;
pub mod sampler;
pub mod source;
pub mod spec;
pub mod text;
pub mod walk;
pub mod weights;

pub use error::ModelError;
pub use source::ModelSource;
