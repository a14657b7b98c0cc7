//! What can be wrong with a checkpoint; every message names the file, and the tensor where there is one.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {detail}")]
    Invalid { path: PathBuf, detail: String },
    #[error("{path}: tensor {tensor}: {detail}")]
    Tensor { path: PathBuf, tensor: String, detail: String },
    /// Several tensors at once, as many as are worth a person's time.
    #[error("{path}: {count} tensor(s) do not fit the configuration:\n{list}")]
    Tensors { path: PathBuf, count: usize, list: String },
}
