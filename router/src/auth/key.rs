//! A key: `gr-ID-SECRET`. The secret has 256 random bits and is shown once; what is kept is the SHA-256 of the whole key.
//!
//! A fast hash is right here: there is nothing to guess in 256 random bits, and a slow one would let anybody who sends
//! wrong keys keep the server busy.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "gr";
const ID_BYTES: usize = 4;
const SECRET_BYTES: usize = 32;

/// What a key may do in a minute, and at once; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Requests that are being answered at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
}

/// A key as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// What the key is called where it is listed, logged or revoked; a part of it, and no secret.
    pub id: String,
    pub sha256: KeyHash,
    pub tenant: String,
    /// Seconds since 1970.
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// It may do what is not for everybody who may ask: spread the experts in another way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub operator: bool,
    #[serde(default)]
    pub limits: KeyLimits,
}

/// A key that was just made: the only time that it is whole.
pub struct NewKey {
    pub text: String,
    pub record: KeyRecord,
}

impl NewKey {
    /// Fails where the system has no random numbers.
    pub fn make(tenant: &str, limits: KeyLimits, now: u64) -> Result<NewKey, getrandom::Error> {
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut random)?;
        let (id, secret) = random.split_at(ID_BYTES);
        let id = hex(id);
        let text = format!("{PREFIX}-{id}-{}", hex(secret));
        let sha256 = KeyHash::of(&text);
        let tenant = tenant.to_owned();
        let record = KeyRecord { id, sha256, tenant, created: now, revoked: None, operator: false, limits };
        Ok(NewKey { text, record })
    }
}

/// SHA-256 of a key. Equality takes the same time wherever two differ.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub fn of(key: &str) -> KeyHash {
        KeyHash(Sha256::digest(key.as_bytes()).into())
    }

    pub fn matches(&self, other: &KeyHash) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &KeyHash) -> bool {
        self.matches(other).into()
    }
}

impl Eq for KeyHash {}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> String {
        hex(&hash.0)
    }
}

impl TryFrom<String> for KeyHash {
    type Error = String;

    fn try_from(text: String) -> Result<KeyHash, String> {
        let wrong = || "a SHA-256 has 64 hexadecimal digits".to_string();
        let mut hash = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(KeyHash(hash))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
        text
    })
}
