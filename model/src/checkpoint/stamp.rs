//! What tells one version of a file from another without reading it.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file's place on its disk, its size and its times. A file that is replaced or written to gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    pub modified_ns: i128,
    /// Moved by every change of content, owner, mode or name; cannot be set.
    pub changed_ns: i128,
}

impl Stamp {
    pub fn of(metadata: &Metadata) -> Stamp {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of what lies at `path` now.
    pub fn at(path: &Path) -> std::io::Result<Stamp> {
        Ok(Stamp::of(&File::open(path)?.metadata()?))
    }
}

/// One file of an open checkpoint.
#[derive(Clone, Debug)]
pub struct FileIdentity<'a> {
    pub path: PathBuf,
    pub stamp: Stamp,
    /// All bytes before the first tensor's.
    pub header: &'a [u8],
}
