//! The keys of a server on disk: one JSON file that only its owner may read, replaced as a whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::key::KeyRecord;
use crate::replace;

const FILE_BYTES_MAX: u64 = 16 << 20;
const VERSION: u32 = 1;
const MODE: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {detail}", path.display())]
    Invalid { path: PathBuf, detail: String },
    #[error("{}: another process has been changing the keys for {} s; nothing was changed", path.display(), wait.as_secs())]
    Busy { path: PathBuf, wait: Duration },
}

/// Where the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    path: PathBuf,
}

/// Tells one state of the file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    keys: Vec<KeyRecord>,
}

impl KeyFile {
    pub fn new(path: impl Into<PathBuf>) -> KeyFile {
        KeyFile { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None` where there is no file.
    pub fn stamp(&self) -> Option<Stamp> {
        let of = |metadata: std::fs::Metadata| Stamp {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
        };
        std::fs::metadata(&self.path).ok().map(of)
    }

    /// All keys, the revoked ones included. No file is no keys; a file that others may write is refused.
    pub fn load(&self) -> Result<Vec<KeyRecord>, KeyFileError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io(error)),
        };
        let mode = file.metadata().map_err(|error| self.io(error))?.permissions().mode();
        if mode & 0o022 != 0 {
            return Err(self.invalid(format!("others may write it (mode {:o}); chmod 600", mode & 0o777)));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| self.io(error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(self.invalid(format!("more than {FILE_BYTES_MAX} bytes")));
        }
        let contents: Contents =
            serde_json::from_str(&text).map_err(|error| self.invalid(error.to_string()))?;
        match contents.version {
            VERSION => Ok(contents.keys),
            other => Err(self.invalid(format!("version {other}; this program reads version {VERSION}"))),
        }
    }

    /// Changes the keys. Nobody else changes them meanwhile, and a reader sees the old file or the new one.
    pub fn update<T>(&self, change: impl FnOnce(&mut Vec<KeyRecord>) -> T) -> Result<T, KeyFileError> {
        self.update_within(replace::LOCK_WAIT_MAX, change)
    }

    pub(super) fn update_within<T>(
        &self,
        wait: Duration,
        change: impl FnOnce(&mut Vec<KeyRecord>) -> T,
    ) -> Result<T, KeyFileError> {
        let file = self.linked();
        if let Some(folder) = file.path.parent().filter(|folder| *folder != Path::new("")) {
            std::fs::create_dir_all(folder).map_err(|error| self.io(error))?;
        }
        let lock = file.path.with_extension("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(&lock);
        // Held until it is dropped.
        let lock = lock.map_err(|error| self.io(error))?;
        replace::lock(&lock, wait).map_err(|error| match error {
            TryLockError::WouldBlock => KeyFileError::Busy { path: file.path.clone(), wait },
            TryLockError::Error(error) => self.io(error),
        })?;
        let mut keys = file.load()?;
        let result = change(&mut keys);
        file.replace(&Contents { version: VERSION, keys })?;
        Ok(result)
    }

    /// Whatever links lead to it: it is one file, and has one lock. A link may be there before its file is.
    fn linked(&self) -> KeyFile {
        let absent = || match (self.path.read_link(), self.path.parent()) {
            (Ok(target), Some(folder)) => folder.join(target),
            _ => self.path.clone(),
        };
        KeyFile::new(self.path.canonicalize().unwrap_or_else(|_| absent()))
    }

    fn replace(&self, contents: &Contents) -> Result<(), KeyFileError> {
        let text = serde_json::to_string_pretty(contents).map_err(|error| self.invalid(error.to_string()))?;
        replace::file(&self.path, (text + "\n").as_bytes(), MODE).map_err(|error| self.io(error))
    }

    fn io(&self, source: io::Error) -> KeyFileError {
        KeyFileError::Io { path: self.path.clone(), source }
    }

    fn invalid(&self, detail: String) -> KeyFileError {
        KeyFileError::Invalid { path: self.path.clone(), detail }
    }
}
