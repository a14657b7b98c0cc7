//! Results into a file, whole: a disk that is full takes no earlier results along, and who reads meanwhile finds no half.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gaterail_router::replace;

use crate::error::CliError;

/// Of a new file, before the system's mask.
const MODE: u32 = 0o666;

pub fn save(path: &Path, text: &str) -> Result<(), CliError> {
    put(path, text.as_bytes()).map_err(CliError::io(path.display().to_string()))
}

fn put(path: &Path, text: &[u8]) -> io::Result<()> {
    let replaced = match path.canonicalize() {
        Ok(file) if file.is_file() => {
            let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
            replace::file(&file, text, mode)
        }
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            replace::file(path, text, MODE)
        }
        // A pipe, a device, or a link to what is not there yet.
        _ => return fs::write(path, text),
    };
    match replaced {
        // A file that may be written to in a folder that may not, or one that was mounted by itself.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ResourceBusy) => {
            fs::write(path, text)
        }
        replaced => replaced,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn who_reads_meanwhile_finds_it_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.json");
        let text = |letter: &str| letter.repeat(200_000);
        save(&path, &text("a")).expect("written");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
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
            done.store(true, Ordering::Relaxed);
            reader.join().expect("whole files only");
        });
    }

    #[test]
    fn what_is_no_new_file_stays_what_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("there"), "old").expect("written");
        fs::set_permissions(at("there"), fs::Permissions::from_mode(0o640)).expect("changed");
        symlink("there", at("link")).expect("a link");
        symlink("absent", at("dangling")).expect("a link");
        save(&at("link"), "new").expect("written");
        save(&at("dangling"), "new").expect("written");
        for (link, file) in [("link", "there"), ("dangling", "absent")] {
            assert!(at(link).is_symlink(), "{link}");
            assert_eq!(fs::read_to_string(at(file)).expect("there"), "new");
        }
        assert_eq!(fs::metadata(at("there")).expect("there").permissions().mode() & 0o777, 0o640);
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        let reader = std::thread::spawn({
            let pipe = at("pipe");
            move || fs::read_to_string(pipe)
        });
        save(&at("pipe"), "through").expect("written");
        assert_eq!(reader.join().expect("no panic").expect("read"), "through");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 5, "something was left");
    }
}
