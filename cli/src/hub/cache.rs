//! The cache's layout, as Hugging Face's own library has it, so that both find what the other fetched:
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/ETAG                    the bytes; ETAG.incomplete while they arrive
//!                        /refs/REVISION                 the commit of a branch or tag
//!                        /snapshots/COMMIT/FILE         a relative link into blobs/
//! CACHE/.locks/models--ORG--NAME/ETAG.lock              held by whoever loads that blob
//! ```

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use gaterail_router::replace;
use rustix::io::Errno;

use super::checksum::BlobId;
use super::error::HubError;
use super::limits::{LOCK_POLL, LOCK_WAIT_MAX};
use super::name::{Commit, RepoPath, RepoSpec};
use super::open::{lock_file, write_new};
use super::retry::Stop;

/// The signature by which backup tools know a folder that need not be kept.
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by huggingface_hub.\n\
    # For information about cache directory tags, see:\n\
    #\thttps://bford.info/cachedir/\n";

/// Of a new ref, before the system's mask: a group may share the cache.
const REF_MODE: u32 = 0o666;

/// The part of a cache that belongs to one repository.
pub struct RepoCache {
    /// `CACHE/models--ORG--NAME`.
    pub folder: PathBuf,
    locks: PathBuf,
    cache_dir: PathBuf,
    /// `File::try_lock`; a test puts a file system without locks in its place.
    pub try_lock: fn(&File) -> Result<(), TryLockError>,
}

impl RepoCache {
    pub fn new(cache_dir: &Path, repo: &RepoSpec) -> Self {
        let name = repo.folder_name();
        Self {
            folder: cache_dir.join(&name),
            locks: cache_dir.join(".locks").join(&name),
            cache_dir: cache_dir.to_owned(),
            try_lock: File::try_lock,
        }
    }

    pub fn blob(&self, id: &BlobId) -> PathBuf {
        self.folder.join("blobs").join(id.as_str())
    }

    pub fn partial(&self, id: &BlobId) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", id.as_str()))
    }

    /// Where the holder of this lock writes: a name of its own if the lock keeps nobody away.
    pub fn partial_under(&self, id: &BlobId, lock: &BlobLock) -> PathBuf {
        match &lock.private {
            None => self.partial(id),
            Some(tag) => self.folder.join("blobs").join(format!("{}.{tag}.incomplete", id.as_str())),
        }
    }

    pub fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.folder.join("snapshots").join(commit.as_str())
    }

    pub fn pointer(&self, commit: &Commit, path: &RepoPath) -> PathBuf {
        self.snapshot(commit).join(path.as_str())
    }

    /// The list of all files of a commit, where Hugging Face's library has left one.
    pub fn tree(&self, commit: &Commit) -> PathBuf {
        self.folder.join("trees").join(format!("{commit}.json"))
    }

    /// Creates the folders that downloads write to.
    pub fn create(&self) -> Result<(), HubError> {
        for folder in [&self.folder.join("blobs"), &self.locks] {
            fs::create_dir_all(folder).map_err(HubError::disk("created", folder))?;
        }
        let tag = self.cache_dir.join("CACHEDIR.TAG");
        match write_new(&tag, CACHEDIR_TAG.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(HubError::disk("written", &tag)),
        }
    }

    /// The commit that a revision had when it was last fetched.
    pub fn commit_of(&self, revision: &str) -> Option<Commit> {
        if let Some(commit) = Commit::parse(revision) {
            return Some(commit);
        }
        let text = read_limited(&self.folder.join("refs").join(revision), 64).ok()?;
        Commit::parse(std::str::from_utf8(&text).ok()?.trim())
    }

    /// The commit of the one snapshot there is; `None` if there are several.
    pub fn only_snapshot(&self) -> Option<Commit> {
        let mut folders = fs::read_dir(self.folder.join("snapshots")).ok()?;
        let (first, second) = (folders.next()?.ok()?, folders.next());
        if second.is_some() { None } else { Commit::parse(first.file_name().to_str()?) }
    }

    /// Notes the commit of a branch or tag. It is written last, so that a name leads to a whole snapshot.
    pub fn write_ref(&self, revision: &str, commit: &Commit) -> Result<(), HubError> {
        if revision == commit.as_str() || self.commit_of(revision).as_ref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(HubError::disk("created", folder))?;
        replace::file(&path, commit.as_str().as_bytes(), REF_MODE).map_err(HubError::disk("written", &path))
    }

    /// Whether the snapshot has this file, whole.
    pub fn holds(&self, commit: &Commit, path: &RepoPath, size: u64) -> bool {
        has_length(&self.pointer(commit, path), size)
    }

    /// Makes the snapshot's file point to the blob.
    pub fn link(&self, commit: &Commit, path: &RepoPath, id: &BlobId) -> Result<(), HubError> {
        let pointer = self.pointer(commit, path);
        let folder = pointer.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(HubError::disk("created", folder))?;
        let up = "../".repeat(path.depth() + 2);
        let target = PathBuf::from(format!("{up}blobs/{}", id.as_str()));
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        // In one step: what another pull has put there is never away.
        let draft = folder.join(format!(".{}.link", unused_tag()));
        symlink(&target, &draft).map_err(HubError::disk("created", &draft))?;
        fs::rename(&draft, &pointer).map_err(|error| {
            let _ = fs::remove_file(&draft);
            HubError::disk("replaced", &pointer)(error)
        })
    }

    /// Waits until nobody else loads this blob. `waiting` is called once if somebody does.
    pub fn lock(
        &self,
        id: &BlobId,
        file: &RepoPath,
        stop: &Stop,
        waiting: impl FnOnce(),
    ) -> Result<BlobLock, HubError> {
        let path = self.locks.join(format!("{}.lock", id.as_str()));
        let open = || {
            let opened = fs::create_dir_all(&self.locks).and_then(|()| lock_file(&path));
            opened.map_err(HubError::disk("opened", &path))
        };
        let mut held = open()?;
        let mut waiting = Some(waiting);
        let mut waited = std::time::Duration::ZERO;
        loop {
            match (self.try_lock)(&held) {
                Ok(()) if is_at(&held, &path) => return Ok(BlobLock { _file: held, private: None }),
                Ok(()) => held = open()?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    return Ok(BlobLock { _file: held, private: Some(unused_tag()) });
                }
                Err(TryLockError::Error(error)) => return Err(HubError::disk("locked", &path)(error)),
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            if waited >= LOCK_WAIT_MAX {
                return Err(HubError::Locked { file: file.to_string(), lock: path });
            }
            if stop.sleep(LOCK_POLL) {
                return Err(HubError::Stopped);
            }
            waited += LOCK_POLL;
        }
    }
}

/// Held while a blob is loaded; closing the file gives it up, also when the process is killed.
#[must_use]
pub struct BlobLock {
    _file: File,
    /// On a file system without locks: part of a file name that nobody else has.
    private: Option<String>,
}

impl BlobLock {
    /// Whether it keeps others away.
    pub fn excludes(&self) -> bool {
        self.private.is_none()
    }
}

/// Whether a lock's file has its name yet. Where somebody has taken it away, or given it another name, others lock the one
/// that they have made since.
fn is_at(lock: &File, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (lock.metadata(), fs::symlink_metadata(path)) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
}

/// Part of a file name that no other process, on this machine or another, uses.
fn unused_tag() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{}-{random:016x}", std::process::id())
}

/// Whether the file, or what it links to, is this long.
pub fn has_length(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// A small file, or an error if it is longer than it may be.
pub fn read_limited(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}
