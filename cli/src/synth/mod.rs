//! `gaterail synth`: a random checkpoint of any shape, so that a rig can be measured before a model is downloaded.

mod draft;
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
use draft::Draft;

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
    let draft = Draft::of(out)?;
    check_room(out, &draft.path, bytes)?;
    let has_tokenizer = write_model(&spec, &text, &draft.path, args)?;
    draft.finish()?;
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

/// Whether the disk has room for all of it.
fn check_room(out: &Path, draft: &Path, bytes: u64) -> Result<(), CliError> {
    if let Some(free) = machine::free_disk_bytes(draft).filter(|&free| free < bytes) {
        let detail = format!(
            "{} would need {}, and its disk has {} free; --layers N writes a part",
            out.display(),
            bytes_text(bytes),
            bytes_text(free)
        );
        return Err(CliError::Refused(detail));
    }
    Ok(())
}

fn write_text(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(CliError::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn asked(out: &Path, seed: u64) -> SynthArgs {
        SynthArgs {
            config: None,
            shape: Some("mini".to_string()),
            list: false,
            out: Some(out.to_path_buf()),
            layers: Some(1),
            dtype: None,
            shard_bytes: 100_000,
            seed,
        }
    }

    /// Every file's name and bytes.
    fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
        let mut files: Vec<_> = entries
            .map(|entry| (entry.file_name().into_string().expect("a name"), entry.path()))
            .map(|(name, path)| (name, std::fs::read(path).expect("a file")))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn of_two_who_write_one_folder_one_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let alone = [1, 2].map(|seed| {
            let out = folder.path().join(format!("alone-{seed}"));
            run(&asked(&out, seed)).expect("written");
            files(&out)
        });
        for round in 0..3 {
            let out = folder.path().join(format!("both-{round}"));
            let begin = Barrier::new(2);
            let well = std::thread::scope(|scope| {
                let write = |seed| {
                    begin.wait();
                    run(&asked(&out, seed))
                };
                let both = [1, 2].map(|seed| scope.spawn(move || write(seed)));
                both.map(|one| one.join().expect("no panic"))
            });
            assert_eq!(well.iter().filter(|well| well.is_ok()).count(), 1, "{well:?}");
            let winner = well.iter().position(Result::is_ok).expect("one");
            assert!(files(&out) == alone[winner], "round {round}: not what seed {} gives", winner + 1);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 5, "a part was left");
    }

    #[test]
    fn what_an_interrupted_run_left_is_nobodys() {
        let folder = tempfile::tempdir().expect("a folder");
        let (out, draft) = (folder.path().join("out"), folder.path().join("out.incomplete"));
        std::fs::create_dir_all(draft.join("folder")).expect("a folder");
        std::fs::write(draft.join("model-00099-of-00099.safetensors"), "half").expect("written");
        run(&asked(&out, 1)).expect("written");
        assert!(!draft.exists() && files(&out).iter().all(|(name, _)| !name.contains("00099")));
    }
}
