//! The tokens of a GGUF file with their kinds and scores, checked against each other.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use super::TOKENIZER_BYTES_MAX;
use crate::gguf::{Metadata, Value};

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
/// A longer token takes part in nothing but mischief.
const TOKEN_BYTES_MAX: usize = 8192;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Unknown,
    /// Special: it is never made of text around it.
    Control,
    /// Found in texts as a whole, and shown.
    User,
    /// A row of the embedding that belongs to no token.
    Unused,
    /// `<0x0A>` and its like.
    Byte,
}

#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub id: u32,
    pub text: &'a str,
    pub kind: Kind,
    pub score: f64,
}

/// All tokens by id.
pub struct Vocabulary<'a> {
    tokens: Vec<Token<'a>>,
}

impl<'a> Vocabulary<'a> {
    pub fn read(metadata: &'a Metadata) -> Result<Vocabulary<'a>, String> {
        let list = metadata.list(TOKENS)?.ok_or_else(|| format!("{TOKENS}: missing"))?;
        let kinds = same_length(metadata, KINDS, list.len())?;
        let scores = same_length(metadata, SCORES, list.len())?;
        let mut tokens = Vec::with_capacity(list.len());
        let mut bytes = 0u64;
        for (index, value) in list.iter().enumerate() {
            let text = value.text().ok_or_else(|| format!("{TOKENS}: entry {index} is not a string"))?;
            bytes += text.len() as u64;
            if text.len() > TOKEN_BYTES_MAX || bytes > TOKENIZER_BYTES_MAX {
                return Err(format!("{TOKENS}: entry {index} makes the vocabulary too large"));
            }
            let kind = match kinds {
                Some(kinds) => {
                    kind(&kinds[index]).ok_or_else(|| format!("{KINDS}: entry {index} is none of 1 to 6"))?
                }
                None => Kind::Normal,
            };
            let score = match scores {
                Some(scores) => scores[index].number().filter(|score| !score.is_nan()),
                None => Some(0.0),
            };
            let score = score.ok_or_else(|| format!("{SCORES}: entry {index} is not a number"))?;
            let id = u32::try_from(index).map_err(|_| format!("{TOKENS}: too many"))?;
            tokens.push(Token { id, text, kind, score });
        }
        Ok(Vocabulary { tokens })
    }

    pub fn tokens(&self) -> impl Iterator<Item = Token<'a>> {
        self.tokens.iter().copied()
    }

    /// The token that `key` names by its id.
    pub fn named(&self, metadata: &Metadata, key: &str) -> Result<Option<Token<'a>>, String> {
        let Some(id) = metadata.count(key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        token
            .copied()
            .map(Some)
            .ok_or_else(|| format!("{key}: {id}, but there are {} tokens", self.tokens.len()))
    }

    /// text -> id, without the rows that are no tokens. Two tokens of one text cannot be told apart.
    pub fn ids(&self) -> Result<HashMap<&'a str, u32>, String> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for token in self.tokens.iter().filter(|token| token.kind != Kind::Unused) {
            if let Some(other) = ids.insert(token.text, token.id) {
                return Err(format!(
                    "{TOKENS}: {:?} is both token {other} and token {}",
                    token.text, token.id
                ));
            }
        }
        Ok(ids)
    }

    /// The same as the `vocab` of a `tokenizer.json`.
    pub fn json(&self) -> Map<String, Json> {
        let tokens = self.tokens.iter().filter(|token| token.kind != Kind::Unused);
        tokens.map(|token| (token.text.to_owned(), token.id.into())).collect()
    }
}

fn same_length<'a>(metadata: &'a Metadata, key: &str, length: usize) -> Result<Option<&'a [Value]>, String> {
    match metadata.list(key)? {
        Some(list) if list.len() != length => {
            Err(format!("{key}: {} entries for {length} tokens", list.len()))
        }
        list => Ok(list),
    }
}

fn kind(value: &Value) -> Option<Kind> {
    Some(match value.count()? {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::User,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => return None,
    })
}
