//! The demo model: carried inside the binary, and written once to the user's cache, since models are mapped from files.
//!
//! In: nothing. Out: its folder, and its draft's, under `$XDG_CACHE_HOME/gaterail/demo-model/DIGEST`; the digest is that of
//! all carried bytes, so that binaries of several versions do not meet. Whatever lies there is compared with the carried
//! bytes at every use, and written again where it differs.

use std::fs;
use std::path::{Path, PathBuf};

use gaterail_router::replace;
use sha2::{Digest, Sha256};

use crate::error::CliError;

const MODE: u32 = 0o644;

/// What a person calls it where a MODEL is wanted.
pub const NAME: &str = "demo";

/// A file of the demo model, from `ops/demo-model`.
macro_rules! carried {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/demo-model/", $path)).as_slice())),*]
    };
}

/// Path in its folder and bytes of every file.
static FILES: [(&str, &[u8]); 12] = carried![
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "model/chat_template.jinja",
    "model/generation_config.json",
    "draft/config.json",
    "draft/model.safetensors",
    "draft/tokenizer.json",
    "draft/tokenizer_config.json",
    "draft/chat_template.jinja",
    "draft/generation_config.json",
];

/// Held-out prompts with their right answers, as JSON lines.
pub const PROMPTS: &str = include_str!("../../ops/demo-model/prompts.jsonl");

/// The model's folder, written if need be.
pub fn path() -> Result<PathBuf, CliError> {
    Ok(unpacked()?.join("model"))
}

/// Its draft's folder, likewise.
pub fn draft() -> Result<PathBuf, CliError> {
    Ok(unpacked()?.join("draft"))
}

/// The folder with all that is carried.
fn unpacked() -> Result<PathBuf, CliError> {
    let folder = cache(&|name| std::env::var_os(name).map(PathBuf::from))?.join(digest());
    unpack(&FILES, &folder)?;
    Ok(folder)
}

/// `gaterail/demo-model` in the user's cache folder. A relative path there counts as none, as the XDG specification has it.
fn cache(var: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, CliError> {
    let folder = |name| var(name).filter(|path| path.is_absolute());
    let base = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    let base = base.ok_or_else(|| {
        CliError::Refused(
            "there is no place for the demo model: neither XDG_CACHE_HOME nor HOME is a folder".to_string(),
        )
    })?;
    Ok(base.join("gaterail/demo-model"))
}

/// The first 16 digits of SHA-256 over names, lengths and bytes.
fn digest() -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in FILES {
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Brings every file into place. Each appears whole or not at all, and one that another process has mapped stays as it is
/// for that process, whoever else writes here at the same time.
fn unpack(files: &[(&str, &[u8])], folder: &Path) -> Result<(), CliError> {
    for (name, bytes) in files {
        let path = folder.join(name);
        if !is(&path, bytes) {
            let what =
                format!("writing the demo model to {} (XDG_CACHE_HOME names another place)", path.display());
            let made = path.parent().map_or(Ok(()), fs::create_dir_all);
            made.and_then(|()| replace::file(&path, bytes, MODE)).map_err(CliError::io(what))?;
        }
    }
    Ok(())
}

fn is(path: &Path, bytes: &[u8]) -> bool {
    let length = fs::metadata(path).map(|metadata| metadata.len());
    length.is_ok_and(|length| length == bytes.len() as u64)
        && fs::read(path).is_ok_and(|content| content == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_the_users() {
        let of = |xdg: Option<&str>, home: Option<&str>| {
            cache(&|name| if name == "HOME" { home } else { xdg }.map(PathBuf::from)).ok()
        };
        let place = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of(Some("/x"), Some("/h")), place("/x/gaterail/demo-model"));
        assert_eq!(of(None, Some("/h")), place("/h/.cache/gaterail/demo-model"));
        assert_eq!(of(Some("relative"), Some("/h")), place("/h/.cache/gaterail/demo-model"));
        assert_eq!(of(None, None), None);
    }

    #[test]
    fn what_is_there_is_left_and_what_differs_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [("model/a", b"first".as_slice()), ("model/b", b"second".as_slice())];
        let read = |name: &str| fs::read(folder.path().join(name)).expect("a file");
        let modified =
            |name: &str| fs::metadata(folder.path().join(name)).and_then(|m| m.modified()).expect("a time");
        unpack(&files, folder.path()).expect("written");
        assert_eq!((read("model/a"), read("model/b")), (b"first".to_vec(), b"second".to_vec()));
        let before = modified("model/b");
        fs::write(folder.path().join("model/a"), b"fiRst").expect("damaged");
        unpack(&files, folder.path()).expect("written again");
        assert_eq!(read("model/a"), b"first");
        assert_eq!(modified("model/b"), before, "a file in order was written again");
        let left: Vec<_> = fs::read_dir(folder.path().join("model")).expect("a folder").flatten().collect();
        assert_eq!(left.len(), 2, "unfinished files were left: {left:?}");
    }

    #[test]
    fn many_at_once_all_find_it_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = vec![7u8; 1 << 20];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    unpack(&[("model/a", &bytes)], folder.path()).expect("written");
                    assert!(is(&folder.path().join("model/a"), &bytes));
                });
            }
        });
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, b"").expect("a file");
        let error = unpack(&[("model/a", b"x")], &file).expect_err("a file is no folder").to_string();
        assert!(error.contains("model/a") && error.contains("XDG_CACHE_HOME"), "{error}");
    }
}
