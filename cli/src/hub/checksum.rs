//! What a file's content must hash to: the name of its blob is its checksum.
//!
//! Large files carry the SHA-256 of their bytes; small ones the SHA-1 that git gives a blob, which hashes the
//! header `blob LENGTH\0` before the bytes. A hub that sends neither names its blobs as it likes, and only
//! the length can be checked.

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::name::is_hex;

/// Name of a blob in the cache, and what it says about the content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BlobId {
    Sha256(String),
    GitSha1(String),
    /// No checksum that is known here.
    Opaque(String),
}

impl BlobId {
    /// From an `ETag` header or a listing. `None` if it is not a plain name: with dots in it, it could be that
    /// of another blob's `ETAG.incomplete`.
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        match id {
            _ if is_hex(id, 64) => Some(Self::Sha256(id.to_owned())),
            _ if is_hex(id, 40) => Some(Self::GitSha1(id.to_owned())),
            "" => None,
            _ if id.len() > 128 || !id.chars().all(named) => None,
            _ => Some(Self::Opaque(id.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(id) | Self::GitSha1(id) | Self::Opaque(id) => id,
        }
    }

    /// Whether it says nothing about the content.
    pub fn is_opaque(&self) -> bool {
        matches!(self, Self::Opaque(_))
    }

    /// True if both are checksums of one kind and differ.
    pub fn contradicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sha256(a), Self::Sha256(b)) | (Self::GitSha1(a), Self::GitSha1(b)) => a != b,
            _ => false,
        }
    }

    /// Starts the check of a file of `size` bytes.
    pub fn checker(&self, size: u64) -> Checker {
        let sum = match self {
            Self::Sha256(_) => Sum::Sha256(Sha256::new()),
            Self::GitSha1(_) => Sum::Sha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
            Self::Opaque(_) => Sum::None,
        };
        Checker { sum, expected: self.as_str().to_owned() }
    }
}

/// Takes the bytes of a file in order.
pub struct Checker {
    sum: Sum,
    expected: String,
}

enum Sum {
    Sha256(Sha256),
    Sha1(Sha1),
    None,
}

impl Checker {
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.sum {
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Sha1(sum) => sum.update(bytes),
            Sum::None => {}
        }
    }

    /// `Err` carries the sum that was found.
    pub fn finish(self) -> Result<(), String> {
        let found = match self.sum {
            Sum::Sha256(sum) => hex(&sum.finalize()),
            Sum::Sha1(sum) => hex(&sum.finalize()),
            Sum::None => return Ok(()),
        };
        if found == self.expected { Ok(()) } else { Err(found) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
