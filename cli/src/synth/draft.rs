//! The folder beside the one that is asked for: everything is written there, by one process at a time, and at the end it becomes
//! that folder.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::CliError;

/// Times that a draft may become its folder, or go, while another one is to be made.
const TRIES_MAX: usize = 8;

/// A draft that is this process's alone; it is removed when it is dropped unfinished.
pub struct Draft {
    pub path: PathBuf,
    out: PathBuf,
    finished: bool,
    /// Locked, as far as the file system has locks.
    _held: File,
}

impl Draft {
    /// The draft of a folder that is new or empty, without what an interrupted run has left in it.
    pub fn of(out: &Path) -> Result<Draft, CliError> {
        let out = std::path::absolute(out).map_err(CliError::io(out.display().to_string()))?;
        check_empty(&out)?;
        let mut name = OsString::from(out.file_name().unwrap_or_default());
        name.push(".incomplete");
        let path = out.with_file_name(name);
        let _held = hold(&path)?;
        let draft = Draft { path, out, finished: false, _held };
        // Whoever held it before may have finished.
        check_empty(&draft.out)?;
        empty(&draft.path).map_err(CliError::io(draft.path.display().to_string()))?;
        Ok(draft)
    }

    /// The draft becomes the folder.
    pub fn finish(mut self) -> Result<(), CliError> {
        // What is whole is not thrown away, even if it finds no place.
        self.finished = true;
        let what = format!("renaming {} to {}", self.path.display(), self.out.display());
        fs::rename(&self.path, &self.out).map_err(CliError::io(what))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn check_empty(out: &Path) -> Result<(), CliError> {
    match fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CliError::Refused(format!("{} is not empty; nothing was written", out.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CliError::io(out.display().to_string())(error)),
    }
}

/// Makes the draft's folder where there is none, and takes its lock, which goes with the process that has it.
fn hold(path: &Path) -> Result<File, CliError> {
    let refused =
        |why: &str| Err(CliError::Refused(format!("{} {why}; nothing was written", path.display())));
    for _ in 0..TRIES_MAX {
        let held = match fs::create_dir_all(path).and_then(|()| open(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            held => held.map_err(CliError::io(path.display().to_string()))?,
        };
        match held.try_lock() {
            Err(TryLockError::WouldBlock) => return refused("is being written by another process"),
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // Before the lock was had it may have become the folder that it was to be, with all that is in it.
        if is_at(&held, path) {
            return Ok(held);
        }
    }
    refused("comes and goes")
}

/// Not through a link: what is in there will be removed.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}

fn is_at(folder: &File, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (folder.metadata(), fs::symlink_metadata(path)) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

/// Removes what is in a folder. The folder itself stays: its lock would go with it.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        if is_folder { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}
