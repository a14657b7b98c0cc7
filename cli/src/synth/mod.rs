//! `gaterail synth`: a random checkpoint of any shape, so that a rig can be measured before a model is downloaded.

mod shapes;
mod tokenizer;
mod values;
mod write;

use std::path::{Path, PathBuf};

use clap::Args;
use gaterail_model::arch::parse_spec;
use gaterail_model::config::Fields;
use gaterail_model::spec::ModelSpec;
use gaterail_model::weights::account;
use serde_json::{Map, Value};

use crate::error::CliError;
use crate::progress::bytes_text;
use crate::{machine, terminal};

/// Write a random checkpoint of a real shape
///
/// Speed and memory do not depend on what weights say, so that a machine can be measured before a model is downloaded.
/// What such a model writes is noise.
#[derive(Args, Debug)]
pub struct SynthArgs {
    /// A config.json, or the folder that holds it, whose shape to take
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    pub config: Option<PathBuf>,

    /// A known shape; --list shows them
    #[arg(long, value_name = "NAME")]
    pub shape: Option<String>,

    /// Show the known shapes
    #[arg(long)]
    pub list: bool,

    /// The folder to write; new or empty
    pub out: Option<PathBuf>,

    /// Fewer layers than the shape has
    #[arg(long, value_name = "N")]
    pub layers: Option<u64>,

    /// Element type of weights that are not quantised
    #[arg(long, value_name = "TYPE", value_parser = ["bf16", "f16", "f32"])]
    pub dtype: Option<String>,

    /// Bytes of one shard, at most (a tensor is never cut)
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    pub shard_bytes: u64,

    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
}

pub fn run(args: &SynthArgs) -> Result<(), CliError> {
    if args.list {
        return shapes::list();
    }
    let Some(out) = &args.out else {
        return Err(CliError::Usage("give the folder OUT to write".to_string()));
    };
    let (origin, text) = read_shape(args)?;
    let config = adjusted(&origin, &text, args)?;
    let text = format!("{:#}\n", Value::Object(config.clone()));
    let spec = parse_spec(&Fields::parse(&origin, text.as_bytes())?)?;
    let bytes: u64 = account(&spec, None).values().map(|share| share.bytes).sum();
    let draft = prepare(out, bytes)?;
    let written = write_model(&spec, &text, &draft, args);
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&draft);
    }
    let has_tokenizer = written?;
    std::fs::rename(&draft, out).map_err(CliError::io(out.display().to_string()))?;
    terminal::print(&format!("{}\n", out.display()))?;
    let prompt = if has_tokenizer { "\"Hello\"" } else { "--tokens 1,2,3" };
    terminal::note(&format!(
        "Try:  gaterail inspect {0}\n      gaterail generate {0} {prompt}",
        out.display()
    ));
    Ok(())
}

/// Everything into one folder; the result says whether it has a tokenizer.
fn write_model(spec: &ModelSpec, config: &str, folder: &Path, args: &SynthArgs) -> Result<bool, CliError> {
    std::fs::create_dir_all(folder).map_err(CliError::io(folder.display().to_string()))?;
    write_text(&folder.join("config.json"), config)?;
    let has_tokenizer = tokenizer::write(folder, spec.vocab)?;
    write::weights(spec, folder, args.shard_bytes, args.seed)?;
    Ok(has_tokenizer)
}

/// The configuration's text and where it came from.
fn read_shape(args: &SynthArgs) -> Result<(PathBuf, String), CliError> {
    match (&args.config, &args.shape) {
        (Some(path), _) => {
            let path = &if path.is_dir() { path.join("config.json") } else { path.clone() };
            let text = std::fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))?;
            Ok((path.clone(), text))
        }
        (None, Some(name)) => Ok((PathBuf::from(name), shapes::find(name)?.to_string())),
        (None, None) => {
            Err(CliError::Usage("give --shape NAME or --config FILE; --list shows the shapes".to_string()))
        }
    }
}

/// The configuration with what the flags change.
fn adjusted(origin: &Path, text: &str, args: &SynthArgs) -> Result<Map<String, Value>, CliError> {
    let invalid = |error: String| CliError::Refused(format!("{}: {error}", origin.display()));
    let value: Value = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let Value::Object(mut config) = value else { return Err(invalid("not a JSON object".to_string())) };
    if let Some(layers) = args.layers {
        cut_layers(&mut config, layers).map_err(invalid)?;
        if let Some(Value::Object(inner)) = config.get_mut("text_config") {
            cut_layers(inner, layers).map_err(invalid)?;
        }
    }
    if let Some(Value::Object(quantization)) = config.get_mut("quantization_config") {
        // GPTQ's groups are written in order.
        quantization.entry("desc_act").and_modify(|desc_act| *desc_act = false.into());
    }
    if let Some(dtype) = &args.dtype {
        let name = match dtype.as_str() {
            "f32" => "float32",
            "f16" => "float16",
            _ => "bfloat16",
        };
        config.remove("dtype");
        config.insert("torch_dtype".to_string(), name.into());
    }
    Ok(config)
}

/// Fewer layers; lists with an entry for each become shorter too.
fn cut_layers(config: &mut Map<String, Value>, layers: u64) -> Result<(), String> {
    let Some(count) = config.get("num_hidden_layers").and_then(Value::as_u64) else { return Ok(()) };
    if layers == 0 || layers > count {
        return Err(format!("--layers {layers}: the shape has 1 to {count}"));
    }
    for name in ["layer_types", "no_rope_layers"] {
        if let Some(Value::Array(list)) = config.get_mut(name) {
            list.truncate(layers as usize);
        }
    }
    config.insert("num_hidden_layers".to_string(), layers.into());
    Ok(())
}

/// Checks that the folder is new or empty and its disk has room; the draft beside it, which becomes the folder at the end.
fn prepare(out: &Path, bytes: u64) -> Result<PathBuf, CliError> {
    if out.exists() {
        let mut entries = std::fs::read_dir(out).map_err(CliError::io(out.display().to_string()))?;
        if entries.next().is_some() {
            return Err(CliError::Refused(format!("{} is not empty; nothing was written", out.display())));
        }
    }
    let out = std::path::absolute(out).map_err(CliError::io(out.display().to_string()))?;
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".incomplete");
    let draft = out.with_file_name(name);
    if draft.exists() {
        // What an interrupted run has left; the name is ours.
        std::fs::remove_dir_all(&draft).map_err(CliError::io(draft.display().to_string()))?;
    }
    if let Some(free) = machine::free_disk_bytes(&out).filter(|&free| free < bytes) {
        let detail = format!(
            "{} would need {}, and its disk has {} free; --layers N writes a part",
            out.display(),
            bytes_text(bytes),
            bytes_text(free)
        );
        return Err(CliError::Refused(detail));
    }
    Ok(draft)
}

fn write_text(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(CliError::io(path.display().to_string()))
}
