//! From what a person calls a model to its place on disk.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use gaterail_model::source::gguf_files;

use crate::demo;
use crate::error::CliError;
use crate::hub::{HubConfig, resolve_local, why_not_local};

const WHAT: &str = "a model is a GGUF file, or a folder with config.json and *.safetensors";

/// Whether one word alone must be a model, and not a prompt: `demo`, whatever exists on disk, and what looks like a name or
/// a path. What the cache has plays no part, so that the same words mean the same tomorrow.
pub fn is_model(word: &str) -> bool {
    let ends = [".gguf", ".safetensors"];
    let one_word = !word.is_empty() && !word.contains(char::is_whitespace);
    let named = one_word && (word.contains('/') || ends.iter().any(|end| word.ends_with(end)));
    word == demo::NAME || named || Path::new(word).exists()
}

/// `demo`, a folder, a GGUF file, or `ORG/NAME[@REVISION]` as the cache has it.
pub fn resolve(model: &str) -> Result<PathBuf, CliError> {
    if model == demo::NAME {
        return demo::path();
    }
    let path = Path::new(model);
    if path.is_dir() {
        if !path.join("config.json").exists() && gguf_files(path).is_empty() {
            return Err(CliError::Refused(format!("{model} has no config.json; {WHAT}")));
        }
        return Ok(path.to_path_buf());
    }
    if model.contains("://") {
        return Err(CliError::Refused(format!(
            "{model} is an address; give a folder, or ORG/NAME after `gaterail pull`"
        )));
    }
    if path.is_file() {
        if begins_like_gguf(path) {
            return Ok(path.to_path_buf());
        }
        return Err(CliError::Refused(match path.extension().and_then(|end| end.to_str()) {
            Some("gguf") => format!("{model} is called a GGUF file, but does not begin like one"),
            Some("safetensors") => {
                let folder =
                    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
                format!("{model} is one file of a model; give its folder: {}", folder.display())
            }
            _ => format!("{model} is a file; {WHAT}"),
        }));
    }
    let config = HubConfig::from_env(None)?;
    if let Some(folder) = resolve_local(model, &config) {
        return Ok(folder);
    }
    if let Some(why) = why_not_local(model, &config) {
        let way = format!("Go on with:  gaterail pull {model}");
        return Err(CliError::Refused(format!("{model} is not complete in the cache: {why}. {way}")));
    }
    let looks_like_a_name = model.split('/').count() == 2 && !model.starts_with(['.', '/', '~']);
    Err(CliError::Refused(match looks_like_a_name {
        true => {
            format!("{model} is neither a folder nor in the cache. Fetch it:  gaterail pull {model}")
        }
        false => format!(
            "there is no folder {model:?}, and it is no ORG/NAME; `demo` is the model that is always there"
        ),
    }))
}

/// Files keep their kind whatever they are called; those of a cache are called by their checksum.
fn begins_like_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

#[cfg(test)]
mod tests {
    use super::is_model;

    #[test]
    fn one_word_is_a_model_where_it_looks_like_one() {
        for model in
            ["demo", "Qwen/Qwen3-30B-A3B", "org/name@v1", "./demo", "/no/such/folder", "x.gguf", "src"]
        {
            assert!(is_model(model), "{model}");
        }
        for prompt in ["", "Hello", "What is 27 + 58?", "demo ", "either this / or that", "-", "a\nb/c"] {
            assert!(!is_model(prompt), "{prompt:?}");
        }
    }
}
