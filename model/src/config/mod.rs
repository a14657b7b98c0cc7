//! `config.json`: fields by name with limits, in the older and the newer spelling; RoPE; quantisation.

mod fields;
mod generation;
mod int4;
mod quantization;
mod rope;

pub use fields::{ConfigError, Fields};
pub use generation::GenerationDefaults;
pub use int4::{Int4Linear, Int4Packing};
pub use quantization::Quantization;
pub use rope::{Rope, RopeScaling, Yarn};
