//! Shared pieces of the whole-system tests: the fixtures, and ways to run a model over them.
#![forbid(unsafe_code)]

pub mod broken;
pub mod certs;
pub mod control;
pub mod cuts;
pub mod ends;
pub mod exchanges;
pub mod fuzzing;
pub mod gguf;
pub mod pairs;
pub mod wide;
pub mod workers;

use std::path::{Path, PathBuf};

use gaterail_kernels::{CpuOptions, Device, Isa};
use gaterail_model::ModelSource;
use gaterail_model::kv::PageTable;
use gaterail_model::text::ChatInput;
use gaterail_model::walk::{Batch, ExpertLayer, Runner, RunnerOptions};
use gaterail_model::weights::Precision;
use gaterail_proto::ShardSpec;
use serde::Deserialize;

/// What transformers computed for one fixture (`ops/reference/README.md`).
#[derive(Deserialize)]
pub struct Expected {
    pub cases: Vec<Case>,
}

/// One prompt, its greedy continuation, and the best log-probabilities after every token but the last.
#[derive(Deserialize)]
pub struct Case {
    pub prompt: Vec<u32>,
    pub continuation: Vec<u32>,
    pub top: Vec<Vec<(u32, f32)>>,
}

impl Case {
    /// Prompt and continuation without its last token: the tokens that are read.
    pub fn tokens(&self) -> Vec<u32> {
        let mut tokens = [self.prompt.as_slice(), self.continuation.as_slice()].concat();
        tokens.pop();
        tokens
    }
}

/// `tests/fixtures`.
pub fn fixtures_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// All fixture folders, by name.
pub fn fixtures() -> Vec<PathBuf> {
    let folder = fixtures_folder();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("expected.json").is_file())
        .collect();
    folders.sort();
    assert!(folders.len() >= 35, "only {} fixtures in {}", folders.len(), folder.display());
    folders
}

/// The trained model of this repository. It answers, where the fixtures only compute.
pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/demo-model/model")
}

/// Tokens to read that are a text to the model: a fixture's case, or a question to the demo model.
pub fn some_text(folder: &Path) -> Vec<u32> {
    if folder != demo_model() {
        return expected(folder).cases[1].tokens();
    }
    let source = ModelSource::open(folder).expect("the demo model");
    let template = source.chat_template().expect("a template").expect("the demo model's template");
    let messages = serde_json::json!([{"role": "user", "content": "What is 347 + 586? Step by step."}]);
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = template.render(&input).expect("a prompt") + " 7+6=13, 4+8+1=13, 3+5+1=9: 933";
    source.tokenizer().expect("a tokenizer").encode(&text, false).expect("tokens")
}

pub fn expected(folder: &Path) -> Expected {
    let path = folder.join("expected.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A CPU device with two threads.
pub fn device(isa: Isa) -> Device {
    // Small fixtures are shared out between the threads too.
    Device::cpu(CpuOptions { threads: 2, pin: false, isa, grain: 512 }).expect("threads")
}

/// A fixture's model, its experts in one shard or in those given.
pub fn load(folder: &Path, device: &Device, shards: Vec<ShardSpec>) -> Runner {
    load_as(folder, device, shards, Precision::F32)
}

/// The same in a precision.
pub fn load_as(folder: &Path, device: &Device, shards: Vec<ShardSpec>, precision: Precision) -> Runner {
    let options = RunnerOptions { rows_max: 1024, positions: 8192, shards, precision, kv: precision.kv() };
    Runner::load(folder, device, &options, &mut |_| {})
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The logits after each of `tokens`, read in steps of the sizes that `chunks` yields.
pub fn logits_in_chunks<E: ExpertLayer>(
    runner: &mut Runner<E>,
    tokens: &[u32],
    mut chunks: impl Iterator<Item = usize>,
) -> Vec<Vec<f32>> {
    let mut table = PageTable::default();
    let mut logits = Vec::new();
    let mut start = 0;
    while start < tokens.len() {
        let end = (start + chunks.next().expect("an endless iterator")).min(tokens.len());
        runner.grow(&mut table, end).expect("pages for a fixture");
        let mut batch = Batch::default();
        batch.add(&tokens[start..end], start, &table, |_| true);
        let step = runner.step(&batch).expect("a step");
        logits.extend(step.chunks_exact(runner.spec().vocab).map(<[f32]>::to_vec));
        start = end;
    }
    runner.release(table);
    logits
}

/// Log-softmax in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
}

/// The bits of logits, for comparisons that allow no difference.
pub fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}
