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

use crate::error::CliError;
use crate::{demo, source, terminal};

pub fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    let source = ModelSource::open(&source::resolve(&args.model)?)?;
    let (prompts, stops) = prompts::read(args, &source)?;
    let device = args.device.open(args.threads)?;
    let room = models::Room::of(&source.spec()?, &prompts)?;
    let mut runners = vec![models::load(&source, args.weights, &device, &room)?];
    if let Some(against) = args.against {
        runners.push(models::load(&source, against, &device, &room)?);
    }
    let judged = judge::all(&mut runners, &prompts, &stops)?;
    runners.truncate(1);
    let drafted = match &args.draft {
        None => None,
        Some(name) => {
            let own = answers::own(&mut runners, &prompts, &judged, &stops, answers::Which::All)?;
            let source =
                ModelSource::open(&if name == demo::NAME { demo::draft()? } else { source::resolve(name)? })?;
            models::check_vocabulary(&source.spec()?, runners[0].spec())?;
            let draft = models::load(&source, args.weights, &device, &room)?;
            Some((own, draft))
        }
    };
    let (own, drafted) = match drafted {
        Some((own, draft)) => {
            let drafted = draft::agreement(draft, &prompts, &own)?;
            (own, Some(drafted))
        }
        None => (answers::own(&mut runners, &prompts, &judged, &stops, answers::Which::Scored)?, None),
    };
    let tokenizer = source.tokenizer()?;
    let report = report::Report::new(args, &prompts, &judged, &own, drafted.as_ref(), &tokenizer)?;
    terminal::print(&if args.json { format!("{:#}\n", report.json()) } else { report.text() })
}
