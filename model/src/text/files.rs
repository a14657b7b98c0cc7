//! Small files of a model folder. In: a path. Out: text or a JSON object, `None` where there is no such file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::error::TextError;

/// Bytes of a configuration or template file.
pub const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Reads `path`, which must not be larger than `limit`.
pub fn bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TextError> {
    let file = path.display().to_string();
    let opened = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened,
    };
    let read = |opened: File| -> std::io::Result<(u64, Vec<u8>)> {
        let size = opened.metadata()?.len();
        let mut content = Vec::new();
        if size <= limit {
            opened.take(limit + 1).read_to_end(&mut content)?;
        }
        Ok((size.max(content.len() as u64), content))
    };
    match opened.and_then(read) {
        Ok((bytes, _)) if bytes > limit => Err(TextError::TooLarge { file, bytes, limit }),
        Ok((_, content)) => Ok(Some(content)),
        Err(source) => Err(TextError::Read { file, source }),
    }
}

pub fn text(path: &Path) -> Result<Option<String>, TextError> {
    let Some(content) = bytes(path, CONFIG_BYTES_MAX)? else { return Ok(None) };
    let text = String::from_utf8(content);
    text.map(Some).map_err(|error| invalid(path, format!("not UTF-8: {error}")))
}

pub fn json_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let Some(content) = bytes(path, CONFIG_BYTES_MAX)? else { return Ok(None) };
    match serde_json::from_slice(&content) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(invalid(path, "not a JSON object".into())),
        Err(error) => Err(invalid(path, format!("not JSON: {error}"))),
    }
}

/// A token as the configuration files write it: a string, or an object with `content`.
pub fn token_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

pub fn invalid(path: &Path, detail: String) -> TextError {
    TextError::Invalid { file: path.display().to_string(), detail }
}
