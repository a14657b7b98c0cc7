//! `gaterail bench`: what a server that speaks OpenAI's interface gives its clients.
//!
//! | file | in the order of a run |
//! |---|---|
//! | [`args`] | the command line, and the plan that it makes |
//! | [`workload`], [`lengths`], [`random`] | what will be asked, and when: a function of the seed |
//! | [`dialect`], [`tokens`] | what this server takes, and how it counts |
//! | [`prompt`], [`words`] | texts of so many tokens |
//! | [`load`], [`interrupt`], [`request`] | the requests under way; one of them, timed |
//! | [`goodput`], [`stats`], [`result`] | what it comes to, in vLLM's fields |
//! | [`save`] | into a file |
//! | [`table`], [`plot`] | for a person |
//! | [`compare`] | ways to spread the experts of our own server, side by side |

mod args;
mod compare;
mod dialect;
mod goodput;
mod interrupt;
mod lengths;
mod load;
mod plot;
mod prompt;
mod random;
mod request;
mod result;
mod save;
mod stats;
mod table;
mod tokens;
mod words;
mod workload;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

pub use args::BenchArgs;
use args::Plan;
use dialect::Dialect;
use load::{Load, Measured};
use prompt::{Prompt, fit};
use random::Random;
use request::Asked;
use result::{About, Saved};
use save::save;
use tokens::Counting;
use workload::{Arrivals, Planned, PlannedPrompt, REQUESTS_MAX, schedule};

use crate::endpoint::{Endpoint, Failure, Limits};
use crate::error::CliError;
use crate::progress::Tally;
use crate::terminal;

/// Requests of an open loop where nobody says.
const OPEN_REQUESTS: usize = 100;

pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    if let Some(plan) = args.modes()? {
        return compare::run(&plan, args.json.as_deref(), args.plot.as_deref());
    }
    let results = match args.compare.is_empty() {
        true => Bench::new(args.plan()?)?.run(args.json.as_deref())?,
        false => read_saved(&args.compare)?,
    };
    terminal::print(&terminal::visible(&table::table(&results)))?;
    for remark in table::remarks(&results) {
        terminal::note(&terminal::visible(&remark));
    }
    if let Some(path) = &args.plot {
        let model = results.first().and_then(|result| result.get("model_id")).and_then(Value::as_str);
        let title = format!("{}, measured by gaterail bench", model.unwrap_or("results"));
        let page = path.extension().is_some_and(|extension| extension == "html");
        let picture = if page { plot::page(&results, &title) } else { plot::svg(&results, &title) };
        save(path, &picture)?;
    }
    let completed = |result: &Saved| result.get("completed").and_then(Value::as_u64).unwrap_or_default();
    match results.iter().any(|result| completed(result) > 0) {
        true => Ok(()),
        false => Err(CliError::Refused("no request was completed".to_string())),
    }
}

/// A server, and what is known about it before anything is measured.
struct Bench {
    plan: Plan,
    endpoint: Endpoint,
    dialect: Dialect,
    counting: Counting,
    /// Shared prefixes by (index, tokens).
    prefixes: HashMap<(usize, u32), String>,
    stop: Arc<AtomicBool>,
}

impl Bench {
    fn new(plan: Plan) -> Result<Bench, CliError> {
        let stop = interrupt::watch()?;
        let limits = Limits { request: Some(plan.timeout), connections: load::UNDER_WAY_MAX };
        let endpoint = Endpoint::new(&plan.base, plan.key.clone(), limits)?;
        let refused = |failure: Failure| CliError::Refused(format!("{}: {failure}", plan.base));
        let model = plan.model.clone().map_or_else(|| endpoint.first_model(), Ok).map_err(refused)?;
        let dialect = Dialect::find(&endpoint, model, plan.chat, plan.temperature).map_err(refused)?;
        let counting = Counting::find(&endpoint, &dialect);
        Ok(Bench { plan, endpoint, dialect, counting, prefixes: HashMap::new(), stop })
    }

    /// All runs; each is saved as soon as it is over.
    fn run(mut self, json: Option<&Path>) -> Result<Vec<Saved>, CliError> {
        let mut results = Vec::new();
        for (index, arrivals) in self.plan.runs.clone().into_iter().enumerate() {
            if self.stop.load(Relaxed) {
                break;
            }
            results.push(self.one(index as u64, arrivals)?);
            if let Some(path) = json {
                let lines = results.iter().map(|result| Value::Object(result.clone()).to_string() + "\n");
                save(path, &lines.collect::<String>())?;
            }
        }
        Ok(results)
    }

    /// Run `index`. No two runs share a prompt: the second would find the first's in the server's cache.
    fn one(&mut self, index: u64, arrivals: Arrivals) -> Result<Saved, CliError> {
        let concurrency = match arrivals {
            Arrivals::Closed { concurrency } => Some(concurrency),
            Arrivals::Open { .. } | Arrivals::Trace => None,
        };
        let seconds_each = self.warm_up(2 * index + 1, concurrency.unwrap_or(1))?;
        let planned = self.planned(2 * index, arrivals, seconds_each);
        let requests = self.with_words(planned)?;
        let mut shown = Tally::new("bench", "requests", requests.len());
        let load = Load { until: self.plan.until, ..self.load(requests, concurrency) };
        let before = cpu_seconds();
        let measured = load::run(load, &self.stop, |done| shown.show(done));
        let cpu_seconds = cpu_seconds() - before;
        shown.finish();
        Ok(self.saved(arrivals, concurrency, &measured, cpu_seconds))
    }

    fn saved(&self, arrivals: Arrivals, concurrency: Option<usize>, measured: &Measured, cpu: f64) -> Saved {
        let (rate, burstiness) = match arrivals {
            Arrivals::Open { rate, burstiness } => (Some(rate), burstiness),
            Arrivals::Closed { .. } | Arrivals::Trace => (None, 1.0),
        };
        let about = About {
            label: &self.plan.label,
            model: &self.dialect.model,
            chat: self.plan.chat,
            rate,
            burstiness,
            concurrency,
            promise: self.plan.promise.as_ref(),
            prompt_source: self.counting.source(),
            exact_length: self.dialect.exact_length,
            seed: self.plan.shape.seed,
            cpu_seconds: cpu,
        };
        result::save(&about, measured)
    }

    /// Asks what is not measured. Out: seconds of one request.
    fn warm_up(&mut self, part: u64, concurrency: usize) -> Result<f64, CliError> {
        let count = self.plan.warmup.unwrap_or(concurrency);
        if count == 0 {
            return Ok(1.0);
        }
        let requests = self.with_words(self.plan.shape.requests(count, part))?;
        let measured = load::run(self.load(requests, Some(concurrency)), &self.stop, |_| ());
        let answers = measured.records.iter().filter_map(|record| record.result.as_ref().ok());
        let times: Vec<f64> = answers.map(|answer| answer.e2el).collect();
        let failure = measured.records.iter().find_map(|record| record.result.as_ref().err());
        match (times.is_empty(), failure) {
            (true, Some(failure)) => {
                Err(CliError::Refused(format!("{}: all of the warm-up failed: {failure}", self.plan.base)))
            }
            (true, None) => Ok(1.0),
            (false, _) => Ok(times.iter().sum::<f64>() / times.len() as f64),
        }
    }

    fn load(&self, requests: Vec<Asked>, concurrency: Option<usize>) -> Load {
        let (endpoint, dialect) = (self.endpoint.clone(), self.dialect.clone());
        Load { endpoint, dialect, requests, concurrency, until: None }
    }

    fn planned(&self, part: u64, arrivals: Arrivals, seconds_each: f64) -> Vec<Planned> {
        let (shape, until) = (&self.plan.shape, self.plan.until.map(|until| until.as_secs_f64()));
        let count = |otherwise: usize| self.plan.requests.unwrap_or(otherwise.clamp(1, REQUESTS_MAX));
        match arrivals {
            Arrivals::Closed { concurrency } => {
                // Half as many again as the warm-up's speed makes of the time.
                let fill =
                    |until: f64| (1.5 * concurrency as f64 * until / seconds_each) as usize + concurrency;
                shape.requests(count(until.map_or((4 * concurrency).max(16), fill)), part)
            }
            Arrivals::Open { rate, burstiness } => {
                let fill = |until: f64| (rate * until).ceil() as usize;
                let mut requests = shape.requests(count(until.map_or(OPEN_REQUESTS, fill)), part);
                schedule(&mut requests, rate, burstiness, shape.seed);
                requests
            }
            Arrivals::Trace => self.plan.trace.iter().take(count(REQUESTS_MAX)).cloned().collect(),
        }
    }

    /// Gives every planned request its text.
    fn with_words(&mut self, planned: Vec<Planned>) -> Result<Vec<Asked>, CliError> {
        let mut shown = Tally::new("bench", "prompts", planned.len());
        let mut asked = Vec::with_capacity(planned.len());
        for planned in planned {
            if self.stop.load(Relaxed) {
                break;
            }
            let prompt = self.prompt(&planned.prompt);
            let prompt =
                prompt.map_err(|failure| CliError::Refused(format!("counting tokens: {failure}")))?;
            let due = planned.due.map(|due| due.as_secs_f64());
            asked.push(Asked { due, prompt, output: planned.output });
            shown.show(asked.len());
        }
        shown.finish();
        Ok(asked)
    }

    fn prompt(&mut self, planned: &PlannedPrompt) -> Result<Prompt, Failure> {
        let (endpoint, dialect, counting) = (&self.endpoint, &self.dialect, &self.counting);
        let count = |text: &str| counting.count(endpoint, dialect, text);
        match planned {
            PlannedPrompt::Text(text) => Ok(Prompt { tokens: count(text)?, text: text.clone() }),
            PlannedPrompt::Length { tokens, prefix: None, seed } => {
                fit("", *tokens, &mut Random::new(*seed, 0), count)
            }
            PlannedPrompt::Length { tokens, prefix: Some(prefix), seed } => {
                let key = (prefix.index, prefix.tokens);
                if !self.prefixes.contains_key(&key) {
                    let mut random = Random::new(self.plan.shape.seed, 1000 + prefix.index as u64);
                    self.prefixes.insert(key, fit("", prefix.tokens, &mut random, count)?.text);
                }
                fit(&self.prefixes[&key], *tokens, &mut Random::new(*seed, 0), count)
            }
        }
    }
}

/// Results of files: one JSON object as vLLM saves it, or several, as we and `--append-result` do.
fn read_saved(paths: &[std::path::PathBuf]) -> Result<Vec<Saved>, CliError> {
    let mut results = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))?;
        for value in serde_json::Deserializer::from_str(&text).into_iter::<Saved>() {
            let mut saved = value.map_err(|error| {
                CliError::Refused(format!("{}: no result of a benchmark: {error}", path.display()))
            })?;
            let named = saved.get("label").and_then(Value::as_str).is_some_and(|label| !label.is_empty());
            if !named {
                let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
                saved.insert("label".to_string(), name.unwrap_or_default().into());
            }
            results.push(saved);
        }
    }
    Ok(results)
}

/// That this process has used so far.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
