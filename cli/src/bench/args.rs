//! The command line of `gaterail bench`, and the plan that it makes: read once, checked once.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::compare::args::{self as compare, CompareArgs};
use super::goodput::{Promise, Term};
use super::lengths::Lengths;
use super::load::UNDER_WAY_MAX;
use super::workload::{Arrivals, Planned, REQUESTS_MAX, Shape, read_trace};
use crate::error::CliError;

/// Of a trace.
const TRACE_BYTES_MAX: u64 = 1 << 30;
const SECONDS_MAX: f64 = 7.0 * 86_400.0;

/// Measure a server that speaks OpenAI's interface, ours or another's
///
/// A closed loop (--concurrency) keeps so many requests under way; an open one (--rate) sends them at their times, whether or
/// not the server keeps up. Several values make several runs, side by side in one table. Names and meaning of the figures are
/// those of `vllm bench serve`; --json saves them in its fields.
#[derive(Args)]
pub struct BenchArgs {
    /// The server, with or without /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,

    /// The model to ask for; by default the server's first
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// The key that the server wants
    #[arg(long, value_name = "KEY", env = "GATERAIL_BENCH_KEY", hide_env_values = true)]
    api_key: Option<String>,

    /// What is asked
    #[arg(long, value_enum, default_value = "completions")]
    endpoint: EndpointArg,

    /// Requests under way at a time [default: 1]
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with_all = ["rate", "trace"])]
    concurrency: Vec<usize>,

    /// Requests a second, at random distances
    #[arg(long, value_name = "R", value_delimiter = ',', conflicts_with = "trace")]
    rate: Vec<f64>,

    /// 1 is a Poisson process; less is burstier, more is more even
    #[arg(long, value_name = "B", default_value_t = 1.0, requires = "rate")]
    burstiness: f64,

    /// Requests of a run [default: 4 for each that is under way, 16 at least; 100 with --rate; all of a trace]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,

    /// No request starts later than that in a run
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,

    /// Requests before each run that are not measured [default: as many as are under way]
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,

    /// Tokens of a prompt: 128, uniform:64:256, normal:128:32 or lognormal:128:0.5
    #[arg(long, value_name = "LEN", default_value = "128")]
    input_len: Lengths,

    /// Tokens of an answer, likewise
    #[arg(long, value_name = "LEN", default_value = "64")]
    output_len: Lengths,

    /// Tokens before every prompt that it shares with others
    #[arg(long, value_name = "LEN")]
    shared_prefix: Option<u32>,

    /// How many different shared prefixes there are
    #[arg(long, value_name = "K", default_value_t = 1, requires = "shared_prefix")]
    prefixes: usize,

    /// Requests from a file: JSON lines with timestamp (ms), prompt or input_length, output_length
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// The same seed asks the same at the same times
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    #[arg(long, value_name = "T", default_value_t = 0.0, help = "0 is greedy")]
    temperature: f64,

    /// Longest time of one request
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    timeout: f64,

    /// What a good answer keeps, in ms: ttft:500 tpot:50 e2el:5000
    #[arg(long, value_name = "SLO:MS", num_args = 1.., value_delimiter = ' ')]
    goodput: Vec<Term>,

    /// Name of this server in tables and pictures
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,

    /// Save the results, a line of JSON for each run
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draw the results: an SVG, or a page if the file is called .html
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// FILES: measure nothing; show saved results side by side, ours or those of `vllm bench serve`. MODES, such as
    /// ep,tp,ep:2,tp:2,local, with --workers: serve MODEL in each of these ways in turn, and compare
    #[arg(long, value_name = "FILES|MODES", num_args = 1.., conflicts_with_all = ["url", "trace", "rate", "concurrency"])]
    pub compare: Vec<PathBuf>,

    #[command(flatten)]
    modes: CompareArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EndpointArg {
    Completions,
    Chat,
}

/// What will be done.
pub struct Plan {
    /// With `/v1`.
    pub base: String,
    pub model: Option<String>,
    pub key: Option<String>,
    pub chat: bool,
    pub temperature: f64,
    pub timeout: Duration,
    pub runs: Vec<Arrivals>,
    pub requests: Option<usize>,
    pub until: Option<Duration>,
    pub warmup: Option<usize>,
    pub shape: Shape,
    pub trace: Vec<Planned>,
    pub promise: Option<Promise>,
    pub label: String,
}

impl BenchArgs {
    /// `--compare MODES`, if that is what was asked for.
    pub fn modes(&self) -> Result<Option<compare::Plan>, CliError> {
        let plan = self.modes.plan(&self.compare, self.seed, seconds("--timeout", self.timeout)?)?;
        if plan.is_none() && !self.compare.is_empty() && self.json.is_some() {
            return Err(CliError::Usage(
                "--compare FILES measures nothing that --json could save".to_string(),
            ));
        }
        Ok(plan)
    }

    pub fn plan(&self) -> Result<Plan, CliError> {
        let trace = self.read_trace()?;
        Ok(Plan {
            base: base(&self.url),
            model: self.model.clone(),
            key: self.api_key.clone(),
            chat: self.endpoint == EndpointArg::Chat,
            temperature: within("--temperature", self.temperature, 0.0, 100.0)?,
            timeout: seconds("--timeout", self.timeout)?,
            runs: self.runs()?,
            requests: self.requests.map(|count| counted("--requests", count, REQUESTS_MAX)).transpose()?,
            until: self.seconds.map(|value| seconds("--seconds", value)).transpose()?,
            warmup: self.warmup,
            shape: self.shape()?,
            trace,
            promise: Promise::of(&self.goodput),
            label: self.label.clone(),
        })
    }

    fn runs(&self) -> Result<Vec<Arrivals>, CliError> {
        if self.trace.is_some() {
            return Ok(vec![Arrivals::Trace]);
        }
        let burstiness = within("--burstiness", self.burstiness, 1e-3, 1e6)?;
        let open = |rate: &f64| Ok(Arrivals::Open { rate: within("--rate", *rate, 1e-6, 1e6)?, burstiness });
        let closed = |concurrency: &usize| {
            let concurrency = counted("--concurrency", *concurrency, UNDER_WAY_MAX)?;
            Ok(Arrivals::Closed { concurrency })
        };
        match (self.rate.is_empty(), self.concurrency.is_empty()) {
            (false, _) => self.rate.iter().map(open).collect(),
            (true, false) => self.concurrency.iter().map(closed).collect(),
            (true, true) => Ok(vec![Arrivals::Closed { concurrency: 1 }]),
        }
    }

    fn shape(&self) -> Result<Shape, CliError> {
        let prefix = self.shared_prefix.map(|tokens| {
            let tokens = counted("--shared-prefix", tokens as usize, 1 << 20)? as u32;
            Ok::<_, CliError>((tokens, counted("--prefixes", self.prefixes, 1 << 16)?))
        });
        Ok(Shape {
            input: self.input_len,
            output: self.output_len,
            prefix: prefix.transpose()?,
            seed: self.seed,
        })
    }

    fn read_trace(&self) -> Result<Vec<Planned>, CliError> {
        let Some(path) = &self.trace else { return Ok(Vec::new()) };
        let wrong = |text: String| CliError::Usage(format!("{}: {text}", path.display()));
        let length = std::fs::metadata(path).map_err(CliError::io(path.display().to_string()))?.len();
        if length > TRACE_BYTES_MAX {
            return Err(wrong(format!("{length} bytes are more than a trace may have ({TRACE_BYTES_MAX})")));
        }
        let text = std::fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))?;
        read_trace(&text, self.seed).map_err(wrong)
    }
}

/// A server's address alone means its `/v1`.
fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    if path.contains('/') { url.to_string() } else { format!("{url}/v1") }
}

fn within(name: &str, value: f64, low: f64, high: f64) -> Result<f64, CliError> {
    match (low..=high).contains(&value) {
        true => Ok(value),
        false => Err(CliError::Usage(format!("{name} is {value}, and may be {low} to {high}"))),
    }
}

fn seconds(name: &str, value: f64) -> Result<Duration, CliError> {
    within(name, value, 1e-3, SECONDS_MAX).map(Duration::from_secs_f64)
}

fn counted(name: &str, count: usize, most: usize) -> Result<usize, CliError> {
    match (1..=most).contains(&count) {
        true => Ok(count),
        false => Err(CliError::Usage(format!("{name} is {count}, and may be 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_alone_means_its_v1() {
        for (url, base) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
            ("https://api.example.com/openai/v3", "https://api.example.com/openai/v3"),
        ] {
            assert_eq!(super::base(url), base);
        }
    }
}
