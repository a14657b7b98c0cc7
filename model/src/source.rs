//! A model on disk, open: a Hugging Face folder or a GGUF file. What a model is made of comes out of either the same way.

use std::path::{Path, PathBuf};

use crate::arch::read_spec;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{ConfigError, GenerationDefaults};
use crate::gguf::GgufFile;
use crate::spec::ModelSpec;
use crate::text::{ChatTemplate, TextError, Tokenizer};

const CONFIG: &str = "config.json";

/// Where a model's parts are read from.
pub enum ModelSource {
    /// `config.json`, safetensors files, `tokenizer.json` and what belongs to them.
    Folder(PathBuf),
    /// Everything in one file, its header read.
    Gguf(Box<GgufFile>),
}

impl ModelSource {
    /// A path to a folder, to a GGUF file, or to a folder that holds one GGUF file and no `config.json`.
    pub fn open(path: &Path) -> Result<ModelSource, CheckpointError> {
        if !path.is_dir() {
            return Ok(ModelSource::Gguf(Box::new(GgufFile::open(path)?)));
        }
        if path.join(CONFIG).exists() {
            return Ok(ModelSource::Folder(path.to_path_buf()));
        }
        match gguf_files(path).as_slice() {
            // What is missing is said by whoever reads it.
            [] => Ok(ModelSource::Folder(path.to_path_buf())),
            [only] => Ok(ModelSource::Gguf(Box::new(GgufFile::open(only)?))),
            [first, ..] => {
                let name = first.file_name().unwrap_or_default().to_string_lossy();
                let detail = format!("several GGUF files and no {CONFIG}; say which one ({name}, …)");
                Err(CheckpointError::Invalid { path: path.to_path_buf(), detail })
            }
        }
    }

    pub fn spec(&self) -> Result<ModelSpec, ConfigError> {
        match self {
            ModelSource::Folder(folder) => read_spec(&folder.join(CONFIG)),
            ModelSource::Gguf(file) => file.spec(),
        }
    }

    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        match self {
            ModelSource::Folder(folder) => Checkpoint::open(folder),
            ModelSource::Gguf(file) => Ok(Checkpoint::of_gguf(file)),
        }
    }

    /// Whether there is a tokenizer; token ids do without.
    pub fn has_tokenizer(&self) -> bool {
        match self {
            ModelSource::Folder(folder) => folder.join("tokenizer.json").is_file(),
            ModelSource::Gguf(file) => Tokenizer::is_in_gguf(file),
        }
    }

    pub fn tokenizer(&self) -> Result<Tokenizer, TextError> {
        match self {
            ModelSource::Folder(folder) => Tokenizer::from_folder(folder),
            ModelSource::Gguf(file) => Tokenizer::from_gguf(file),
        }
    }

    /// `None` where the model has none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, TextError> {
        match self {
            ModelSource::Folder(folder) => ChatTemplate::from_folder(folder),
            ModelSource::Gguf(file) => ChatTemplate::from_gguf(file),
        }
    }

    /// How the model's makers would sample.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, ConfigError> {
        match self {
            ModelSource::Folder(folder) => GenerationDefaults::from_folder(folder),
            ModelSource::Gguf(file) => GenerationDefaults::from_gguf(file),
        }
    }
}

/// The GGUF files in a folder, by name.
pub fn gguf_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "gguf"))
        .collect();
    files.sort();
    files
}
