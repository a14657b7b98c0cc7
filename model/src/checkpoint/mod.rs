//! A checkpoint folder: `config.json` beside safetensors files, mapped into memory and checked before anything is used.

mod digest;
mod error;
mod folder;
mod header;
#[allow(unsafe_code)]
mod map;
mod stamp;

pub use error::CheckpointError;
pub use folder::{Checkpoint, Tensor, parse_index};
pub use header::{StoredType, TensorEntry, parse_header};
pub(crate) use map::map_file;
pub use stamp::{FileIdentity, Stamp};
