//! Mapping a file into memory: the one place outside `kernels` with unsafe code.
//!
//! A mapped file must not be truncated or rewritten while it is in use; checkpoints are written once and renamed into
//! place, and whoever may write the model folder is trusted as much as the weights themselves.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use gaterail_kernels::Bytes;

use super::CheckpointError;
use super::stamp::Stamp;

struct Mapped(memmap2::Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The whole file as shared bytes, and which file it is.
pub(crate) fn map_file(path: &Path) -> Result<(Bytes, Stamp), CheckpointError> {
    let read = |source| CheckpointError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        let detail = "not a regular file".to_string();
        return Err(CheckpointError::Invalid { path: path.to_path_buf(), detail });
    }
    // SAFETY: the mapping is read-only; that nobody shrinks the file meanwhile is the duty stated above.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read)?;
    Ok((Bytes::new(Arc::new(Mapped(map))), Stamp::of(&metadata)))
}
