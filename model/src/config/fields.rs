//! Reading `config.json`, which is untrusted: every number has a type and a limit, every error names the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::file::read_limited;

/// Larger configuration files are refused.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// No published model has a dimension above this.
const DIMENSION_MAX: u64 = 1 << 24;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: not valid JSON: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: {detail}")]
    Invalid { path: PathBuf, detail: String },
}

/// An object of `config.json`, with the way to it for messages.
#[derive(Clone)]
pub struct Fields {
    path: PathBuf,
    /// Such as `text_config.`, empty at the top.
    within: String,
    map: Map<String, Value>,
    /// For files with other words: what is asked for, and what the file calls it behind `prefix`.
    words: &'static [(&'static str, &'static str)],
    prefix: String,
}

impl Fields {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Fields, ConfigError> {
        let text = read_limited(path, CONFIG_BYTES_MAX)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Fields::parse(path, &text)
    }

    /// Parses the text of the file at `path`.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Fields, ConfigError> {
        let path = path.to_path_buf();
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Fields::new(path, map)),
            Ok(_) => Err(ConfigError::Invalid { path, detail: "not a JSON object".into() }),
            Err(source) => Err(ConfigError::Json { path, source }),
        }
    }

    fn new(path: PathBuf, map: Map<String, Value>) -> Fields {
        Fields { path, within: String::new(), map, words: &[], prefix: String::new() }
    }

    /// Fields of a file that has other `words` for them, each behind `prefix`; errors speak the file's language.
    pub(crate) fn translated(
        path: &Path,
        prefix: String,
        map: Map<String, Value>,
        words: &'static [(&'static str, &'static str)],
    ) -> Fields {
        Fields { words, prefix, ..Fields::new(path.to_path_buf(), map) }
    }

    /// An error at `field`.
    pub fn invalid(&self, field: &str, detail: impl std::fmt::Display) -> ConfigError {
        let field = format!("{}{field}", self.within);
        let detail = match self.words.iter().find(|(word, _)| *word == field) {
            Some((_, own)) => format!("{}{own}: {detail}", self.prefix),
            None => format!("{field}: {detail}"),
        };
        ConfigError::Invalid { path: self.path.clone(), detail }
    }

    /// The value of a field; null counts as absent.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn has(&self, field: &str) -> bool {
        self.value(field).is_some()
    }

    /// Whether a field stands there as null, which some configurations mean to differ from absent.
    pub fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    /// A nested object.
    pub fn object(&self, field: &str) -> Result<Option<Fields>, ConfigError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                path: self.path.clone(),
                within: format!("{}{field}.", self.within),
                map: map.clone(),
                words: self.words,
                prefix: self.prefix.clone(),
            })),
            Some(_) => Err(self.invalid(field, "not an object")),
        }
    }

    pub fn text(&self, field: &str) -> Result<Option<&str>, ConfigError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(field, "not a string")),
        }
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.invalid(field, "neither true nor false")),
        }
    }

    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.flag(field)?.unwrap_or(default))
    }

    /// A number of things: 1 to 2^24, or 0 where `least` says so.
    pub fn count_from(&self, field: &str, least: u64) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        // Some files say 4096.0.
        let whole = |number: &f64| number.fract() == 0.0 && (0.0..=DIMENSION_MAX as f64).contains(number);
        match value.as_u64().or_else(|| value.as_f64().filter(whole).map(|number| number as u64)) {
            Some(n) if (least..=DIMENSION_MAX).contains(&n) => Ok(Some(n as usize)),
            _ => {
                Err(self
                    .invalid(field, format!("{value} is not a whole number from {least} to {DIMENSION_MAX}")))
            }
        }
    }

    pub fn count(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.count_from(field, 1)
    }

    pub fn count_or(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.count(field)?.unwrap_or(default))
    }

    /// A number that must be there.
    pub fn need(&self, field: &str) -> Result<usize, ConfigError> {
        self.count(field)?.ok_or_else(|| self.invalid(field, "missing"))
    }

    /// The first of several spellings that is there.
    pub fn need_any(&self, fields: &[&str]) -> Result<usize, ConfigError> {
        for field in fields {
            if let Some(count) = self.count(field)? {
                return Ok(count);
            }
        }
        Err(self.invalid(fields[0], "missing"))
    }

    /// A finite number.
    pub fn number(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.invalid(field, format!("{value} is not a finite number"))),
        }
    }

    pub fn number_or(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.number(field)?.unwrap_or(default))
    }

    /// A number above zero.
    pub fn positive_or(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        let number = self.number_or(field, default)?;
        if number > 0.0 { Ok(number) } else { Err(self.invalid(field, format!("{number} is not above 0"))) }
    }

    /// A list of small whole numbers.
    pub fn counts(&self, field: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let numbers = value.as_array().map(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
        match numbers.flatten() {
            Some(numbers) if numbers.iter().all(|&n| n <= DIMENSION_MAX) => {
                Ok(Some(numbers.into_iter().map(|n| n as usize).collect()))
            }
            _ => Err(self.invalid(field, "not a list of whole numbers")),
        }
    }

    /// A list of strings.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let texts = value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.flatten().map(Some).ok_or_else(|| self.invalid(field, "not a list of strings"))
    }
}
