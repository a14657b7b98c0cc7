//! `generation_config.json`: how the model's makers would sample.

use std::path::Path;

use super::{ConfigError, Fields};
use crate::gguf::GgufFile;

/// Sampling defaults; `None` where the file is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all; without the file: no.
    pub sample: bool,
    /// Whether the file says in so many words not to sample (`do_sample: false`).
    pub greedy: bool,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// Tokens that end an answer: `eos_token_id`, or that of config.json where this file has none.
    pub stop_ids: Vec<u32>,
}

impl GenerationDefaults {
    /// Reads `general.sampling` of a GGUF file; the tokenizer knows the tokens that end an answer.
    pub fn from_gguf(file: &GgufFile) -> Result<GenerationDefaults, ConfigError> {
        let number = |name: &str| {
            let read = file.metadata().number(&format!("general.sampling.{name}"));
            let invalid = |detail| ConfigError::Invalid { path: file.path().to_path_buf(), detail };
            read.map(|number| number.map(|number| number as f32)).map_err(invalid)
        };
        let temperature = number("temp")?;
        Ok(GenerationDefaults {
            sample: temperature.is_some_and(|temperature| temperature > 0.0),
            greedy: temperature == Some(0.0),
            temperature,
            top_p: number("top_p")?,
            // Some say -1 for all.
            top_k: number("top_k")?.map(|top_k| top_k.max(0.0) as u32),
            min_p: number("min_p")?,
            repetition_penalty: number("penalty_repeat")?,
            stop_ids: Vec::new(),
        })
    }

    /// Reads the file of a model folder; a model need not have one.
    pub fn from_folder(folder: &Path) -> Result<GenerationDefaults, ConfigError> {
        let path = folder.join("generation_config.json");
        let config = folder.join("config.json");
        if !path.is_file() {
            let stop_ids = if config.is_file() { stop_ids(&Fields::read(&config)?)? } else { Vec::new() };
            return Ok(GenerationDefaults { stop_ids, ..GenerationDefaults::default() });
        }
        let fields = Fields::read(&path)?;
        let own = stop_ids(&fields)?;
        let number = |field: &str| Ok::<_, ConfigError>(fields.number(field)?.map(|number| number as f32));
        // Some say -1 for all.
        let top_k = match fields.number("top_k")? {
            Some(-1.0) => Some(0),
            _ => fields.count_from("top_k", 0)?.map(|top_k| top_k as u32),
        };
        Ok(GenerationDefaults {
            sample: fields.flag_or("do_sample", false)?,
            greedy: !fields.flag_or("do_sample", true)?,
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            stop_ids: if own.is_empty() && config.is_file() {
                stop_ids(&Fields::read(&config)?)?
            } else {
                own
            },
        })
    }
}

/// `eos_token_id`: one id or a list.
fn stop_ids(fields: &Fields) -> Result<Vec<u32>, ConfigError> {
    let ids = match fields.value("eos_token_id") {
        Some(serde_json::Value::Array(_)) => fields.counts("eos_token_id")?.unwrap_or_default(),
        _ => fields.count_from("eos_token_id", 0)?.into_iter().collect(),
    };
    Ok(ids.into_iter().map(|id| id as u32).collect())
}
