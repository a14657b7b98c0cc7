//! An open GGUF file: its header, checked, and its bytes, mapped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use gaterail_kernels::Bytes;

use super::header::{Header, parse_gguf};
use super::value::Metadata;
use crate::checkpoint::{CheckpointError, Stamp, StoredType, TensorEntry, map_file};

/// Opening maps the file and reads the header; no tensor is touched.
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    /// `None` for bytes that are no file.
    stamp: Option<Stamp>,
    header: Header,
    /// Name -> index into the header's tensors.
    places: HashMap<String, usize>,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<GgufFile, CheckpointError> {
        let (bytes, stamp) = map_file(path)?;
        Ok(GgufFile { stamp: Some(stamp), ..GgufFile::parse(path, bytes)? })
    }

    /// The same of bytes that errors call `path`.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<GgufFile, CheckpointError> {
        let header = parse_gguf(bytes.as_slice())
            .map_err(|detail| CheckpointError::Invalid { path: path.to_path_buf(), detail })?;
        let places =
            header.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        Ok(GgufFile { path: path.to_path_buf(), bytes, stamp: None, header, places })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Which file this is.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    pub fn tensors(&self) -> &[TensorEntry] {
        &self.header.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.places.get(name).map(|&at| &self.header.tensors[at])
    }

    /// The values of an f32 tensor; `None` if it is stored as anything else.
    pub fn f32_values(&self, tensor: &TensorEntry) -> Option<Vec<f32>> {
        let bytes = &self.bytes.as_slice()[tensor.bytes.clone()];
        let values = bytes.chunks_exact(4).map(|raw| f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]));
        (tensor.stored == StoredType::F32).then(|| values.collect())
    }
}
