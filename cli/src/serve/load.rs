//! From a model's place on disk to a server that answers.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gaterail_model::ModelSource;
use gaterail_model::config::GenerationDefaults;
use gaterail_model::walk::RunnerOptions;
use gaterail_model::weights::{Precision, account};
use gaterail_router::auth::{Gate, KeyFile};
use gaterail_router::openai::ServerDefaults;
use gaterail_router::serving::{Entrance, ModelAbout, RequestLog, Served, ServedParts, Server};
use gaterail_router::{Engine, EngineLimits, EngineParts};

use super::config::ServeConfig;
use super::plan::MemoryPlan;
use crate::error::CliError;
use crate::{demo, generate, packed_cache, source, terminal};

/// Texts that are tokenized at once; more would take the cores from the model.
const TEXT_JOBS_MAX: usize = 2;

/// A loaded model with its engine running.
pub struct Loaded {
    pub server: Arc<Server>,
    pub engine: JoinHandle<()>,
    pub plan: MemoryPlan,
    pub architecture: String,
    pub precision: &'static str,
    pub model_context: usize,
    pub took: Duration,
}

/// The door: keys of the file and of the command line; an address that others can reach has to have one.
pub fn gate(config: &ServeConfig) -> Result<Gate, CliError> {
    let gate = Gate::new(Some(KeyFile::new(&config.keys)), &config.api_keys)
        .map_err(|error| CliError::Refused(error.to_string()))?;
    if let Some(address) = config.public().next().filter(|_| gate.is_open() && !config.insecure) {
        return Err(CliError::Refused(format!(
            "others can reach {address}, and there are no keys. Make one:  gaterail keys add TENANT\n\
             --insecure serves everybody without"
        )));
    }
    Ok(gate)
}

pub fn load(config: &ServeConfig, entrance: Entrance) -> Result<Loaded, CliError> {
    let started = Instant::now();
    let path = match &config.model {
        Some(model) => source::resolve(model)?,
        None => demo::path()?,
    };
    let source = ModelSource::open(&path)?;
    let spec = source.spec()?;
    let checkpoint = source.checkpoint()?;
    if let Some(asked) = config.engine.context_max.filter(|asked| *asked > spec.context) {
        let detail = format!("--max-context {asked} is more than the model's context of {}", spec.context);
        return Err(CliError::Usage(detail));
    }
    let tokenizer = if source.has_tokenizer() { Some(Arc::new(source.tokenizer()?)) } else { None };
    let template = source.chat_template()?;
    let defaults = source.generation_defaults()?;
    let precision = config.weights.precision(&spec, &checkpoint, MemoryPlan::beside_weights(&spec, config));
    let plan = MemoryPlan::new(&spec, &checkpoint, precision, config)?;
    let shares = account(&spec, Some(&checkpoint));
    let about = ModelAbout {
        parameters: shares.values().map(|share| share.parameters).sum(),
        active_parameters: shares.values().map(|share| share.active_parameters).sum(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    let stop_ids = match &tokenizer {
        Some(tokenizer) => tokenizer.stop_ids().to_vec(),
        None => defaults.stop_ids.clone(),
    };
    let options = RunnerOptions {
        rows_max: config.step_tokens,
        positions: plan.kv_positions(),
        shards: Vec::new(),
        precision,
        kv: config.kv_form(),
    };
    let (architecture, model_context) = (spec.architecture.clone(), spec.context);
    let (device, threads, text) = (config.device, config.threads, tokenizer.clone());
    let cache = config.packed_cache.cache();
    let limits = EngineLimits { context_max: Some(plan.context), ..config.engine.clone() };
    // On the engine's own thread: the device binds the thread that opens it to a core.
    let build = move || -> Result<EngineParts, CliError> {
        let device = device.open(threads)?;
        let (runner, outcome) = generate::load(spec, &checkpoint, &device, &options, cache.as_ref())?;
        // Written beside the running server; one that ends before leaves no file.
        let _ = packed_cache::keep(outcome);
        Ok(EngineParts { runner, tokenizer: text, stop_ids })
    };
    let (engine, thread) = Engine::start(build, limits)?;
    let generation = if config.makers_defaults { defaults } else { GenerationDefaults::default() };
    let served = Served::new(ServedParts {
        engine,
        names: names(config),
        tokenizer,
        template,
        defaults: ServerDefaults { generation },
        about,
        text_jobs_max: TEXT_JOBS_MAX,
    });
    let log = RequestLog::to(config.log, std::io::stderr());
    let server = Arc::new(Server::new(served, entrance, log, config.server.clone()));
    let precision = match precision {
        Precision::AsStored => "as stored",
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
        Precision::Int4 => "int4",
    };
    let took = started.elapsed();
    Ok(Loaded { server, engine: thread, plan, architecture, precision, model_context, took })
}

/// As asked; else what the operator calls the model.
fn names(config: &ServeConfig) -> Vec<String> {
    if !config.names.is_empty() {
        return config.names.clone();
    }
    let own = config.model.as_deref().unwrap_or(demo::NAME).trim_end_matches('/');
    vec![terminal::visible(own)]
}
