//! Loading what an epoch wants here, on a thread of its own, beside what is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gaterail_kernels::KernelError;
use gaterail_kernels::cuda::CudaError;
use gaterail_kernels::ops::ExpertPiece;
use gaterail_model::weights::cache::CacheOutcome;
use gaterail_proto::{Epoch, ExpertSlice, RouterId, ShardSpec};
use tokio::sync::mpsc;

use crate::fetch::FromRouter;
use crate::models::Model;
use crate::options::WorkerOptions;
use crate::shards::NotPrepared;

/// Progress is told this often.
const PROGRESS: Duration = Duration::from_millis(100);
/// What has no room waits so long for it, and looks this often.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
const ROOM_WAIT: Duration = Duration::from_millis(10);
/// What was loaded may be dropped by another router's retreat before it is prepared.
const ATTEMPTS_MAX: usize = 3;

/// What a router wants.
pub struct Wanted {
    pub router: RouterId,
    pub epoch: Epoch,
    pub shard: ShardSpec,
}

/// What is told of it.
#[derive(Debug)]
pub enum Told {
    Loading {
        epoch: Epoch,
        bytes: u64,
        total: u64,
    },
    /// All is there; how what was missing came, and its bytes.
    Prepared {
        epoch: Epoch,
        source: &'static str,
        bytes: u64,
    },
    Failed {
        epoch: Epoch,
        detail: String,
    },
}

/// A thread that loads. It ends by itself, and is told to by `cancel`.
pub struct Loading {
    cancelled: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Loading {
    /// Loads what is wanted; `before` is given up first.
    pub fn start(
        model: Arc<Model>,
        wanted: Wanted,
        options: WorkerOptions,
        router: FromRouter,
        before: Option<Loading>,
        tell: mpsc::Sender<Told>,
    ) -> std::io::Result<Loading> {
        let cancelled = Arc::new(AtomicBool::new(false));
        if let Some(before) = &before {
            before.cancel();
        }
        // Before anything else that the router says: what it retires next is not what it wants now.
        model.shards.want(wanted.router, wanted.epoch, &wanted.shard);
        let router = FromRouter { cancelled: cancelled.clone(), ..router };
        let job = Job { model, wanted, options, router, cancelled: cancelled.clone(), tell };
        let thread = std::thread::Builder::new().name("load-experts".into()).spawn(move || {
            if let Some(before) = before {
                // How it ended does not matter; what it holds does.
                let _ = before.thread.join();
                // It may have kept one more piece.
                let Wanted { router, epoch, shard } = &job.wanted;
                job.model.shards.want(*router, *epoch, shard);
            }
            job.run();
        })?;
        Ok(Loading { cancelled, thread })
    }

    /// Nobody wants it any more.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

struct Job {
    model: Arc<Model>,
    wanted: Wanted,
    options: WorkerOptions,
    router: FromRouter,
    cancelled: Arc<AtomicBool>,
    tell: mpsc::Sender<Told>,
}

impl Job {
    fn run(self) {
        let epoch = self.wanted.epoch;
        let told = match self.load() {
            Ok(Some((source, bytes))) => Told::Prepared { epoch, source, bytes },
            Ok(None) => return,
            // Whatever came of what nobody wants any more.
            Err(_) if self.cancelled.load(Ordering::Relaxed) => return,
            Err(detail) => {
                self.model.shards.give_up(self.wanted.router, epoch);
                Told::Failed { epoch, detail }
            }
        };
        // The connection may have ended meanwhile.
        let _ = self.tell.blocking_send(told);
    }

    /// How what was missing came, and its bytes; `None` if nobody wants it any more.
    fn load(&self) -> Result<Option<(&'static str, u64)>, String> {
        let Job { model, wanted, .. } = self;
        let (mut source, mut bytes) = ("", 0);
        for _ in 0..ATTEMPTS_MAX {
            let missing = model.shards.missing(&wanted.shard);
            if !missing.is_empty() {
                let mut progress = Progress::new(self, missing.len());
                let loaded = model.source.load(
                    &model.served,
                    &missing,
                    &self.options,
                    &self.router,
                    &mut |slice, piece| {
                        if !progress.piece(&piece) {
                            return None;
                        }
                        progress.keep(slice, piece).map_err(|error| progress.refused = Some(error)).ok()
                    },
                )?;
                bytes += progress.bytes;
                if self.cancelled.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                if let Some(error) = progress.refused {
                    return Err(error.to_string());
                }
                if progress.full {
                    return Err(format!(
                        "no room: experts may take {} bytes here",
                        self.options.memory_bytes
                    ));
                }
                source = loaded.source;
                keep(loaded.outcome, &self.options);
            }
            match model.shards.prepare(wanted.router, wanted.epoch, wanted.shard.clone()) {
                Ok(()) => return Ok(Some((source, bytes))),
                // It was retired meanwhile.
                Err(NotPrepared::Missing(_)) => {}
                Err(NotPrepared::Unwanted) => return Ok(None),
                Err(NotPrepared::Device(error)) => return Err(error.to_string()),
            }
        }
        Err("what was loaded was dropped before all of it was there".to_string())
    }
}

/// How far loading is.
struct Progress<'a> {
    job: &'a Job,
    bytes: u64,
    pieces: usize,
    pieces_total: usize,
    told: Instant,
    full: bool,
    /// What the device says.
    refused: Option<KernelError>,
}

impl<'a> Progress<'a> {
    fn new(job: &'a Job, pieces_total: usize) -> Progress<'a> {
        Progress { job, bytes: 0, pieces: 0, pieces_total, told: Instant::now(), full: false, refused: None }
    }

    /// Whether loading goes on with this piece.
    fn piece(&mut self, piece: &ExpertPiece) -> bool {
        if self.job.cancelled.load(Ordering::Relaxed) {
            return false;
        }
        let weights = [&piece.gate, &piece.up, &piece.down];
        let bytes = weights.iter().map(|weight| weight.stored_bytes() as u64).sum::<u64>();
        self.bytes += bytes;
        self.pieces += 1;
        self.full = !self.has_room(bytes);
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            // Pieces are of one size, more or less.
            let total = self.bytes / self.pieces as u64 * self.pieces_total as u64;
            let (epoch, bytes) = (self.job.wanted.epoch, self.bytes);
            // Who is too busy to hear of it hears of the next.
            let _ = self.job.tell.try_send(Told::Loading { epoch, bytes, total: total.max(bytes) });
        }
        !self.full
    }

    /// Puts a piece where it is computed, and returns it as it is there. A GPU's memory may be about to be freed: what went is counted before it is gone.
    fn keep(&self, slice: ExpertSlice, piece: ExpertPiece) -> Result<ExpertPiece, KernelError> {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        loop {
            match self.job.model.shards.keep(slice, piece.clone()) {
                Err(KernelError::Cuda(CudaError::OutOfMemory { .. }))
                    if Instant::now() < deadline && !self.job.cancelled.load(Ordering::Relaxed) =>
                {
                    std::thread::sleep(ROOM_WAIT);
                }
                kept => return kept,
            }
        }
    }

    /// Whether there is room for so much more. What another epoch holds may be about to go.
    fn has_room(&self, bytes: u64) -> bool {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        while self.job.model.shards.held_bytes() + bytes > self.job.options.memory_bytes {
            if Instant::now() >= deadline || self.job.cancelled.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(ROOM_WAIT);
        }
        true
    }
}

/// Says what the operator should know, and writes what was packed to the cache, beside everything else.
fn keep(outcome: CacheOutcome, options: &WorkerOptions) {
    outcome.notes.iter().for_each(|note| (options.note)(note));
    let Some(pending) = outcome.pending else { return };
    let note = options.note.clone();
    let write = move || {
        if let Err(error) = pending.write(&mut |_| {}) {
            note(&format!("packed weights are not kept: {error}"));
        }
    };
    // Without a thread they are packed again with the next start.
    let _ = std::thread::Builder::new().name("packed-cache".into()).spawn(write);
}
