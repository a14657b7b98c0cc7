//! The command line of `gaterail bench --compare MODES`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gaterail_router::cluster::WORKERS_MAX;

use crate::device::parse_threads;
use crate::error::CliError;
use crate::plan::args::Crew;
use crate::plan::forecast::Question;
use crate::plan::{Contender, Contenders};
use crate::weights::WeightsArg;

const STREAMS_MAX: u32 = 1024;
const TOKENS_MAX: u32 = 1 << 20;
const ROUNDS_MAX: usize = 1000;

/// What `--compare MODES --workers N` takes beside.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// With --compare MODES: the model to serve, as `gaterail serve` has it; without one the demo model
    #[arg(value_name = "MODEL")]
    pub served: Option<String>,

    /// With --compare MODES: worker processes of every mode but local
    #[arg(long, value_name = "N", requires = "compare")]
    pub workers: Option<usize>,

    /// With --compare MODES: sequences at once [default: 1,4,16]
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "workers")]
    pub streams: Vec<u32>,

    /// With --compare MODES: tokens of a prompt; one more than whole pages of 64 tells decode best from prefill
    #[arg(long, value_name = "N", default_value_t = 129, requires = "workers")]
    pub prompt_tokens: u32,

    /// With --compare MODES: tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 32, requires = "workers")]
    pub output_tokens: u32,

    /// With --compare MODES: how often each mode has its turn
    #[arg(long, value_name = "N", default_value_t = 3, requires = "workers")]
    pub rounds: usize,

    /// With --compare MODES: workers that hold each expert
    #[arg(long, value_name = "N", default_value_t = 1, requires = "workers")]
    pub expert_copies: u32,

    /// With --compare MODES: the precision of the weights
    #[arg(long, value_enum, default_value = "auto", requires = "workers")]
    pub weights: WeightsArg,

    /// With --compare MODES: threads of every server, its workers' together
    #[arg(long, value_name = "N", value_parser = parse_threads, requires = "workers")]
    pub threads: Option<usize>,
}

/// What will be done.
pub struct Plan {
    pub model: String,
    pub contenders: Contenders,
    pub workers: usize,
    pub copies: u32,
    pub streams: Vec<u32>,
    pub prompt: u32,
    pub output: u32,
    pub rounds: usize,
    pub seed: u64,
    pub weights: WeightsArg,
    pub threads: Option<usize>,
    pub timeout: Duration,
}

impl CompareArgs {
    /// `None`: `--compare` names files, or is not there.
    pub fn plan(&self, compare: &[PathBuf], seed: u64, timeout: Duration) -> Result<Option<Plan>, CliError> {
        let refuse = |why: &str| Err(CliError::Usage(why.to_string()));
        let Some(workers) = self.workers else {
            if self.served.is_some() {
                return refuse("a model is for --compare MODES --workers N; --url names a server that runs");
            }
            let is_modes =
                |path: &PathBuf| path.to_str().is_some_and(|text| text.parse::<Contenders>().is_ok());
            if let [one] = compare
                && is_modes(one)
                && !one.exists()
            {
                return refuse("--compare MODES needs --workers N; --compare FILE shows saved results");
            }
            return Ok(None);
        };
        // A list that takes any number of values takes the model as well where that follows it.
        let (modes, model) = match (compare, &self.served) {
            ([modes], model) => (modes, model.clone()),
            ([modes, model], None) => (modes, Some(model.to_string_lossy().into_owned())),
            _ => return refuse("--compare takes one list of modes: ep,tp,ep:2,tp:2,local"),
        };
        let modes: Contenders = modes
            .to_string_lossy()
            .parse()
            .map_err(|error| CliError::Usage(format!("--compare: {error}")))?;
        modes.check(workers)?;
        within("--workers", workers, WORKERS_MAX)?;
        within("--rounds", self.rounds, ROUNDS_MAX)?;
        within("--prompt-tokens", self.prompt_tokens as usize, TOKENS_MAX as usize)?;
        within("--expert-copies", self.expert_copies as usize, workers)?;
        // The first token is the prompt's: a rate of decode takes one more at least.
        if !(2..=TOKENS_MAX).contains(&self.output_tokens) {
            return refuse("--output-tokens has to be 2 or more");
        }
        let streams = if self.streams.is_empty() { vec![1, 4, 16] } else { self.streams.clone() };
        streams
            .iter()
            .try_for_each(|&streams| within("--streams", streams as usize, STREAMS_MAX as usize))?;
        Ok(Some(Plan {
            model: model.unwrap_or_else(|| crate::demo::NAME.to_string()),
            contenders: modes,
            workers,
            copies: self.expert_copies,
            streams,
            prompt: self.prompt_tokens,
            output: self.output_tokens,
            rounds: self.rounds,
            seed,
            weights: self.weights,
            threads: self.threads,
            timeout,
        }))
    }
}

fn within(name: &str, value: usize, most: usize) -> Result<(), CliError> {
    match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(CliError::Usage(format!("{name} is {value}, and may be 1 to {most}"))),
    }
}

impl Plan {
    pub fn streams_max(&self) -> u32 {
        self.streams.iter().copied().max().unwrap_or(1)
    }

    pub fn crew(&self) -> Crew {
        Crew::Here(self.workers)
    }

    /// What `gaterail plan` is asked for the same work: in the middle of an answer.
    pub fn question(&self) -> Question {
        Question {
            streams: self.streams.clone(),
            context: self.prompt + self.output / 2,
            prompt: self.prompt,
            step_rows: super::server::STEP_TOKENS,
            copies: self.copies,
        }
    }

    /// How a mode's server is started.
    pub fn flags(&self, contender: Contender) -> Vec<String> {
        let text = |text: &str| text.to_string();
        let context = self.prompt + self.output + 64;
        let mut flags = vec![text("serve"), self.model.clone(), text("--listen"), text("127.0.0.1:0")];
        let mut put = |name: &str, value: String| flags.extend([text(name), value]);
        put("--log", text("off"));
        put("--max-batch", self.streams_max().to_string());
        put("--step-tokens", super::server::STEP_TOKENS.max(self.streams_max()).to_string());
        put("--max-context", context.to_string());
        put("--weights", self.weights.to_string());
        if let Some(threads) = self.threads {
            put("--threads", threads.to_string());
        }
        match contender {
            Contender::Local => put("--workers", text("0")),
            Contender::On(mode) => {
                put("--workers", self.workers.to_string());
                put("--parallel", mode.to_string());
                put("--expert-copies", self.copies.to_string());
            }
        }
        flags
    }
}
