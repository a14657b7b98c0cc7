//! GGUF files: metadata, tensors and tokenizer in one file, as llama.cpp reads them (versions 2 and 3, little-endian).
//!
//! | file | |
//! |---|---|
//! | `cursor` | bytes to numbers and strings; nothing is believed before it is there |
//! | `value` | metadata by key |
//! | `header` | a whole header, and where each tensor lies |
//! | `types` | how tensors may be stored |
//! | `file` | an open file: header and mapped bytes |
//! | `names` | what the tensors are called |
//! | `fields` | metadata in the words of `config.json` |
//! | `spec` | metadata to a `ModelSpec` |
//!
//! The format: the GGUF specification in ggml's repository (docs/gguf.md); the keys: llama.cpp's converter.

mod cursor;
mod fields;
mod file;
mod header;
mod names;
mod spec;
mod types;
mod value;

pub use file::GgufFile;
pub use header::{Header, parse_gguf};
pub(crate) use names::tensor_name;
pub use value::{Metadata, Value};
