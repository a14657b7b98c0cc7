//! Certificates into files: keys that only their owner reads, and none that takes another's place unasked.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gaterail_cluster::tls::CertFiles;
use gaterail_router::replace;

use super::make::{Made, Pair};
use crate::error::CliError;

const FOLDER: u32 = 0o700;
const CERT: u32 = 0o644;
const KEY: u32 = 0o600;

/// Nobody else makes certificates in a folder while this is held. A file system without locks keeps nobody away.
pub fn alone(folder: &Path) -> Result<Option<File>, CliError> {
    alone_within(replace::LOCK_WAIT_MAX, folder)
}

fn alone_within(wait: Duration, folder: &Path) -> Result<Option<File>, CliError> {
    let Ok(held) = File::open(folder) else { return Ok(None) };
    match replace::lock(&held, wait) {
        Ok(()) => Ok(Some(held)),
        Err(TryLockError::Error(_)) => Ok(None),
        Err(TryLockError::WouldBlock) => Err(CliError::Refused(format!(
            "another process has had the lock of {} for {} s, as one that makes certificates there; nothing was changed",
            folder.display(),
            wait.as_secs()
        ))),
    }
}

pub fn all(files: &CertFiles, made: &Made, force: bool) -> Result<(), CliError> {
    let folder = &files.folder;
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER)
        .create(folder)
        .map_err(CliError::io(format!("making {}", folder.display())))?;
    let _alone = alone(folder)?;
    let pairs = [("ca", &made.ca), ("router", &made.router), ("worker", &made.worker)];
    let parts = |(who, Pair { cert, key }): (&str, &Pair)| {
        [(files.key(who), key.clone(), KEY), (files.cert(who), cert.clone(), CERT)]
    };
    let parts: Vec<(PathBuf, String, u32)> = pairs.into_iter().flat_map(parts).collect();
    let there = parts.iter().find(|(file, ..)| file.symlink_metadata().is_ok());
    if let Some((file, ..)) = there.filter(|_| !force) {
        return Err(CliError::Refused(format!(
            "{} is there already, and nothing was changed. With --renew there are new certificates for the same CA and the same keys. With --force all are made anew: the router has to be started again, and the workers need the new ca.pem, worker.pem and worker-key.pem",
            file.display()
        )));
    }
    for (file, text, mode) in &parts {
        write(file, text, *mode)?;
    }
    Ok(())
}

/// New certificates beside the keys that are there. Each of them goes with the old ones of the others, wherever this ends.
pub fn certificates(files: &CertFiles, made: &Made) -> Result<(), CliError> {
    for (who, pair) in [("ca", &made.ca), ("router", &made.router), ("worker", &made.worker)] {
        write(&files.cert(who), &pair.cert, CERT)?;
    }
    Ok(())
}

/// Whole or not at all; the mode is there before the text is.
fn write(file: &Path, text: &str, mode: u32) -> Result<(), CliError> {
    let what = format!("writing {}", file.display());
    replace::file(file, text.as_bytes(), mode).map_err(CliError::io(what))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::certs::make;

    #[test]
    fn of_those_who_make_them_at_once_one_does() {
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("a folder");
            let files = CertFiles::new(folder.path().join("certs"));
            let made: Vec<Made> =
                (0..4).map(|_| make::all(&["localhost".to_string()], 1).expect("made")).collect();
            let begin = Barrier::new(made.len());
            let well: Vec<bool> = std::thread::scope(|scope| {
                let write = |made| {
                    begin.wait();
                    all(&files, made, false).is_ok()
                };
                let all: Vec<_> = made.iter().map(|made| scope.spawn(move || write(made))).collect();
                all.into_iter().map(|one| one.join().expect("no panic")).collect()
            });
            assert_eq!(well.iter().filter(|well| **well).count(), 1, "{well:?}");
            let winner = &made[well.iter().position(|well| *well).expect("one")];
            for (who, pair) in [("ca", &winner.ca), ("router", &winner.router), ("worker", &winner.worker)] {
                let read = |file: PathBuf| std::fs::read_to_string(file).expect("there");
                assert!(read(files.cert(who)) == pair.cert && read(files.key(who)) == pair.key, "{who}");
            }
        }
    }

    #[test]
    fn who_holds_the_folder_for_ever_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let again = || alone_within(Duration::from_millis(50), folder.path());
        let held = alone(folder.path()).expect("free").expect("a file system with locks");
        let error = again().expect_err("somebody else has it").to_string();
        assert!(error.contains("nothing was changed"), "{error}");
        drop(held);
        assert!(again().expect("free").is_some());
    }
}
