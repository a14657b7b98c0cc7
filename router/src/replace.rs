//! A file that is replaced as a whole: who reads it finds the old one or the new one, and two who write it do not meet.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one waits for another who writes the same, which takes milliseconds.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Writes beside `path` and renames; it is on the disk then. What fails leaves what was there. The system's mask takes from `mode`
/// what it takes from that of every new file.
pub fn file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, Permissions::from_mode(mode), |_| Ok(()))
}

/// The same with exactly this mode, whatever the system's mask.
pub fn with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mode = Permissions::from_mode(mode);
    put(path, bytes, mode.clone(), |file| file.set_permissions(mode))
}

/// Takes a lock that others give up soon; `WouldBlock` if they have not within `wait`.
pub fn lock(file: &File, wait: Duration) -> Result<(), TryLockError> {
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begin.elapsed() < wait => std::thread::sleep(LOCK_POLL),
            done => return done,
        }
    }
}

fn put(
    path: &Path,
    bytes: &[u8],
    mode: Permissions,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    // The name is drawn: a number of the process would not do, since in containers every process may have the number 1.
    let mut beside = tempfile::Builder::new().prefix(".unfinished-").permissions(mode).tempfile_in(folder)?;
    beside.write_all(bytes)?;
    finish(beside.as_file())?;
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    // That the name lasts through a power cut is worth asking for, not worth failing for.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().into_string().expect("a name")).collect()
    }

    #[test]
    fn those_who_write_at_once_all_succeed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let text = |writer: usize| writer.to_string().repeat(100_000);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    (0..5).for_each(|_| file(path, text(writer).as_bytes(), 0o400).expect("well"))
                });
            }
        });
        let found = std::fs::read_to_string(&path).expect("there");
        assert!((0..8).any(|writer| found == text(writer)), "{} bytes, of several", found.len());
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o400);
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn exactly_a_mode_is_what_no_mask_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        for mode in [0o666, 0o604, 0o777, 0o400] {
            with_mode(&path, b"text", mode).expect("written");
            assert_eq!(path.metadata().expect("there").permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn a_lock_is_waited_for_and_not_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || File::create(folder.path().join("lock")).expect("a file");
        let (held, other) = (open(), open());
        held.lock().expect("free");
        assert!(matches!(lock(&other, Duration::from_millis(50)), Err(TryLockError::WouldBlock)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| lock(&other, Duration::from_secs(60)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished(), "somebody else has it");
            drop(held);
            waits.join().expect("no panic").expect("given up by now");
        });
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a folder");
        std::fs::create_dir(&path).expect("made");
        assert!(file(&path, b"text", 0o644).is_err(), "a folder is no file");
        assert_eq!(names(folder.path()), ["a folder"]);
    }
}
