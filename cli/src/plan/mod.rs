//! `gaterail plan`: how fast a model would be on these machines, and where its experts should be, before it is loaded.
//!
//! | file | in the order of a run |
//! |---|---|
//! | [`args`] | the command line; workers that are not here |
//! | [`subject`] | the model's shape, from configuration and headers |
//! | [`measure`], [`machine`] | what this machine reaches, and what that makes of workers |
//! | [`forecast`] | what every way to spread the experts costs, and which wins |
//! | [`text`] | for a person |

pub mod args;
pub mod forecast;
mod machine;
mod measure;
pub mod subject;
mod text;

use serde::Serialize;

use args::Crew;
pub use args::{Contender, Contenders, PlanArgs};
use forecast::{Draws, Forecast, Known, Question, Winner, forecasts, winners};
pub use machine::{Measured, read_now};
pub use measure::hop::{EchoArgs, echo};
use subject::Subject;

use crate::error::CliError;
use crate::progress::bytes_text;
use crate::terminal;
use crate::weights::{KvArg, WeightsArg};

/// All that is printed.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub model: ModelAbout,
    pub measured: Measured,
    pub question: Question,
    pub workers: usize,
    pub forecasts: Vec<Forecast>,
    pub winners: Vec<Winner>,
}

/// The model, in words and bytes.
#[derive(Debug, Serialize)]
pub struct ModelAbout {
    pub name: String,
    pub architecture: String,
    pub experts: String,
    pub trunk: String,
    pub experts_bytes: u64,
    pub trunk_bytes: u64,
    pub kv_bytes_per_position: u64,
    pub estimated: bool,
}

/// What a prediction is asked for.
pub struct Asked<'a> {
    pub model: &'a str,
    pub weights: WeightsArg,
    pub kv: KvArg,
    pub threads: Option<usize>,
    pub crew: &'a Crew,
    pub contenders: &'a Contenders,
    pub question: Question,
}

pub fn run(args: &PlanArgs) -> Result<(), CliError> {
    args.check()?;
    let crew = Crew::of(&args.workers)?;
    let contenders = args.parallel.clone().unwrap_or_else(|| Contenders::all(crew.count()));
    contenders.check(crew.count())?;
    let question = Question {
        streams: args.streams.clone(),
        context: args.context,
        prompt: args.prefill,
        step_rows: args.step_tokens,
        copies: args.expert_copies,
    };
    let plan = plan(Asked {
        model: &args.model,
        weights: args.weights,
        kv: args.kv_cache_dtype,
        threads: args.threads,
        crew: &crew,
        contenders: &contenders,
        question,
    })?;
    let json = || serde_json::to_string_pretty(&plan).map(|text| text + "\n");
    match args.json {
        true => terminal::print(&json().map_err(|error| CliError::Refused(error.to_string()))?),
        false => terminal::print(&terminal::visible(&text::text(&plan))),
    }
}

/// Measures this machine and predicts.
pub fn plan(asked: Asked<'_>) -> Result<Plan, CliError> {
    Ok(Study::new(asked)?.plan())
}

/// A machine that was measured for a model: what can be predicted without measuring again.
pub struct Study<'a> {
    subject: Subject,
    measured: Measured,
    crew: &'a Crew,
    contenders: &'a Contenders,
    question: Question,
}

impl<'a> Study<'a> {
    pub fn new(asked: Asked<'a>) -> Result<Study<'a>, CliError> {
        let Asked { model, weights, kv, threads, crew, contenders, question } = asked;
        let subject = Subject::open(model, weights, kv)?;
        let say = |what: &str| terminal::note(&format!("plan: measuring {what}"));
        let workers =
            if let Crew::Here(count) = crew { (*count, contenders.parts(*count)) } else { (1, vec![1]) };
        // On a thread of its own, which the device binds to a core.
        let steps = question.steps();
        let measured = std::thread::scope(|scope| {
            let now = || Measured::now(&subject, threads, (workers.0, &workers.1), &steps, say);
            scope.spawn(now).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Study { subject, measured, crew, contenders, question })
    }

    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// By number of streams that are at work together, for every contender.
    pub fn forecasts(&self, draws: Draws<'_>) -> Vec<Forecast> {
        let Study { subject, measured, question, .. } = self;
        let most = question.streams.iter().copied().max().unwrap_or(1);
        let positions = u64::from(most) * u64::from(question.context.max(question.prompt));
        let known = Known {
            shape: &subject.shape,
            inventory: &subject.inventory,
            rates: measured.rates(self.crew),
            seats: measured.seats(self.crew, subject, positions),
            smaller: &subject.smaller,
            local_misfit: local_misfit(subject, measured, positions),
            draws,
        };
        forecasts(&known, &self.contenders.0, question)
    }

    /// What can be said before anything was seen.
    pub fn plan(&self) -> Plan {
        let Study { subject, measured, question, .. } = self;
        let forecasts = self.forecasts(Draws::EVEN);
        let winners = winners(&forecasts, question);
        let model = ModelAbout {
            name: subject.name.clone(),
            architecture: subject.architecture.clone(),
            experts: subject.experts.to_string(),
            trunk: subject.trunk.to_string(),
            experts_bytes: subject.experts_bytes,
            trunk_bytes: subject.trunk_bytes,
            kv_bytes_per_position: subject.kv_bytes_per_position,
            estimated: subject.estimated,
        };
        let (measured, question) = (measured.clone(), question.clone());
        Plan { model, measured, question, workers: self.crew.count(), forecasts, winners }
    }
}

fn local_misfit(subject: &Subject, measured: &Measured, positions: u64) -> Option<String> {
    let wanted = measured.router_bytes(subject, positions) + subject.experts_bytes;
    let available = measured.available_bytes.filter(|&available| wanted > available)?;
    Some(format!(
        "does not fit in one process here: it takes {}, and {} are available",
        bytes_text(wanted),
        bytes_text(available)
    ))
}
