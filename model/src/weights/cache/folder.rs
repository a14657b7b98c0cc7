//! The folder of all files of packed weights, and its limit: those that were used longest ago go first.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::CacheError;
use super::index::Index;
use super::key::CacheKey;
use super::reader::read_head;

const ENDING: &str = "packed";
/// Of a file that is being written.
const UNFINISHED: &str = "unfinished";
/// Where the file system has no locks, a file that nobody has written to for so long is nobody's.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A file of the cache.
#[derive(Clone, Debug)]
pub struct CachedFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub used: SystemTime,
}

impl CachedFile {
    /// What the file says about itself; the error is a sentence about the file.
    pub fn index(&self) -> Result<Index, String> {
        let file = File::open(&self.path).map_err(|error| format!("cannot be read: {error}"))?;
        read_head(&file).map(|head| head.index)
    }
}

/// The files of the cache, the one that was used longest ago first. A folder that is not there holds none.
pub fn list(folder: &Path) -> io::Result<Vec<CachedFile>> {
    let mut files = with_ending(folder, ENDING)?;
    files.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    Ok(files)
}

/// The files of a key's checkpoint, configuration and precision, whatever they hold of it, the one that was used last first.
pub(super) fn of_digest(folder: &Path, key: &CacheKey) -> Vec<PathBuf> {
    let Ok(files) = list(folder) else { return Vec::new() };
    let own = |path: &PathBuf| path.file_name().is_some_and(|name| key.names(name));
    files.into_iter().rev().map(|file| file.path).filter(own).collect()
}

/// Removes all files; their number and bytes.
pub fn clear(folder: &Path) -> io::Result<(usize, u64)> {
    sweep(folder);
    let files = list(folder)?;
    files.iter().try_for_each(|file| remove(&file.path))?;
    Ok((files.len(), files.iter().map(|file| file.bytes).sum()))
}

/// Makes room for a file of `bytes` within a limit on all files; without one: half of what is free, the files counted as
/// free.
pub(super) fn make_room(folder: &Path, bytes: u64, limit: Option<u64>) -> Result<(), CacheError> {
    sweep(folder);
    let files = list(folder).map_err(CacheError::io("cannot be listed"))?;
    let mut total: u64 = files.iter().map(|file| file.bytes).sum();
    let limit = match limit {
        Some(limit) => limit,
        None => free_bytes(folder)?.saturating_add(total) / 2,
    };
    if bytes > limit {
        return Err(CacheError(format!("they take {bytes} bytes, and the cache may take {limit}")));
    }
    for file in files {
        if total + bytes <= limit {
            break;
        }
        remove(&file.path).map_err(CacheError::io("an old file cannot be removed"))?;
        total -= file.bytes;
    }
    Ok(())
}

fn free_bytes(folder: &Path) -> Result<u64, CacheError> {
    let stat = rustix::fs::statvfs(folder).map_err(|error| CacheError::io("free space")(error.into()))?;
    Ok(stat.f_frsize.saturating_mul(stat.f_bavail))
}

/// Removes files whose writers are gone.
fn sweep(folder: &Path) {
    for left in with_ending(folder, UNFINISHED).unwrap_or_default() {
        let Ok(file) = File::open(&left.path) else { continue };
        let abandoned = match file.try_lock() {
            Ok(()) => true,
            Err(std::fs::TryLockError::WouldBlock) => false,
            Err(std::fs::TryLockError::Error(_)) => {
                left.used.elapsed().is_ok_and(|elapsed| elapsed > ABANDONED)
            }
        };
        // Whoever has the lock is the only one to rename or remove the file; by now the name may be another's.
        if abandoned && is_at(&file, &left.path) {
            let _ = std::fs::remove_file(&left.path);
        }
    }
}

/// Whether a path names this open file.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// Removes a file that somebody else may have removed.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Where the `attempt`-th writer of a file writes.
pub(super) fn unfinished_path(path: &Path, attempt: usize) -> PathBuf {
    path.with_extension(format!("{attempt}.{UNFINISHED}"))
}

fn with_ending(folder: &Path, ending: &str) -> io::Result<Vec<CachedFile>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let paths = paths.filter(|path| path.extension().is_some_and(|end| end == ending));
    // A file that is gone by now, or is none, does not count.
    let files = paths.filter_map(|path| {
        let metadata = std::fs::symlink_metadata(&path).ok().filter(|metadata| metadata.is_file())?;
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(CachedFile { path, bytes: metadata.len(), used })
    });
    Ok(files.collect())
}
