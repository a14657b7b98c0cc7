//! From what a person calls a model to its folder.

use std::path::{Path, PathBuf};

use crate::error::CliError;
use crate::hub::{HubConfig, resolve_local, why_not_local};

/// A folder, or `ORG/NAME[@REVISION]` as the cache has it.
pub fn resolve(model: &str) -> Result<PathBuf, CliError> {
    let path = Path::new(model);
    if path.is_dir() {
        if !path.join("config.json").exists() {
            let what = "a model is a folder with config.json and *.safetensors";
            return Err(CliError::Refused(format!("{model} has no config.json; {what}")));
        }
        return Ok(path.to_path_buf());
    }
    if model.contains("://") {
        return Err(CliError::Refused(format!(
            "{model} is an address; give a folder, or ORG/NAME after `gaterail pull`"
        )));
    }
    if path.is_file() {
        return Err(CliError::Refused(match path.extension().and_then(|end| end.to_str()) {
            Some("gguf") => format!("{model}: GGUF files are not read yet; give a Hugging Face folder"),
            Some("safetensors") => {
                let folder =
                    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
                format!("{model} is one file of a model; give its folder: {}", folder.display())
            }
            _ => format!("{model} is a file; a model is a folder with config.json and *.safetensors"),
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
        false => format!("there is no folder {model:?}, and it is no ORG/NAME"),
    }))
}
