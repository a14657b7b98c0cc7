//! `gaterail worker`: holds experts for routers, and computes them.
//!
//! | file | |
//! |---|---|
//! | [`args`] | what an operator says |
//! | [`parent`] | the end of a worker whose server is gone |

mod args;
pub mod parent;

use std::sync::Arc;
use std::time::Duration;

use gaterail_cluster::exchange::Waiting;
use gaterail_kernels::KernelError;
use gaterail_kernels::cuda::{Card, CudaDevice};
use gaterail_router::notes::Notes;
use gaterail_worker::{Worker, WorkerLimits, WorkerOptions};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use args::{WorkerArgs, read_token, usual_memory};

use crate::cards::{self, Chosen, Claim, Found};
use crate::device::DeviceArg;
use crate::error::CliError;
use crate::progress::bytes_text;
use crate::{machine, terminal, tls};

/// The cores belong to the experts.
const EVENT_THREADS: usize = 1;
/// Ended by a second signal, as shells have it for an interrupt.
const INTERRUPTED: i32 = 130;
/// The end waits so long for what was said to be written.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

pub fn run(args: &WorkerArgs) -> Result<(), CliError> {
    parent::end_with()?;
    // Before there is any other thread: they inherit it.
    if let Some(cores) = &args.cores {
        cores.bind()?;
    }
    let notes = Notes::to(terminal::note).map_err(CliError::io("starting a thread"))?;
    let (gpu, _claim) = card(args.device, &notes)?.unzip();
    let options = options(args, gpu, notes.clone())?;
    let place = options.gpu.as_ref().map(|gpu| format!(" on cuda:{}, {gpu}", gpu.properties().ordinal));
    note(
        &notes,
        &format!(
            "{} holds up to {} of experts{}; joining {}",
            options.name,
            bytes_text(options.memory_bytes),
            place.unwrap_or_default(),
            options.join.join(", ")
        ),
    );
    if let Some(join) = args.join.iter().find(|join| options.tls.is_none() && !join.is_own()) {
        let address = &join.address;
        note(
            &notes,
            &format!(
                "{address} is joined in clear: others on the way can read the token and all rows; --certs DIR encrypts them (gaterail certs init)"
            ),
        );
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(EVENT_THREADS)
        .thread_name("worker-front")
        .enable_all()
        .build()
        .map_err(CliError::io("starting the event loop"))?;
    let result = runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(CliError::io("waiting for signals"));
        let (end, interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let (shown, notes_of_tls) = (args.tls_files().shown("worker"), notes.clone());
        tokio::spawn(tls::watch(shown.into_iter().collect(), move |line| note(&notes_of_tls, &line)));
        let ended = Worker::run(options, until_signal(end, interrupt, notes.clone())).await;
        ended.map_err(|error| CliError::Refused(error.to_string()))
    });
    // Threads that load or compute have nothing left to do.
    runtime.shutdown_background();
    if result.is_ok() {
        note(&notes, "drained: nobody waits for this worker");
    }
    notes.flush(LAST_WORDS_MAX);
    result
}

/// The first signal drains, the second ends at once.
async fn until_signal(mut end: Signal, mut interrupt: Signal, notes: Notes) {
    tokio::select! { _ = end.recv() => {}, _ = interrupt.recv() => {} };
    note(&notes, "draining: routers are told to do without this worker. Once more to stop at once");
    tokio::spawn(async move {
        tokio::select! { _ = end.recv() => {}, _ = interrupt.recv() => {} };
        std::process::exit(INTERRUPTED);
    });
}

/// The card to compute on, which is this worker's from here on; `None`: the CPU. Whoever asks for one that is not to be had learns
/// it at once, and `auto` says what it comes to.
fn card(asked: DeviceArg, notes: &Notes) -> Result<Option<(Arc<CudaDevice>, Claim)>, CliError> {
    let open = |card: &Card| CudaDevice::open(card.properties.ordinal).map_err(KernelError::from);
    let mut lost = Vec::new();
    loop {
        let mut here = if asked == DeviceArg::Cpu { Ok(Vec::new()) } else { cards::look() };
        // Each is tried once, so that this ends.
        for (ordinal, found) in here.iter_mut().flatten().enumerate() {
            if lost.contains(&ordinal) {
                *found = Found::Unfit("another worker was faster".to_string());
            }
        }
        // Whoever is lost to another is not waited for. A server has waited before it started its workers, and gives up where they
        // end soon.
        if !parent::is_there() {
            here = cards::released(&[asked], here, cards::RELEASE, |line| note(notes, &line));
        }
        let chosen = cards::choose(&[asked], &here).map_err(CliError::Refused)?;
        let Some(Chosen { card, why }) = chosen.into_iter().next() else { return Ok(None) };
        let said =
            |why: Option<String>| why.into_iter().for_each(|why| note(notes, &format!("computes on {why}")));
        let Some(card) = card else {
            said(why);
            return Ok(None);
        };
        // Somebody may have been faster.
        let Some(claim) = cards::claim(&card) else {
            lost.push(card.properties.ordinal);
            continue;
        };
        return match open(&card) {
            Ok(gpu) => {
                said(why);
                Ok(Some((gpu, claim)))
            }
            Err(error) if asked == DeviceArg::Auto => {
                said(Some(format!("the CPU: cuda:{}: {error}", card.properties.ordinal)));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        };
    }
}

fn options(args: &WorkerArgs, gpu: Option<Arc<CudaDevice>>, notes: Notes) -> Result<WorkerOptions, CliError> {
    let memory = match (args.memory, &gpu) {
        (Some(bytes), None) => bytes,
        // A card has what it has.
        (Some(bytes), Some(gpu)) => bytes.min(free_memory(Some(gpu))?),
        (None, gpu) => free_memory(gpu.as_deref())?,
    };
    let threads = args.threads;
    Ok(WorkerOptions {
        join: args.join.iter().map(|join| join.address.clone()).collect(),
        token: args.token()?,
        tls: args.tls()?,
        name: args.name(),
        device: Arc::new(move || -> Result<_, KernelError> { machine::cpu(threads) }),
        gpu,
        memory_bytes: memory,
        packed_cache: args.packed_cache.cache(),
        models: args.model.clone(),
        read_checkpoints: !args.weights_from_router,
        shared_memory: !args.no_shared_memory,
        waiting: Waiting::default(),
        limits: WorkerLimits::default(),
        note: Arc::new(move |line| note(&notes, line)),
    })
}

/// What experts may take where nobody says.
fn free_memory(gpu: Option<&CudaDevice>) -> Result<u64, CliError> {
    let free = match gpu {
        Some(gpu) => Some(gpu.free_bytes().map_err(KernelError::from)? as u64),
        None => machine::available_memory_bytes(),
    };
    free.map(usual_memory).ok_or_else(|| {
        CliError::Usage("the system does not say how much memory there is: give --memory BYTES".to_string())
    })
}

/// Heartbeats and rows do not wait for whoever reads standard error.
fn note(notes: &Notes, line: &str) {
    notes.tell(terminal::visible(&format!("gaterail: {line}")));
}
