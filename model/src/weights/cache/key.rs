//! What a file of packed weights belongs to: these files, this configuration, this precision, this layout, these experts.
//!
//! Tensors are not read for it. A file of the checkpoint is known by its place on the disk, its size, its times and its
//! header; whatever touches one of them makes another key, and the weights are packed again.

use std::path::{Path, PathBuf};

use gaterail_kernels::PACKED_LAYOUT;
use gaterail_proto::ShardSpec;
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, Stamp};
use crate::spec::ModelSpec;
use crate::weights::Precision;

/// Bytes of a digest that stand in a file's name.
const NAME_BYTES: usize = 16;
/// What a file is called that holds all experts.
const WHOLE: &str = "whole";

/// The key of one file.
#[derive(Clone, Debug)]
pub struct CacheKey {
    /// In hexadecimal: everything but the shard.
    pub digest: String,
    /// `whole`, or what tells a shard from others.
    pub held: String,
    pub precision: Precision,
    /// The checkpoint's place, for people.
    pub model: PathBuf,
    files: Vec<(PathBuf, Stamp)>,
}

impl CacheKey {
    /// The key for a checkpoint whose experts are held as `shards` says; none: all of them. `None` for a checkpoint that
    /// is no file.
    pub fn new(
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        precision: Precision,
        shards: &[ShardSpec],
    ) -> Option<CacheKey> {
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        put(&PACKED_LAYOUT.to_le_bytes());
        // The specification says how codes are read and which rows are gate and up.
        put(format!("{precision:?} {spec:?}").as_bytes());
        let mut files = Vec::new();
        for file in checkpoint.identity()? {
            put(format!("{:?}", file.stamp).as_bytes());
            put(file.header);
            files.push((file.path, file.stamp));
        }
        let held = match shards {
            [] => WHOLE.to_string(),
            shards => hex(&Sha256::digest(format!("{shards:?}")).as_slice()[..NAME_BYTES / 2]),
        };
        let model = checkpoint.folder().to_path_buf();
        Some(CacheKey { digest: hex(hash.finalize().as_slice()), held, precision, model, files })
    }

    /// Whether a file is called as one of this digest, whatever it holds.
    pub fn names(&self, name: &std::ffi::OsStr) -> bool {
        name.to_str().is_some_and(|name| name.starts_with(&format!("{}-", &self.digest[..2 * NAME_BYTES])))
    }

    /// The file of this key.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}.packed", &self.digest[..2 * NAME_BYTES], self.held))
    }

    /// The file that holds all experts, if this key's does not.
    pub fn whole_path(&self, folder: &Path) -> Option<PathBuf> {
        let whole = CacheKey { held: WHOLE.to_string(), ..self.clone() };
        (self.held != WHOLE).then(|| whole.path(folder))
    }

    /// Whether the checkpoint's files are still those that the key was made of.
    pub fn is_current(&self) -> bool {
        self.files.iter().all(|(path, stamp)| Stamp::at(path).is_ok_and(|now| now == *stamp))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
