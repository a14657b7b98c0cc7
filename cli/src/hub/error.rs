//! What can go wrong on the way from a hub to the disk, told as the person at the terminal needs it: what
//! happened, where, and what to do next. No message ever contains a token or the signed part of an address.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::progress::bytes_text;

const GOES_ON: &str = "What has arrived is kept: run the same command again, and it goes on from there.";
const STARTS_AGAIN: &str = "The cache is on a file system without locks, where parts of a file are not kept: the \
    same command begins it anew.";

#[derive(Debug, Error)]
pub enum HubError {
    #[error(
        "`{given}` is not the name of a model on the hub: {why}. Write ORG/NAME or ORG/NAME@REVISION, \
         for example Qwen/Qwen3-30B-A3B."
    )]
    BadName { given: String, why: &'static str },

    #[error("{name}: {why}")]
    BadSetting { name: String, why: String },

    #[error("{0}")]
    Denied(Box<Denied>),

    #[error("the hub did not accept the token from {source_name} (HTTP {status}). {hint}")]
    TokenRefused { source_name: String, status: u16, hint: String },

    #[error(
        "there is no model {repo} at {endpoint} (HTTP {status}). Check the spelling, upper and lower case \
         too.\n  A private model looks the same from outside: {token}"
    )]
    NoSuchRepo { repo: String, endpoint: String, status: u16, token: String },

    #[error(
        "{repo} has no revision `{revision}`. It may be a branch, a tag, a commit or refs/pr/N; \
         {endpoint}/{repo}/commits/main lists them."
    )]
    NoSuchRevision { repo: String, revision: String, endpoint: String },

    #[error("{endpoint} cannot be reached: {why}.\n  {hint}")]
    Unreachable { endpoint: String, why: String, hint: String },

    #[error(
        "HF_HUB_OFFLINE is set, and {repo} is not complete in {}: {missing}. Pull it once with the network, \
         or set HF_HUB_CACHE to the folder that has it.",
        .cache.display()
    )]
    NotInCache { repo: String, cache: PathBuf, missing: String },

    #[error("{what}: the hub answered HTTP {status}{said} after {attempts} attempt(s).")]
    Answered { what: String, status: u16, said: String, attempts: u32 },

    #[error(
        "{file} stopped at {} of {} after {attempts} attempts: {why}.\n  {}",
        bytes_text(*.have), bytes_text(*.size), if *.kept { GOES_ON } else { STARTS_AGAIN }
    )]
    Interrupted { file: String, have: u64, size: u64, attempts: u32, why: String, kept: bool },

    #[error(
        "{file} arrived damaged twice, and was removed: its checksum should be {expected} and is {found}. \
         A proxy or mirror on the way may be changing it; the endpoint in use is {endpoint}."
    )]
    Checksum { file: String, expected: String, found: String, endpoint: String },

    #[error(
        "{file}: the hub's listing says {listed} bytes, the download says {sent}. Nothing of it is used."
    )]
    SizeDiffers { file: String, listed: u64, sent: u64 },

    #[error("the answer to {what} cannot be used: {why}.")]
    BadAnswer { what: String, why: String },

    #[error("the repository lists a file named `{name}`, which is refused: {why}. Nothing was downloaded.")]
    BadFileName { name: String, why: &'static str },

    #[error("{repo} cannot be served: {why}")]
    Unusable { repo: String, why: String },

    #[error(
        "not enough room in {}: {} are needed (and {} should stay free), {} are free. Free some, or set \
         HF_HUB_CACHE to a larger disk.",
        .folder.display(), bytes_text(*.needed), bytes_text(super::limits::DISK_MARGIN_BYTES), bytes_text(*.free)
    )]
    NoRoom { folder: PathBuf, needed: u64, free: u64 },

    #[error(
        "the disk is full: {} could not be written ({source}).\n  What has arrived is kept: free some room and \
         run the same command again, or set HF_HUB_CACHE to a larger disk.",
        .path.display()
    )]
    DiskFull { path: PathBuf, source: io::Error },

    #[error("{} could not be {action}: {source}.", .path.display())]
    Disk { action: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "another process has been loading {file} for hours and holds {}. If none is running, remove that file.",
        .lock.display()
    )]
    Locked { file: String, lock: PathBuf },

    /// Another download of the same pull failed, and that one is reported.
    #[error("stopped")]
    Stopped,
}

impl HubError {
    /// The disk's errors; the one of a full disk has advice of its own.
    pub fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            _ => Self::Disk { action, path, source },
        }
    }
}

/// The hub knows the model but does not hand it out.
#[derive(Debug, Error)]
#[error(
    "the hub does not hand out {repo}, which is {what} (HTTP {status}{said}).\n  \
     1. Open {page} in a browser, log in, and accept its licence there.\n  \
     2. Create a token that may read it at {endpoint}/settings/tokens.\n  \
     3. Set HF_TOKEN to that token, and run the command again.\n  {token}"
)]
pub struct Denied {
    pub repo: String,
    /// How much the hub gives away: it may hide whether the model exists.
    pub what: &'static str,
    pub status: u16,
    pub said: String,
    pub page: String,
    pub endpoint: String,
    pub token: String,
}
