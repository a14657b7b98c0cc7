//! `gaterail evaluate`: what a model answers to prompts whose answers are known, and what a precision costs it.
//!
//! `prompts` -> one pass with the right answers given (`judge`), which all figures but one come from -> the model's own
//! answers where those differ (`answers`) -> the draft over them (`draft`) -> `report`. `feed` moves the tokens.

mod answers;
mod args;
mod draft;
mod experts;
mod feed;
mod judge;
mod likelihood;
mod models;
mod prompts;
mod report;

pub use args::EvaluateArgs;

use gaterail_model::ModelSource;
use gaterail_model::spec::ModelSpec;

use crate::error::CliError;
use crate::{demo, source, terminal};

pub fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    let source = ModelSource::open(&source::resolve(&args.model)?)?;
    let spec = source.spec()?;
    let tokenizer = source.tokenizer()?;
    let prompts = prompts::read(args, &source, &tokenizer)?;
    let room = models::Room::of(&spec, &prompts);
    let draft = args.draft.as_deref().map(|name| open_draft(name, &spec, &room)).transpose()?;
    let device = args.device.open(args.threads)?;
    let mut runners = vec![models::load(&source, args.weights, &device, &room)?];
    if let Some(against) = args.against {
        runners.push(models::load(&source, against, &device, &room)?);
    }
    let stops = tokenizer.stop_ids();
    let judged = judge::all(&mut runners, &prompts, stops)?;
    runners.truncate(1);
    let which = if draft.is_some() { answers::Which::All } else { answers::Which::Scored };
    let own = answers::own(&mut runners, &prompts, &judged, stops, which)?;
    let drafted = match draft {
        Some(draft) => {
            let draft = models::load(&draft, args.weights, &device, &room)?;
            Some(draft::agreement(draft, &prompts, &own)?)
        }
        None => None,
    };
    let report = report::Report::new(args, &prompts, &judged, &own, drafted.as_deref(), &tokenizer)?;
    terminal::print(&if args.json { format!("{:#}\n", report.json()) } else { report.text() })
}

/// A draft speaks the model's tokens, and can read as far.
fn open_draft(name: &str, model: &ModelSpec, room: &models::Room) -> Result<ModelSource, CliError> {
    let path = if name == demo::NAME { demo::draft()? } else { source::resolve(name)? };
    let source = ModelSource::open(&path)?;
    let spec = source.spec()?;
    if spec.vocab != model.vocab {
        return Err(CliError::Refused(format!(
            "the draft has a vocabulary of {}, the model one of {}: they do not speak of the same tokens",
            spec.vocab, model.vocab
        )));
    }
    if spec.context < room.longest {
        return Err(CliError::Refused(format!(
            "the draft's context is {}, and a prompt with its answer may take {} tokens",
            spec.context, room.longest
        )));
    }
    Ok(source)
}
