//! Log-probabilities in the two shapes of OpenAI's interface.

use std::sync::Arc;

use gaterail_model::text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::api::{Piece, PromptLogprob};

/// How tokens are written in logprobs.
#[derive(Clone)]
pub struct TokenNames {
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// `token_id:17` instead of text, so that two tokens with one text stay two.
    pub as_ids: bool,
    /// Special tokens have no text.
    pub skip_special: bool,
}

impl TokenNames {
    fn bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_bytes(id)).unwrap_or_default()
    }

    /// Characters that a token stands for inside a text: those that begin with it.
    pub fn characters(&self, id: u32) -> usize {
        // Characters begin with a byte that continues none.
        self.bytes(id).iter().filter(|byte| **byte & 0xc0 != 0x80).count()
    }

    /// The same in the text of an answer.
    pub fn width(&self, id: u32) -> usize {
        let special = || self.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.is_special(id));
        if self.skip_special && special() { 0 } else { self.characters(id) }
    }

    fn name(&self, id: u32, bytes: &[u8]) -> String {
        if self.as_ids || self.tokenizer.is_none() {
            return format!("token_id:{id}");
        }
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn entry(&self, id: u32, logprob: f32) -> Map<String, Value> {
        let bytes = self.bytes(id);
        let name = self.name(id, &bytes);
        Map::from_iter([
            ("token".to_owned(), json!(name)),
            ("logprob".to_owned(), number(logprob)),
            ("bytes".to_owned(), json!(bytes)),
        ])
    }

    /// `choices[].logprobs.content[]` of a chat.
    pub fn chat(&self, piece: &Piece) -> Value {
        let mut entry = self.entry(piece.token, piece.logprob.unwrap_or(f32::NEG_INFINITY));
        let top = piece.top.iter().map(|(id, logprob)| Value::Object(self.entry(*id, *logprob))).collect();
        entry.insert("top_logprobs".to_owned(), Value::Array(top));
        Value::Object(entry)
    }
}

/// Infinity has no JSON; OpenAI writes -9999 for "never".
fn number(logprob: f32) -> Value {
    json!(if logprob.is_finite() { f64::from(logprob) } else { -9999.0 })
}

/// `choices[].logprobs` of a completion: four lists of one length.
#[derive(Clone, Default)]
pub struct CompletionLogprobs {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<Value>,
    /// Characters so far.
    offset: usize,
}

impl CompletionLogprobs {
    /// The first token of a prompt, which has no probability; `width` characters of the text are its own.
    pub fn first(&mut self, names: &TokenNames, id: u32, width: usize) {
        self.push(names, (id, width), Value::Null, Value::Null);
    }

    pub fn prompt(&mut self, names: &TokenNames, token: &PromptLogprob, width: usize) {
        self.known(names, (token.token, width), token.logprob, &token.top);
    }

    pub fn piece(&mut self, names: &TokenNames, piece: &Piece) {
        let token = (piece.token, names.width(piece.token));
        self.known(names, token, piece.logprob.unwrap_or(f32::NEG_INFINITY), &piece.top);
    }

    fn known(&mut self, names: &TokenNames, token: (u32, usize), logprob: f32, top: &[(u32, f32)]) {
        let own = (token.0, logprob);
        let others = top.iter().filter(|(other, _)| *other != own.0).chain([&own]);
        let mut all: Vec<(u32, f32)> = others.copied().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let named = |(id, logprob): (u32, f32)| (names.name(id, &names.bytes(id)), number(logprob));
        let top = Value::Object(all.into_iter().map(named).collect());
        self.push(names, token, number(logprob), top);
    }

    fn push(&mut self, names: &TokenNames, (id, width): (u32, usize), logprob: Value, top: Value) {
        let name = names.name(id, &names.bytes(id));
        self.offsets.push(self.offset.into());
        self.offset += width;
        self.tokens.push(name.into());
        self.logprobs.push(logprob);
        self.top.push(top);
    }

    /// What came since the last call.
    pub fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.logprobs),
            "top_logprobs": std::mem::take(&mut self.top),
            "text_offset": std::mem::take(&mut self.offsets),
        })
    }
}
