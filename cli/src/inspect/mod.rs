//! `gaterail inspect`: what a model is, where its bytes are, and what this machine can do with it.

mod describe;
mod report;

use clap::Args;
use gaterail_model::ModelSource;
use gaterail_model::weights::check_tensors;

use crate::error::CliError;
use crate::{machine, source, terminal};

/// Show a model's architecture, its bytes by part, and what fits on this machine
///
/// Reads headers (and of GPTQ the order of inputs); no weight is loaded. A folder with nothing but config.json gives an estimate.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// A Hugging Face folder, a GGUF file, ORG/NAME that `gaterail pull` has fetched, or `demo`
    pub model: String,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Do not measure this machine's memory bandwidth (which takes about a second)
    #[arg(long)]
    pub no_measure: bool,
}

pub fn run(args: &InspectArgs) -> Result<(), CliError> {
    let source = ModelSource::open(&source::resolve(&args.model)?)?;
    let spec = source.spec()?;
    let checkpoint = if has_weights(&source) { Some(source.checkpoint()?) } else { None };
    if let Some(checkpoint) = &checkpoint {
        check_tensors(&spec, checkpoint)?;
    }
    let device = machine::cpu(None)?;
    let bandwidth = if args.no_measure { None } else { Some(machine::read_bandwidth(&device)?) };
    let report = report::Report::new(&args.model, &spec, checkpoint.as_ref(), &device, bandwidth);
    let text = if args.json { format!("{:#}\n", report.json()) } else { terminal::visible(&report.text()) };
    terminal::print(&text)
}

/// Whether anything in the folder means to be weights, whole or not: then they are read, and what is wrong is said.
pub fn has_weights(source: &ModelSource) -> bool {
    let ModelSource::Folder(folder) = source else { return true };
    let ends = [".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth"];
    let names = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().any(|name| ends.iter().any(|end| name.ends_with(end)))
}
