//! Results into a file, whole: a disk that is full takes no earlier results along, and who reads meanwhile finds no half.
//!
//! What a replacement would take from a file is written in place: its owner and group, or the ones who have it open, as those
//! of `/dev/stdout`.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use gaterail_router::replace;
use rustix::process::{getegid, geteuid};

use crate::error::CliError;

/// Of a new file, before the system's mask.
const MODE: u32 = 0o666;
/// Links to follow, as Linux has it.
const LINKS_MAX: usize = 40;

pub fn save(path: &Path, text: &str) -> Result<(), CliError> {
    put(path, text.as_bytes()).map_err(CliError::io(path.display().to_string()))
}

fn put(path: &Path, text: &[u8]) -> io::Result<()> {
    if leads_to_open_files(path) {
        return fs::write(path, text);
    }
    let replaced = match path.canonicalize() {
        Ok(file) if file.is_file() => {
            // Who may not write to it may not replace it either.
            let there = OpenOptions::new().write(true).open(&file)?.metadata()?;
            if !is_own(&there) {
                return fs::write(path, text);
            }
            replace::with_mode(&file, text, there.permissions().mode() & 0o777)
        }
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            replace::file(path, text, MODE)
        }
        // A pipe, a device, or a link to what is not there yet.
        _ => return fs::write(path, text),
    };
    use ErrorKind::{PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    match replaced {
        // A file that may be written to in a folder that may not, or one that was mounted by itself.
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy) => {
            fs::write(path, text)
        }
        replaced => replaced,
    }
}

/// Whether a new file of this process would have the same owner and group.
fn is_own(file: &Metadata) -> bool {
    (file.uid(), file.gid()) == (geteuid().as_raw(), getegid().as_raw())
}

/// Whether a path leads into /dev or /proc, where a name such as /dev/stdout stands for a file that somebody has open.
fn leads_to_open_files(path: &Path) -> bool {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let (Ok(folder), Some(name)) = (folder.canonicalize(), path.file_name()) else { return false };
        if folder.starts_with("/dev") || folder.starts_with("/proc") {
            return true;
        }
        match folder.join(name).read_link() {
            Ok(target) => path = folder.join(target),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use rustix::thread::set_thread_res_uid;

    use super::*;

    /// Ends who reads until it is set, also where a test fails.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
    }

    #[test]
    fn who_reads_meanwhile_finds_it_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.json");
        let text = |letter: &str| letter.repeat(200_000);
        save(&path, &text("a")).expect("written");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ends = Done(&done);
            let reader = scope.spawn(|| {
                let whole = [text("a"), text("b")];
                while !done.load(Ordering::Relaxed) {
                    let found = fs::read_to_string(&path).expect("there");
                    assert!(whole.contains(&found), "a part, {} bytes", found.len());
                }
            });
            for round in 0..100 {
                save(&path, &text(if round % 2 == 0 { "b" } else { "a" })).expect("written");
            }
            drop(ends);
            reader.join().expect("whole files only");
        });
    }

    #[test]
    fn what_is_no_new_file_stays_what_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("there"), "old").expect("written");
        // Some of it is what every mask in use takes from a new file.
        set_mode(&at("there"), 0o662);
        symlink("there", at("link")).expect("a link");
        symlink("absent", at("dangling")).expect("a link");
        save(&at("link"), "new").expect("written");
        save(&at("dangling"), "new").expect("written");
        for (link, file) in [("link", "there"), ("dangling", "absent")] {
            assert!(at(link).is_symlink(), "{link}");
            assert_eq!(fs::read_to_string(at(file)).expect("there"), "new");
        }
        assert_eq!(mode(&at("there")), 0o662);
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        let reader = std::thread::spawn({
            let pipe = at("pipe");
            move || fs::read_to_string(pipe)
        });
        save(&at("pipe"), "through").expect("written");
        assert_eq!(reader.join().expect("no panic").expect("read"), "through");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 5, "something was left");
    }

    #[test]
    fn a_new_file_is_as_any_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let [ours, usual] = ["ours", "usual"].map(|name| folder.path().join(name));
        save(&ours, "new").expect("written");
        fs::write(&usual, "new").expect("written");
        assert_eq!(mode(&ours), mode(&usual));
    }

    /// Runs `body` as somebody who may not do everything: as nobody, where the tests run as root. Nothing where root may not become
    /// nobody, as in some containers, or nobody may not reach the folder.
    fn as_nobody<T: Send>(folder: &Path, body: impl FnOnce() -> T + Send) -> Option<T> {
        std::thread::scope(|scope| {
            let one = scope.spawn(|| {
                let nobody = rustix::process::Uid::from_raw(65534);
                let can = !geteuid().is_root() || set_thread_res_uid(nobody, nobody, nobody).is_ok();
                (can && folder.exists()).then(body)
            });
            one.join().expect("no panic")
        })
    }

    #[test]
    fn who_may_not_write_may_not_replace() {
        let folder = tempfile::tempdir().expect("a folder");
        set_mode(folder.path(), 0o777);
        let path = folder.path().join("own.json");
        let done = as_nobody(folder.path(), || {
            fs::write(&path, "old").expect("written");
            set_mode(&path, 0o444);
            save(&path, "new").expect_err("it is for reading");
        });
        if done.is_none() {
            eprintln!("not tried: nobody cannot write to {}", folder.path().display());
            return;
        }
        assert_eq!(fs::read_to_string(&path).expect("there"), "old");
        let path = folder.path().join("anothers.json");
        fs::write(&path, "old").expect("written");
        set_mode(&path, 0o666);
        let before = fs::metadata(&path).expect("there");
        as_nobody(folder.path(), || save(&path, "new").expect("anybody may write to it"));
        assert_eq!(fs::read_to_string(&path).expect("there"), "new");
        let after = fs::metadata(&path).expect("there");
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        if geteuid().is_root() {
            assert_eq!(after.ino(), before.ino(), "another's file was replaced");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_open_is_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let mut out =
            OpenOptions::new().read(true).write(true).create_new(true).open(at("out")).expect("a file");
        let number = out.as_raw_fd();
        symlink(format!("/dev/fd/{number}"), at("link")).expect("a link");
        symlink("/dev/fd", at("numbers")).expect("a link");
        let names = [
            PathBuf::from(format!("/dev/fd/{number}")),
            format!("/proc/self/fd/{number}").into(),
            at("link"),
            at(&format!("numbers/{number}")),
        ];
        for (round, name) in names.iter().enumerate() {
            save(name, &format!("round {round}")).expect("written");
            let mut found = String::new();
            out.rewind().expect("a file");
            out.read_to_string(&mut found).expect("readable");
            assert_eq!(found, format!("round {round}"), "{name:?}");
        }
    }
}
