//! From a model's place on disk to a server that answers.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gaterail_cluster::placement::Parallel;
use gaterail_kernels::Device;
use gaterail_model::ModelSource;
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::config::GenerationDefaults;
use gaterail_model::spec::ModelSpec;
use gaterail_model::text::Tokenizer;
use gaterail_model::walk::{ExpertMath, Hits, LaneTimes, Runner, RunnerOptions};
use gaterail_model::weights::{Precision, account};
use gaterail_router::auth::{Gate, KeyFile};
use gaterail_router::cluster::{ClusterStatus, RemoteExperts, ServedExperts};
use gaterail_router::model::Model;
use gaterail_router::openai::ServerDefaults;
use gaterail_router::serving::{
    Entrance, ModelAbout, RequestLog, Rig, Served, ServedParts, Server, StepMeter,
};
use gaterail_router::{Engine, EngineLimits, EngineParts};

use super::config::ServeConfig;
use super::plan::MemoryPlan;
use super::run::Loading;
use super::workers::choice::{Choice, Circumstances};
use super::workers::fastest::{self, fastest};
use super::workers::open::Opening;
use super::workers::settings::Overlap;
use super::workers::share::CardRoom;
use super::workers::{Team, Workers, devices, share, wait};
use crate::cores::Cores;
use crate::device::DeviceArg;
use crate::error::CliError;
use crate::plan::subject::Subject;
use crate::weights::WeightsArg;
use crate::{demo, generate, packed_cache, source, terminal};

/// Texts that are tokenized at once; more would take the cores from the model.
const TEXT_JOBS_MAX: usize = 2;

/// A loaded model with its engine running.
pub struct Loaded {
    pub server: Arc<Server>,
    pub engine: JoinHandle<()>,
    /// With what they were when all was loaded.
    pub workers: Option<(Workers, ClusterStatus)>,
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

/// A model that is open and checked, and what is to be done with it.
struct Opened {
    path: PathBuf,
    spec: ModelSpec,
    checkpoint: Arc<Checkpoint>,
    precision: Precision,
    plan: MemoryPlan,
    /// `None`: this process holds all of it.
    team: Option<Team>,
    /// Of each worker of this machine that has one.
    cards: Vec<Option<CardRoom>>,
}

pub fn load(config: &ServeConfig, entrance: Entrance, front: &mut Loading) -> Result<Loaded, CliError> {
    let started = Instant::now();
    let path = match &config.model {
        Some(model) => source::resolve(model)?,
        None => demo::path()?,
    };
    let source = ModelSource::open(&path)?;
    let opened = open(path, &source, config)?;
    let tokenizer = if source.has_tokenizer() { Some(Arc::new(source.tokenizer()?)) } else { None };
    let template = source.chat_template()?;
    let defaults = source.generation_defaults()?;
    let shares = account(&opened.spec, Some(&opened.checkpoint));
    let about = ModelAbout {
        parameters: shares.values().map(|share| share.parameters).sum(),
        active_parameters: shares.values().map(|share| share.active_parameters).sum(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    let stop_ids = match &tokenizer {
        Some(tokenizer) => tokenizer.stop_ids().to_vec(),
        None => defaults.stop_ids.clone(),
    };
    let (architecture, model_context) = (opened.spec.architecture.clone(), opened.spec.context);
    let (plan, precision) = (opened.plan, precision_text(opened.precision));
    let running = start(opened, (tokenizer.clone(), stop_ids), config, front)?;
    let generation = if config.makers_defaults { defaults } else { GenerationDefaults::default() };
    let served = Served::new(ServedParts {
        engine: running.engine,
        names: names(config),
        tokenizer,
        template,
        defaults: ServerDefaults { generation },
        about,
        text_jobs_max: TEXT_JOBS_MAX,
    });
    let log = RequestLog::to(config.log, std::io::stderr());
    let server = Arc::new(Server::new(served, running.rig, entrance, log, config.server.clone()));
    let (engine, workers, took) = (running.thread, running.workers, started.elapsed());
    Ok(Loaded { server, engine, workers, plan, architecture, precision, model_context, took })
}

/// Decides before a byte is loaded: in which precision, with which workers, and whether it fits.
fn open(path: PathBuf, source: &ModelSource, config: &ServeConfig) -> Result<Opened, CliError> {
    let (spec, checkpoint) = (source.spec()?, source.checkpoint()?);
    if let Some(asked) = config.engine.context_max.filter(|asked| *asked > spec.context) {
        let detail = format!("--max-context {asked} is more than the model's context of {}", spec.context);
        return Err(CliError::Usage(detail));
    }
    // Others' memory is not known yet; what does not fit there is said when they have joined.
    let weights = match config.weights {
        WeightsArg::Auto if config.workers.is_remote() => WeightsArg::Stored,
        weights => weights,
    };
    let (demo, sparse) = (config.model.is_none(), spec.sparse().is_some());
    let devices = devices::asked(&config.workers.devices, Team::spawned(&config.workers, demo))?;
    let precision = weights.precision(&spec, &checkpoint, MemoryPlan::beside_weights(&spec, config));
    let precision = devices::precision(&devices, weights, precision, (&spec, &checkpoint));
    let alone = MemoryPlan::new(&spec, &checkpoint, precision, config);
    let cards = match sparse {
        true => devices::cards_of(&devices, precision, (&spec, &checkpoint))?,
        false => Vec::new(),
    };
    let on_cards = cards.iter().any(Option::is_some);
    let here = Circumstances { demo, sparse, fits: alone.is_ok() && !on_cards };
    let team = match Team::choose(&config.workers, here).map_err(CliError::Usage)? {
        Choice::Alone => None,
        Choice::AloneBecause(why) => {
            terminal::note(&format!("gaterail: no workers: {why}"));
            None
        }
        Choice::Team(team) => Some(team),
    };
    if team.is_none() && config.workers.overlap != Overlap::Off {
        terminal::note("gaterail: --overlap-rows does nothing without workers");
    }
    if team.is_none() && config.workers.devices.iter().any(|device| *device != DeviceArg::Cpu) {
        terminal::note("gaterail: --worker-devices does nothing without --workers");
    }
    let plan = match &team {
        None => alone?,
        Some(team) => MemoryPlan::with_workers(&spec, &checkpoint, precision, config, (team, &cards))?,
    };
    let team = match team {
        Some(team) if config.workers.parallel == Some(Parallel::Auto) && on_cards => {
            terminal::note(&format!(
                "gaterail: --parallel auto: {}; how fast cards are is not known before they are measured",
                team.mode
            ));
            Some(team)
        }
        Some(team) if config.workers.parallel == Some(Parallel::Auto) => {
            Some(fastest_way(team, (&spec, &checkpoint), config, &plan)?)
        }
        team => team,
    };
    Ok(Opened { path, spec, checkpoint: Arc::new(checkpoint), precision, plan, team, cards })
}

/// The team with the mode that is predicted to be fastest; says which and why.
fn fastest_way(
    team: Team,
    (spec, checkpoint): (&ModelSpec, &Checkpoint),
    config: &ServeConfig,
    plan: &MemoryPlan,
) -> Result<Team, CliError> {
    let name = config.model.as_deref().unwrap_or(demo::NAME);
    let subject = Subject::of(name, spec, Some(checkpoint), config.weights, config.kv)?;
    let holders = (team.spawn + usize::from(config.workers.local)).max(1);
    let (mode, why) = fastest(&fastest::Circumstances {
        shape: &subject.shape,
        inventory: &subject.inventory,
        team: &team,
        copies: config.workers.copies,
        device: config.device,
        threads: config.threads,
        memory: plan.workers_memory() / holders as u64,
        batch: config.engine.batch_max,
        context: plan.context,
    })?;
    terminal::note(&format!("gaterail: --parallel auto: {why}"));
    Ok(Team { mode, ..team })
}

/// An engine that runs.
struct Running {
    engine: Engine,
    thread: JoinHandle<()>,
    rig: Rig,
    workers: Option<(Workers, ClusterStatus)>,
}

type Texts = (Option<Arc<Tokenizer>>, Vec<u32>);

/// Loads what this process holds, while its workers, if it has any, load what they hold.
fn start(
    opened: Opened,
    (tokenizer, stop_ids): Texts,
    config: &ServeConfig,
    front: &mut Loading,
) -> Result<Running, CliError> {
    let Opened { path, spec, checkpoint, precision, plan, team, cards } = opened;
    let options = RunnerOptions {
        rows_max: config.step_tokens,
        positions: plan.kv_positions(),
        shards: Vec::new(),
        precision,
        kv: config.kv_form(),
    };
    let (device, threads, cache) = (config.device, config.threads, config.packed_cache.cache());
    let limits = EngineLimits { context_max: Some(plan.context), ..config.engine.clone() };
    let Some(team) = team else {
        // On the engine's own thread: the device binds the thread that opens it to a core.
        let build = move |clocks: &ClocksOf| -> Result<EngineParts, CliError> {
            let device = device.open(threads)?;
            let (mut runner, outcome) = generate::load(spec, &checkpoint, &device, &options, cache.as_ref())?;
            // Written beside the running server; one that ends before leaves no file.
            let _ = packed_cache::keep(outcome);
            let _ = clocks.set((runner.times(), Some(runner.experts().hits().clone())));
            Ok(EngineParts { runner, tokenizer, stop_ids })
        };
        let (engine, thread, (times, hits)) = start_engine(build, limits)?;
        let rig = Rig { steps: StepMeter::new(times, hits), cluster: None };
        return Ok(Running { engine, thread, rig, workers: None });
    };
    let (cores, own) = (Cores::allowed(), config.workers.local);
    let shares = share::shares_beside_cards(&cards, own, threads, &cores, plan.workers_memory());
    let shares_cores = own || cards.contains(&None);
    let math = ExpertMath::of(&spec);
    let served =
        ServedExperts::new(&path, Arc::new(spec.clone()), checkpoint.clone(), precision, config.step_tokens);
    let opening = Opening {
        team,
        settings: &config.workers,
        served,
        shares,
        device,
        packed_cache: &config.packed_cache,
    };
    let socket = front.cluster_socket.take();
    let workers = opening.open(socket, front)?;
    let experts = workers.experts(math);
    let settings = config.workers.clone();
    let build = move |clocks: &ClocksOf| -> Result<EngineParts<Runner<RemoteExperts>>, CliError> {
        let device = device.open(threads)?;
        let loading: &mut dyn FnMut(u64) = &mut |_| {};
        let (mut runner, outcome) =
            Runner::with_experts(spec, &checkpoint, &device, &options, cache.as_ref(), loading, experts())?;
        let is_gpu = !matches!(device, Device::Cpu(_));
        if let Some(rows) = settings.overlap_from(shares_cores && !is_gpu) {
            runner.overlap_from(rows).map_err(|error| CliError::Refused(error.to_string()))?;
        }
        let _ = packed_cache::keep(outcome);
        let _ = clocks.set((runner.times(), None));
        Ok(EngineParts { runner, tokenizer, stop_ids })
    };
    let (engine, thread, (times, _)) = start_engine(build, limits)?;
    let status = wait::until_placed(&workers, &team)?;
    let steps = StepMeter::with_exchange(times, workers.stats.clone());
    let rig = Rig { steps, cluster: Some(workers.cluster.clone()) };
    Ok(Running { engine, thread, rig, workers: Some((workers, status)) })
}

/// A runner's clocks, and what counts the hits of its own experts.
type Clocks = (Arc<LaneTimes>, Option<Arc<Hits>>);
/// Where they are left when it has been made, on a thread of its own.
type ClocksOf = OnceLock<Clocks>;

fn start_engine<M: Model + 'static>(
    build: impl FnOnce(&ClocksOf) -> Result<EngineParts<M>, CliError> + Send + 'static,
    limits: EngineLimits,
) -> Result<(Engine, JoinHandle<()>, Clocks), CliError> {
    let clocks = Arc::new(ClocksOf::new());
    let there = clocks.clone();
    let (engine, thread) = Engine::start(move || build(&there), limits)?;
    Ok((engine, thread, clocks.get().cloned().unwrap_or_default()))
}

fn precision_text(precision: Precision) -> &'static str {
    match precision {
        Precision::AsStored => "as stored",
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
        Precision::Int4 => "int4",
    }
}

/// As asked; else what the operator calls the model.
fn names(config: &ServeConfig) -> Vec<String> {
    if !config.names.is_empty() {
        return config.names.clone();
    }
    let own = config.model.as_deref().unwrap_or(demo::NAME).trim_end_matches('/');
    vec![terminal::visible(own)]
}
