//! Streams of workers that are open, by the session that admits a worker to its other calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use gaterail_cluster::exchange::Channel;
use gaterail_proto::grpc::SESSION;
use gaterail_proto::grpc::v1::FromRouter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Random bytes of a session.
const SESSION_BYTES: usize = 16;

/// Tells one stream of a worker from its next.
pub(super) type Serial = u64;

/// The way to a worker; its stream ends when this is dropped.
pub(super) struct Outgoing {
    pub messages: mpsc::Sender<Result<FromRouter, Status>>,
    /// Whoever reads what the worker says sees it dropped.
    pub _open: oneshot::Sender<()>,
}

/// One stream of a worker.
pub(super) struct Session {
    pub id: String,
    pub serial: Serial,
    /// Whoever waits for the worker to call Exchange.
    exchange: Mutex<Option<oneshot::Sender<Box<dyn Channel>>>>,
    over: AtomicBool,
    /// One call of Experts at a time.
    pub experts: Arc<Semaphore>,
}

/// All of them.
pub(super) struct Sessions {
    room: Arc<Semaphore>,
    open: Arc<Open>,
    serials: AtomicU64,
}

#[derive(Default)]
struct Open(Mutex<HashMap<String, Arc<Session>>>);

/// A session for as long as this lives.
pub(super) struct OpenSession {
    pub session: Arc<Session>,
    open: Arc<Open>,
    _permit: OwnedSemaphorePermit,
}

impl Sessions {
    pub fn new(workers_max: usize) -> Sessions {
        let room = Arc::new(Semaphore::new(workers_max));
        Sessions { room, open: Arc::default(), serials: AtomicU64::new(0) }
    }

    /// Room for one more worker.
    pub fn room(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.room.clone().try_acquire_owned().map_err(|_| match self.room.is_closed() {
            true => Status::unavailable("the router ends"),
            false => Status::resource_exhausted("this router has as many workers as it takes"),
        })
    }

    /// Takes nobody in any more.
    pub fn close(&self) {
        self.room.close();
    }

    /// A session for a worker that has registered.
    pub fn open(&self, permit: OwnedSemaphorePermit) -> Result<OpenSession, Status> {
        let mut random = [0; SESSION_BYTES];
        getrandom::fill(&mut random).map_err(|_| Status::internal("the system has no random numbers"))?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let session = Arc::new(Session {
            id: id.clone(),
            serial: self.serials.fetch_add(1, Ordering::Relaxed),
            exchange: Mutex::new(None),
            over: AtomicBool::new(false),
            experts: Arc::new(Semaphore::new(1)),
        });
        self.open.lock().insert(id, session.clone());
        Ok(OpenSession { session, open: self.open.clone(), _permit: permit })
    }

    /// The session that a call names.
    pub fn of(&self, metadata: &MetadataMap) -> Result<Arc<Session>, Status> {
        let id = metadata.get(SESSION).and_then(|value| value.to_str().ok());
        let id = id.ok_or_else(|| Status::unauthenticated("a call of a worker that has not joined"))?;
        let session = self.open.lock().get(id).cloned();
        session.ok_or_else(|| Status::unauthenticated("this session is over; join again"))
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Session {
    /// Whether its worker's stream has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// What comes when the worker calls Exchange.
    pub fn await_exchange(&self) -> oneshot::Receiver<Box<dyn Channel>> {
        let (sender, receiver) = oneshot::channel();
        *self.lock() = Some(sender);
        receiver
    }

    /// The worker calls Exchange: where its channel goes, if it is waited for.
    pub fn take_exchange(&self) -> Result<oneshot::Sender<Box<dyn Channel>>, Status> {
        let waiting = self.lock().take();
        waiting.ok_or_else(|| Status::failed_precondition("this worker's rows travel already"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<oneshot::Sender<Box<dyn Channel>>>> {
        self.exchange.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.session.over.store(true, Ordering::Relaxed);
        self.open.lock().remove(&self.session.id);
    }
}
