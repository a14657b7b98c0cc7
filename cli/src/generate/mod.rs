//! `gaterail generate`: one prompt, one answer, streamed.

mod args;
mod engine;
mod output;
mod plan;

use std::io::{IsTerminal, Read};
use std::time::Instant;

use gaterail_model::ModelSource;
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::text::{ChatInput, Tokenizer};
use gaterail_model::walk::{Runner, RunnerOptions};
use gaterail_model::weights::cache::CacheOutcome;
use gaterail_model::weights::cache::PackedCache;
use gaterail_model::weights::check_tensors;
use serde_json::json;

pub use args::GenerateArgs;

use crate::error::CliError;
use crate::packed_cache;
use crate::progress::{self, ByteMeter};
use crate::{source, terminal};

/// Rows of one prefill step.
const PREFILL_ROWS: usize = 512;

/// A prompt as tokens, and where the answer goes on from.
struct Prompt {
    tokens: Vec<u32>,
    /// `None` when tokens were given and the model has no tokenizer.
    tokenizer: Option<Tokenizer>,
}

pub fn run(args: &GenerateArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let source = ModelSource::open(&find_model(args)?)?;
    let spec = source.spec()?;
    let checkpoint = source.checkpoint()?;
    let prompt = read_prompt(args, &source)?;
    if let Some(&token) = prompt.tokens.iter().find(|&&token| token as usize >= spec.vocab) {
        let detail = format!("token {token} lies outside the vocabulary of {}", spec.vocab);
        return Err(CliError::Refused(detail));
    }
    let defaults = source.generation_defaults()?;
    let params = args.checked_sampling(&defaults, spec.vocab)?;
    let max_tokens = plan::max_tokens(&spec, prompt.tokens.len(), args.max_tokens)?;
    let own = prompt.tokenizer.as_ref().map(|tokenizer| tokenizer.stop_ids().to_vec());
    let request = engine::Request {
        prompt: &prompt.tokens,
        tokenizer: prompt.tokenizer.as_ref(),
        stop_ids: own.unwrap_or(defaults.stop_ids),
        params,
        max_tokens,
    };
    let text = engine::text(&request, args.skip_special())?;
    let positions = prompt.tokens.len() + max_tokens;
    let rows_max = PREFILL_ROWS.min(prompt.tokens.len().max(1));
    // Before sizes are multiplied: until now a configuration could say anything.
    check_tensors(&spec, &checkpoint)?;
    let kv = args.kv_cache_dtype.form(args.weights);
    let beside = plan::beside_weights(&spec, kv, positions, rows_max);
    let precision = args.weights.precision(&spec, &checkpoint, beside);
    if !args.no_memory_check {
        plan::check_memory(&spec, &checkpoint, (precision, kv), prompt.tokens.len(), positions, rows_max)?;
    }
    plan::note_mixed_layers(&spec, &checkpoint, precision);
    let device = args.device.open(args.threads)?;
    let options = RunnerOptions { rows_max, positions, shards: Vec::new(), precision, kv };
    let (runner, outcome) = load(spec, &checkpoint, &device, &options, args.packed_cache.cache().as_ref())?;
    let loaded = started.elapsed();
    let keeping = packed_cache::keep(outcome);
    let mut output = output::Output::new(args.json, prompt.tokenizer.as_ref(), &request.params);
    let answer = engine::generate(runner, &request, text, &mut |piece| output.piece(piece))?;
    let full = max_tokens < args.max_tokens;
    let finished = output.finish(args.model(), &prompt.tokens, &answer, output::Timing { loaded, full });
    keeping.finish();
    finished
}

/// The model's place; says which model it is where nobody named one.
fn find_model(args: &GenerateArgs) -> Result<std::path::PathBuf, CliError> {
    if args.is_default_model() {
        terminal::note("gaterail: the demo model answers; MODEL before the prompt names another");
    }
    source::resolve(args.model()).map_err(|error| match error {
        CliError::Refused(why) if args.is_alone() => {
            CliError::Refused(format!("{why}\nIf it is a prompt:  gaterail generate demo PROMPT"))
        }
        error => error,
    })
}

/// Loads with one progress bar over all bytes.
pub fn load(
    spec: gaterail_model::spec::ModelSpec,
    checkpoint: &Checkpoint,
    device: &gaterail_kernels::Device,
    options: &RunnerOptions,
    cache: Option<&PackedCache>,
) -> Result<(Runner, CacheOutcome), CliError> {
    let meter = ByteMeter::default();
    meter.plan(checkpoint.data_bytes(), 1);
    let mut shown = progress::on_stderr("load");
    let mut last = Instant::now();
    let mut drawn = false;
    let runner = Runner::with_cache(spec, checkpoint, device, options, cache, &mut |bytes| {
        meter.add(bytes);
        if last.elapsed().as_millis() >= 100 {
            (last, drawn) = (Instant::now(), true);
            shown.update(&meter.now());
        }
    });
    if runner.is_ok() {
        // Tensors that are not used, or used twice, must not leave the bar short of its end or beyond it.
        let total = meter.now().total;
        meter.plan(total, 1);
        meter.add_resumed(total);
    }
    if drawn {
        shown.finish(&meter.now());
    }
    Ok(runner?)
}

fn read_prompt(args: &GenerateArgs, source: &ModelSource) -> Result<Prompt, CliError> {
    if let Some(tokens) = &args.tokens {
        let tokenizer = if source.has_tokenizer() { Some(source.tokenizer()?) } else { None };
        return Ok(Prompt { tokens: tokens.0.clone(), tokenizer });
    }
    let piped = || if std::io::stdin().is_terminal() { Ok(String::new()) } else { read_stdin() };
    let text = match args.prompt() {
        Some("-") => read_stdin()?,
        Some(text) => text.to_string(),
        None => match piped()? {
            text if text.is_empty() => {
                let hint = "give a PROMPT, or --tokens 1,2,3, or a text on standard input";
                return Err(CliError::Usage(format!("there is no prompt: {hint}")));
            }
            text => text,
        },
    };
    let tokenizer = source.tokenizer()?;
    let template = if args.raw { None } else { source.chat_template()? };
    let tokens = match template {
        Some(template) => {
            let mut messages = Vec::new();
            if let Some(system) = &args.system {
                messages.push(json!({"role": "system", "content": system}));
            }
            messages.push(json!({"role": "user", "content": text}));
            let input =
                ChatInput { messages: messages.into(), add_generation_prompt: true, ..ChatInput::default() };
            tokenizer.encode(&template.render(&input)?, false)?
        }
        None if args.system.is_some() => {
            let why = if args.raw { "--raw uses no chat template" } else { "the model has no chat template" };
            return Err(CliError::Usage(format!("--system needs a chat template, and {why}")));
        }
        None => tokenizer.encode(&text, true)?,
    };
    if tokens.is_empty() {
        return Err(CliError::Refused("the prompt has no tokens".to_string()));
    }
    Ok(Prompt { tokens, tokenizer: Some(tokenizer) })
}

fn read_stdin() -> Result<String, CliError> {
    const PROMPT_BYTES_MAX: u64 = 32 << 20;
    let mut text = String::new();
    let read = std::io::stdin().take(PROMPT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(CliError::io("reading the prompt from standard input"))?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        return Err(CliError::Refused(format!("the prompt has more than {PROMPT_BYTES_MAX} bytes")));
    }
    // `echo Hello |` means Hello.
    if let Some(line) = text.strip_suffix('\n') {
        text.truncate(line.strip_suffix('\r').unwrap_or(line).len());
    }
    Ok(text)
}
