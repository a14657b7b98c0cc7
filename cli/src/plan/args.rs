//! The command line of `gaterail plan`, and workers that are not here.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use gaterail_cluster::placement::Mode;
use gaterail_router::cluster::WORKERS_MAX;

use crate::device::parse_threads;
use crate::error::CliError;
use crate::serve::config::parse_bytes;
use crate::weights::{KvArg, WeightsArg};

/// More of anything is surely a mistake.
const STREAMS_MAX: u32 = 4096;
const TOKENS_MAX: u32 = 1 << 20;

/// Predict how fast a model is, and where its experts should be, without loading it
///
/// Reads configuration and headers, measures this machine for a few seconds with weights that say nothing, and prints for
/// every way to spread the experts what a step costs, part by part, what it needs, which one wins and why. Workers that are
/// not here are described: --workers 2:memory=24g,read=900g,int8=280t,hop=20us,link=12g
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// A Hugging Face folder (config.json alone will do), a GGUF file, ORG/NAME that `gaterail pull` has fetched, or `demo`
    pub model: String,

    /// Processes of this machine, or descriptions: [N:]name=…,memory=BYTES,read=BYTES/S,int8=OPS/S,hop=TIME,link=BYTES/S,host=NAME
    #[arg(long, value_name = "N|SPEC", default_value = "2", required = false)]
    pub workers: Vec<WorkersArg>,

    /// Only these: local, ep, tp, ep:N,tp:M; by default all that there are for so many workers
    #[arg(long, value_name = "HOW")]
    pub parallel: Option<Contenders>,

    /// Workers that hold each expert
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub expert_copies: u32,

    /// Sequences that are decoded at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,16")]
    pub streams: Vec<u32>,

    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prefill: u32,

    /// Positions that every sequence has when its tokens are decoded
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub context: u32,

    /// The precision of the weights
    #[arg(long, value_enum, default_value = "auto")]
    pub weights: WeightsArg,

    /// What KV stores
    #[arg(long, value_name = "TYPE", value_enum, default_value = "auto")]
    pub kv_cache_dtype: KvArg,

    /// Threads to compute with; all cores by default
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,

    /// Rows of a step at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub step_tokens: u32,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl PlanArgs {
    pub fn check(&self) -> Result<(), CliError> {
        let within = |name: &str, value: u32, most: u32| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(CliError::Usage(format!("{name} is {value}, and may be 1 to {most}"))),
        };
        within("--prefill", self.prefill, TOKENS_MAX)?;
        within("--context", self.context, TOKENS_MAX)?;
        within("--step-tokens", self.step_tokens, TOKENS_MAX)?;
        within("--expert-copies", self.expert_copies, WORKERS_MAX as u32)?;
        self.streams.iter().try_for_each(|&streams| within("--streams", streams, STREAMS_MAX))?;
        Crew::of(&self.workers).map(drop)
    }
}

/// One `--workers`.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkersArg {
    /// Processes of this machine.
    Here(usize),
    /// So many that are described.
    Elsewhere(usize, WorkerSpec),
}

/// A worker that is not here. What is not said is as this machine has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerSpec {
    pub name: Option<String>,
    pub memory: Option<u64>,
    pub read: Option<f64>,
    pub int8: Option<f64>,
    /// One way.
    pub hop: Option<Duration>,
    pub link: Option<f64>,
    /// Those of one host share its memory's bandwidth.
    pub host: Option<String>,
}

/// All workers.
#[derive(Clone, Debug, PartialEq)]
pub enum Crew {
    Here(usize),
    Elsewhere(Vec<WorkerSpec>),
}

impl Crew {
    pub fn of(args: &[WorkersArg]) -> Result<Crew, CliError> {
        if let [WorkersArg::Here(count)] = args {
            return Ok(Crew::Here(*count));
        }
        let mut all = Vec::new();
        for arg in args {
            let WorkersArg::Elsewhere(count, spec) = arg else {
                let why = "--workers takes one number of processes of this machine, or only descriptions";
                return Err(CliError::Usage(why.to_string()));
            };
            all.extend(std::iter::repeat_n(spec.clone(), *count));
        }
        match (1..=WORKERS_MAX).contains(&all.len()) {
            true => Ok(Crew::Elsewhere(all)),
            false => {
                Err(CliError::Usage(format!("{} workers, and there may be 1 to {WORKERS_MAX}", all.len())))
            }
        }
    }

    pub fn count(&self) -> usize {
        match self {
            Crew::Here(count) => *count,
            Crew::Elsewhere(all) => all.len(),
        }
    }
}

impl FromStr for WorkersArg {
    type Err = String;

    fn from_str(text: &str) -> Result<WorkersArg, String> {
        let count = |digits: &str| match digits.parse() {
            Ok(count) if (1..=WORKERS_MAX).contains(&count) => Ok(count),
            _ => Err(format!("{digits} is no number of workers, 1 to {WORKERS_MAX}")),
        };
        if text.chars().all(|c| c.is_ascii_digit()) {
            return count(text).map(WorkersArg::Here);
        }
        match text.split_once(':') {
            Some((digits, spec)) if digits.chars().all(|c| c.is_ascii_digit()) => {
                Ok(WorkersArg::Elsewhere(count(digits)?, spec.parse()?))
            }
            _ => Ok(WorkersArg::Elsewhere(1, text.parse()?)),
        }
    }
}

impl FromStr for WorkerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<WorkerSpec, String> {
        let mut spec = WorkerSpec::default();
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not such as memory=24g"))?;
            let wrong = |expected: &str| format!("{key}={value}: expected {expected}");
            match key {
                "name" => spec.name = Some(value.to_string()),
                "host" => spec.host = Some(value.to_string()),
                "memory" => spec.memory = Some(parse_bytes(value).map_err(|_| wrong("bytes, such as 24g"))?),
                "read" => spec.read = Some(rate(value).ok_or_else(|| wrong("bytes a second, such as 900g"))?),
                "link" => spec.link = Some(rate(value).ok_or_else(|| wrong("bytes a second, such as 12g"))?),
                "int8" => {
                    spec.int8 = Some(rate(value).ok_or_else(|| wrong("operations a second, such as 280t"))?)
                }
                "hop" => spec.hop = Some(time(value).ok_or_else(|| wrong("a time, such as 20us"))?),
                _ => return Err(format!("{key} is none of name, memory, read, int8, hop, link and host")),
            }
        }
        Ok(spec)
    }
}

/// Powers of ten: `900g`, `1.5t`.
fn rate(text: &str) -> Option<f64> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(['k', 'm', 'g', 't', 'p']);
    let scale = match &lower[number.len()..] {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "p" => 1e15,
        _ => return None,
    };
    number.parse().ok().map(|value: f64| value * scale).filter(|value| (1.0..1e21).contains(value))
}

fn time(text: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (number, scale) = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    let seconds = number.parse::<f64>().ok()? * scale;
    (1e-9..=10.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// A way to spread the experts, or not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Contender {
    /// All in one process.
    Local,
    On(Mode),
}

/// Several of them, as a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contenders(pub Vec<Contender>);

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Contender::Local => f.write_str("local"),
            Contender::On(mode) => mode.fmt(f),
        }
    }
}

/// `ep,tp,ep:2,tp:2,local`: of two degrees that follow each other one mode is made.
impl FromStr for Contenders {
    type Err = String;

    fn from_str(text: &str) -> Result<Contenders, String> {
        let mut found = Vec::new();
        let mut parts = text.split(',');
        while let Some(part) = parts.next() {
            let contender = match part.contains(':') {
                true => {
                    let other = parts.next().unwrap_or_default();
                    Contender::On(format!("{part},{other}").parse().map_err(mode_error)?)
                }
                false if part == "local" => Contender::Local,
                false => Contender::On(part.parse().map_err(mode_error)?),
            };
            if found.contains(&contender) {
                return Err(format!("{contender} is there twice"));
            }
            found.push(contender);
        }
        Ok(Contenders(found))
    }
}

fn mode_error(error: gaterail_cluster::placement::ModeError) -> String {
    let text = error.to_string();
    text.split(" is none").next().unwrap_or_default().to_string() + " is none of local, ep, tp and ep:N,tp:M"
}

impl Contenders {
    /// All that there are for so many workers.
    pub fn all(workers: usize) -> Contenders {
        let mixed = (2..workers).filter(|&ep| workers.is_multiple_of(ep));
        let mixed = mixed.map(|ep| Contender::On(Mode::Mixed { ep, tp: workers / ep }));
        let plain = [Contender::Local, Contender::On(Mode::Ep), Contender::On(Mode::Tp)];
        Contenders(plain.into_iter().chain(mixed).collect())
    }

    /// In how many parts a worker of each may hold an expert, each number once; 1 is whole.
    pub fn parts(&self, workers: usize) -> Vec<usize> {
        let part = |contender: &Contender| match contender {
            Contender::Local | Contender::On(Mode::Ep) => 1,
            Contender::On(Mode::Tp) => workers,
            Contender::On(Mode::Mixed { tp, .. }) => *tp,
        };
        let mut all: Vec<usize> = std::iter::once(1).chain(self.0.iter().map(part)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Those with degrees have to have as many workers.
    pub fn check(&self, workers: usize) -> Result<(), CliError> {
        for contender in &self.0 {
            if let Contender::On(mode) = contender
                && let Some(wanted) = mode.workers().filter(|&wanted| wanted != workers)
            {
                return Err(CliError::Usage(format!(
                    "{mode} takes {wanted} workers, not {workers}: --workers {wanted}"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_modes_are_read_as_they_are_written() {
        let text = "ep,tp,ep:2,tp:2,local";
        let found: Contenders = text.parse().unwrap();
        assert_eq!(found.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), text);
        assert_eq!(found.0.len(), 4);
        for (text, says) in
            [("", "none of"), ("ep,ep", "twice"), ("ep:2", "none of"), ("ep:2,local", "none of")]
        {
            let error = text.parse::<Contenders>().expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(found.check(4).is_ok() && found.check(2).is_err());
        assert_eq!(Contenders::all(6).0.len(), 5);
        assert_eq!(Contenders::all(2).0.len(), 3);
    }

    #[test]
    fn workers_are_described() {
        assert_eq!("3".parse(), Ok(WorkersArg::Here(3)));
        let spec = "2:name=a,memory=24GiB,read=900g,int8=1.5t,hop=20us,link=12g,host=h";
        let Ok(WorkersArg::Elsewhere(2, spec)) = spec.parse() else { panic!("two of them") };
        assert_eq!((spec.memory, spec.read, spec.int8), (Some(24 << 30), Some(9e11), Some(1.5e12)));
        assert_eq!((spec.hop, spec.link), (Some(Duration::from_micros(20)), Some(1.2e10)));
        assert_eq!((spec.name.as_deref(), spec.host.as_deref()), (Some("a"), Some("h")));
        for text in ["0", "257", "x", "2:", "memory=", "read=fast", "hop=20", "size=3", "2:3", "-1", "read=0"]
        {
            assert!(text.parse::<WorkersArg>().is_err(), "{text}");
        }
        let here = WorkersArg::Here(2);
        let there = WorkersArg::Elsewhere(2, WorkerSpec::default());
        assert_eq!(Crew::of(std::slice::from_ref(&here)).unwrap(), Crew::Here(2));
        assert_eq!(Crew::of(&[there.clone(), there.clone()]).unwrap().count(), 4);
        assert!(Crew::of(&[here.clone(), there]).is_err() && Crew::of(&[here.clone(), here]).is_err());
    }
}
