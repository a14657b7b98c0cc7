//! Names: the repository that the user asks for, and the file names and commits that a server sends.
//!
//! Each is parsed once into a type that cannot leave its folder; nothing else in this module builds a path.

use std::fmt;

use super::error::HubError;
use super::limits::{PATH_BYTES_MAX, PATH_DEPTH_MAX, PATH_PART_BYTES_MAX};

/// The revision of a name that gives none.
pub const DEFAULT_REVISION: &str = "main";

/// `ORG/NAME@REVISION`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoSpec {
    /// `ORG/NAME`.
    id: String,
    /// Branch, tag, `refs/pr/N`, or commit.
    revision: String,
}

impl RepoSpec {
    pub fn parse(given: &str) -> Result<Self, HubError> {
        let bad = |why| HubError::BadName { given: visible(given), why };
        let (id, revision) = match given.split_once('@') {
            Some((id, revision)) => (id, revision),
            None => (given, DEFAULT_REVISION),
        };
        if id.contains("://") {
            return Err(bad("that is an address"));
        }
        let (org, name) = id.split_once('/').ok_or_else(|| bad("the organisation is missing"))?;
        check_id_part(org).and_then(|()| check_id_part(name)).map_err(bad)?;
        check_revision(revision).map_err(bad)?;
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The folder of this repository inside a cache: `models--ORG--NAME`.
    pub fn folder_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }
}

/// As the user would type it: the default revision is left out.
impl fmt::Display for RepoSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != DEFAULT_REVISION { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

fn check_id_part(part: &str) -> Result<(), &'static str> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match part {
        "" => Err("a part of it is empty"),
        _ if part.len() > 96 => Err("a part of it is longer than 96 characters"),
        _ if part.contains('/') => Err("it has more than one `/`"),
        _ if !part.chars().all(good) => Err("only letters, digits, `-`, `_` and `.` are allowed"),
        _ if part.contains("..") || part.contains("--") => Err("`..` and `--` are not allowed"),
        _ if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) => {
            Err("a part of it starts or ends with `-` or `.`")
        }
        _ if part.ends_with(".git") => Err("it ends in `.git`"),
        _ => Ok(()),
    }
}

fn check_revision(revision: &str) -> Result<(), &'static str> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let part_good = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.contains("..");
    match revision {
        "" => Err("the revision after `@` is empty"),
        _ if revision.len() > 200 => Err("the revision is longer than 200 characters"),
        _ if !revision.chars().all(good) => Err("the revision has characters that no branch or tag has here"),
        _ if !revision.split('/').all(part_good) => Err("the revision is not a branch, tag or commit"),
        _ => Ok(()),
    }
}

/// A full commit: 40 lowercase hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit(String);

impl Commit {
    pub fn parse(text: &str) -> Option<Self> {
        is_hex(text, 40).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file's name inside a repository: relative, `/`-separated, without a way out of the folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(String);

impl RepoPath {
    pub fn parse(name: &str) -> Result<Self, HubError> {
        match path_fault(name) {
            None => Ok(Self(name.to_owned())),
            Some(why) => Err(HubError::BadFileName { name: visible(name), why }),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How many folders deep it lies.
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn path_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > PATH_BYTES_MAX || name.split('/').any(|part| part.len() > PATH_PART_BYTES_MAX) {
        return Some("it is too long");
    }
    if name.starts_with('/') {
        return Some("it is an absolute path");
    }
    if name.contains('\\') {
        return Some("it contains a backslash");
    }
    if name.chars().any(|c| c.is_control() || is_direction_mark(c)) {
        return Some("it contains characters that cannot be shown");
    }
    if name.split('/').count() > PATH_DEPTH_MAX {
        return Some("it lies too many folders deep");
    }
    name.split('/').find_map(|part| match part.as_bytes() {
        b"" => Some("it has an empty part"),
        b"." | b".." => Some("it leaves its folder"),
        [drive, b':', ..] if drive.is_ascii_alphabetic() => Some("it names a drive"),
        _ => None,
    })
}

/// Marks that make a terminal show a text in another order than it is stored.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A foreign text made safe to print: one line, no control characters, not endless.
pub fn visible(text: &str) -> String {
    let hidden = |c: char| c.is_control() || is_direction_mark(c);
    let mut shown: String = text
        .chars()
        .take(super::limits::SERVER_TEXT_CHARS_MAX)
        .map(|c| if hidden(c) { '\u{fffd}' } else { c })
        .collect();
    if shown.len() < text.len() && text.chars().count() > super::limits::SERVER_TEXT_CHARS_MAX {
        shown.push('…');
    }
    shown
}

/// A path segment or revision as it stands in a URL; `keep` says which punctuation stays.
pub fn percent_encoded(text: &str, keep: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
