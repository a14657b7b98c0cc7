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
        let out = real(out)?;
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

/// The folder itself where a link leads to it: a finished draft takes a folder's place, not a link's.
fn real(out: &Path) -> Result<PathBuf, CliError> {
    let refused = |why: &str| Err(CliError::Refused(format!("{} {why}; nothing was written", out.display())));
    let real = match out.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound && out.is_symlink() => {
            return refused("is a link to what is not there");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => std::path::absolute(out),
        real => real,
    };
    let real = real.map_err(CliError::io(out.display().to_string()))?;
    if is_mounted(&real) {
        return refused("is mounted, so that no other folder can take its place: name a new one in it");
    }
    Ok(real)
}

/// Whether a folder is of another file system than the one that it is in.
fn is_mounted(folder: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    match (device(folder), folder.parent().map(device)) {
        (Ok(own), Some(Ok(outer))) => own != outer,
        _ => false,
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_to_an_empty_folder_stays_one() {
        let home = tempfile::tempdir().expect("a folder");
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("elsewhere")).expect("made");
        fs::create_dir(at("elsewhere/empty")).expect("made");
        symlink("elsewhere/empty", at("link")).expect("a link");
        let draft = Draft::of(&at("link")).expect("an empty folder");
        fs::write(draft.path.join("file"), "text").expect("written");
        draft.finish().expect("in its place");
        assert!(at("link").is_symlink());
        assert_eq!(fs::read_to_string(at("elsewhere/empty/file")).expect("there"), "text");
        let names = |name: &str| fs::read_dir(at(name)).expect("a folder").count();
        assert_eq!((names(""), names("elsewhere")), (2, 1), "something was left");
    }

    #[test]
    fn what_no_folder_can_replace_is_refused_at_the_start() {
        let home = tempfile::tempdir().expect("a folder");
        symlink("absent", home.path().join("link")).expect("a link");
        let refused = |out: &Path| Draft::of(out).err().expect("refused").to_string();
        assert!(refused(&home.path().join("link")).contains("is a link"));
        assert_eq!(fs::read_dir(home.path()).expect("a folder").count(), 1, "something was made");
        if cfg!(target_os = "linux") {
            let error = refused(Path::new("/proc"));
            assert!(error.contains("is mounted"), "{error}");
        }
    }
}
