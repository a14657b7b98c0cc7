//! The arguments of `gaterail evaluate`.

use std::path::PathBuf;

use clap::Args;

use crate::demo;
use crate::device::{self, DeviceArg};
use crate::weights::WeightsArg;

/// Measure what a model answers, and what a precision costs it
///
/// Asks prompts whose answers are known and prints per task how many greedy answers are right and the perplexity of the
/// right ones, and per layer how evenly the experts are used. With --against the same model runs in a second precision
/// beside: KL divergence, how often both find the same token likeliest, how often each gate picks the same experts. With
/// --draft: how often a draft model's likeliest token is the one that the model takes.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// A Hugging Face folder, a GGUF file, ORG/NAME that `gaterail pull` has fetched, or `demo`
    #[arg(default_value = demo::NAME)]
    pub model: String,

    /// JSON lines with `task`, `messages` (a chat that ends with the user), `answer`, and `free` where no answer is the
    /// only right one. Without it: the demo model's own prompts
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,

    /// Only these tasks, such as add,copy
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    pub tasks: Vec<String>,

    /// At most so many prompts of each task
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// The precision of experts, projections and head
    #[arg(long, value_name = "KIND", value_enum, default_value_t = WeightsArg::Auto)]
    pub weights: WeightsArg,

    /// A precision to compare with, which is taken for the truth
    #[arg(long, value_name = "KIND", value_enum)]
    pub against: Option<WeightsArg>,

    /// A draft model with the same tokenizer; `demo` is that of the demo model
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,

    /// Show wrong answers beside the right ones
    #[arg(long)]
    pub wrong: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Threads to compute with; all cores by default
    #[arg(long, value_name = "N", value_parser = device::parse_threads)]
    pub threads: Option<usize>,

    /// Where to run: auto, cpu, cuda or cuda:N. Whole models run on the CPU in this version
    #[arg(long, value_name = "DEVICE", value_parser = device::parse, default_value = "auto")]
    pub device: DeviceArg,
}
