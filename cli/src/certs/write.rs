//! Certificates into files: keys that only their owner reads, and none that takes another's place unasked.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gaterail_cluster::tls::CertFiles;

use super::make::{Made, Pair};
use crate::error::CliError;

const FOLDER: u32 = 0o700;
const CERT: u32 = 0o644;
const KEY: u32 = 0o600;

pub fn all(files: &CertFiles, made: &Made, force: bool) -> Result<(), CliError> {
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
    let folder = &files.folder;
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER)
        .create(folder)
        .map_err(CliError::io(format!("making {}", folder.display())))?;
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
    // Nobody has this name, whoever was killed here before: in a container every process may have the number 1.
    let id = getrandom::u64()
        .map_err(|error| CliError::Refused(format!("the system has no random numbers: {error}")))?;
    let beside = file.with_extension(format!("pem.{id:016x}"));
    let what = || format!("writing {} by way of {}", file.display(), beside.display());
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(CliError::io(what()))?;
    let written = new.write_all(text.as_bytes()).and_then(|()| new.sync_all());
    let written = written.and_then(|()| std::fs::rename(&beside, file));
    written.map_err(|error| {
        // Half of a file is nobody's.
        let _ = std::fs::remove_file(&beside);
        CliError::Io { what: what(), source: error }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        // As one with this process's number may have left it.
        std::fs::write(folder.path().join(format!("ca.pem.{}", std::process::id())), "half")
            .expect("written");
        write(&file, "whole", CERT).expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("there"), "whole");
    }
}
