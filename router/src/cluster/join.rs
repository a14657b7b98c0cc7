//! A worker's membership, from Register to the end of its stream.

use std::sync::Arc;

use gaterail_cluster::exchange::{Channel, SharedEnd, Waiting, create_shared};
use gaterail_cluster::membership::{Event, Machine, WorkerAbout};
use gaterail_kernels::{ARITHMETIC, PACKED_LAYOUT};
use gaterail_proto::grpc::v1::from_router::What as ToWorker;
use gaterail_proto::grpc::v1::from_worker::What;
use gaterail_proto::grpc::v1::{FromRouter, FromWorker, Register, SharedMemory, Welcome};
use gaterail_proto::{Epoch, ShardSpec, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::control::{Cluster, Input, Joined};
use super::options::ClusterLimits;
use super::sessions::{OpenSession, Outgoing};
use crate::http::VERSION;

/// What a worker is told.
pub(super) type ToWorkers = mpsc::Receiver<Result<FromRouter, Status>>;

/// Takes a worker in; from here on its stream is read by a task of its own.
pub(super) async fn join(
    cluster: Arc<Cluster>,
    mut stream: Streaming<FromWorker>,
) -> Result<ToWorkers, Status> {
    let limits = &cluster.options.limits;
    let permit = cluster.sessions.room()?;
    cluster.pulse.begin();
    let first = timeout(limits.register_time_max, stream.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("a worker registers first, and at once"))??;
    let Some(What::Register(register)) = first.and_then(|message| message.what) else {
        return Err(Status::invalid_argument("a worker registers first"));
    };
    let about = check(register, limits)?;
    let open = cluster.sessions.open(permit)?;
    let (messages, receiver) = mpsc::channel(limits.outgoing_max);
    let (closed, on_close) = oneshot::channel();
    let shared = offer(&cluster, &about);
    let shared_memory = shared.as_ref().map(|(offer, _)| *offer);
    let welcome = Welcome {
        router: cluster.router.0,
        session: open.session.id.clone(),
        heartbeat_ms: limits.heartbeat.as_millis() as u32,
        body_bytes_max: cluster.served.body_bytes_max,
        shared_memory,
        model: Some(cluster.served.message.clone()),
    };
    // The first message of a queue that is empty.
    let _ = messages.try_send(Ok(FromRouter { what: Some(ToWorker::Welcome(welcome)) }));
    let outgoing = Outgoing { messages, _open: closed };
    let shared = shared.map(|(_, end)| end);
    let membership = Membership { cluster, about, open, stream, on_close, chosen: false };
    tokio::spawn(membership.run(outgoing, shared));
    Ok(receiver)
}

/// A worker that may serve this router.
fn check(register: Register, limits: &ClusterLimits) -> Result<WorkerAbout, Status> {
    let Register { worker, name, version, packed_layout, arithmetic, machine, host } = register;
    if version != VERSION || packed_layout != PACKED_LAYOUT || arithmetic != ARITHMETIC {
        let ours = format!("{VERSION} with packed layout {PACKED_LAYOUT} and arithmetic {ARITHMETIC}");
        let version = short(&version, limits.text_bytes_max);
        let theirs = format!("{version} with {packed_layout} and {arithmetic}");
        let what = format!("this router is Gaterail {ours}, the worker {theirs}: both have to be the same");
        return Err(Status::failed_precondition(what));
    }
    let machine = machine.ok_or_else(|| Status::invalid_argument("a worker without a machine"))?;
    for (what, text) in [("name", &name), ("device", &machine.device), ("host", &host)] {
        if text.len() > limits.text_bytes_max || text.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!("a worker's {what}, {} bytes", text.len())));
        }
    }
    let rates = [machine.read_bytes_per_second, machine.int8_operations_per_second];
    if rates.iter().any(|rate| !rate.is_finite() || *rate < 0.0) {
        return Err(Status::invalid_argument("a worker's rates"));
    }
    let machine = Machine {
        device: machine.device,
        card: machine.card,
        threads: machine.threads,
        memory_bytes: machine.memory_bytes,
        read_bytes_per_second: machine.read_bytes_per_second,
        int8_operations_per_second: machine.int8_operations_per_second,
        pid: machine.pid,
    };
    Ok(WorkerAbout { id: WorkerId(worker), name, machine, host, packed: Arc::default() })
}

/// The front of a text that somebody else wrote, for an error.
fn short(text: &str, bytes_max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(bytes_max.min(64)).collect()
}

/// Memory to share with a worker of this host; where it cannot be had, the worker calls Exchange.
fn offer(cluster: &Cluster, about: &WorkerAbout) -> Option<(SharedMemory, SharedEnd)> {
    let own = gaterail_cluster::host().filter(|_| cluster.options.shared_memory);
    own.filter(|own| *own == about.host)?;
    let nonce = getrandom::u64().ok()?;
    let (offer, end) = create_shared(cluster.served.body_bytes_max, nonce, Waiting::default()).ok()?;
    Some((SharedMemory { pid: offer.pid, fd: offer.fd, bytes: offer.bytes, nonce: offer.nonce }, end))
}

struct Membership {
    cluster: Arc<Cluster>,
    about: WorkerAbout,
    open: OpenSession,
    stream: Streaming<FromWorker>,
    /// Control has closed the stream.
    on_close: oneshot::Receiver<()>,
    /// Whether it said how its rows travel. Its call of Exchange may be faster than its word for it.
    chosen: bool,
}

impl Membership {
    async fn run(mut self, outgoing: Outgoing, shared: Option<SharedEnd>) {
        let exchange_time_max = self.cluster.options.limits.exchange_time_max;
        let channel = match timeout(exchange_time_max, self.channel(shared)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(status)) => return drop(outgoing.messages.try_send(Err(status))),
            Err(_) => {
                let why = Status::deadline_exceeded("no way for rows was opened in time");
                return drop(outgoing.messages.try_send(Err(why)));
            }
        };
        let (worker, serial) = (self.about.id, self.open.session.serial);
        let joined = Joined { about: self.about.clone(), serial, outgoing, channel };
        let inputs = self.cluster.inputs.clone();
        if inputs.send(Input::Joined(Box::new(joined))).await.is_err() {
            return;
        }
        let why = self.listen(&inputs).await;
        // Control may be gone, and everything with it.
        let _ = inputs.send(Input::Left { worker, serial, why }).await;
    }

    /// The way that rows travel, as the worker chooses it.
    async fn channel(&mut self, shared: Option<SharedEnd>) -> Result<Box<dyn Channel>, Status> {
        let mut exchange = self.open.session.await_exchange();
        loop {
            // What it said first is heard first: it says there what lies packed.
            let message = tokio::select! {
                biased;
                message = self.stream.message() => message?,
                channel = &mut exchange => {
                    return channel.map_err(|_| Status::aborted("the exchange was given up"));
                }
            };
            let Some(message) = message else { return Err(Status::aborted("the worker is gone")) };
            let Some(What::Exchange(chosen)) = message.what else { continue };
            self.chosen = true;
            let packed = ShardSpec::from_message(&chosen.packed, &self.cluster.served.inventory);
            self.about.packed = Arc::new(packed.map_err(Status::invalid_argument)?);
            match (chosen.shared_memory, shared) {
                (true, Some(end)) => return Ok(Box::new(end)),
                (true, None) => return Err(Status::invalid_argument("no memory was offered")),
                (false, _) => break,
            }
        }
        tokio::select! {
            channel = &mut exchange => channel.map_err(|_| Status::aborted("the exchange was given up")),
            ended = self.ended() => Err(Status::aborted(ended)),
        }
    }

    /// Passes over what a worker says before its rows can travel; says how its stream ended.
    async fn ended(&mut self) -> String {
        loop {
            match self.stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return "the worker is gone".to_string(),
                Err(status) => return status.message().to_string(),
            }
        }
    }

    /// Passes on what the worker says, until its stream ends; says why it did.
    async fn listen(&mut self, inputs: &mpsc::Sender<Input>) -> String {
        let (worker, serial) = (self.about.id, self.open.session.serial);
        loop {
            let message = tokio::select! {
                message = self.stream.message() => message,
                _ = &mut self.on_close => return "it was dismissed".to_string(),
            };
            let what = match message {
                Ok(Some(message)) => message.what,
                Ok(None) => return "it went away".to_string(),
                Err(status) => return format!("its stream broke: {}", status.message()),
            };
            let event = match what {
                Some(What::Heartbeat(beat)) => {
                    Event::Heard { worker, calls: beat.calls, held_bytes: beat.held_bytes }
                }
                Some(What::Loading(at)) => {
                    let (bytes, total) = (at.bytes, at.bytes_total);
                    Event::Loading { worker, epoch: Epoch(at.epoch), bytes, total }
                }
                Some(What::Prepared(prepared)) => {
                    let (epoch, bytes) = (Epoch(prepared.epoch), prepared.loaded_bytes);
                    // Before it is active; control may have ended, which shows below.
                    let _ = inputs.send(Input::Loaded { worker, serial, epoch, bytes }).await;
                    Event::Prepared { worker, epoch }
                }
                Some(What::PrepareFailed(failed)) => {
                    let detail = short(&failed.detail, 1024);
                    Event::PrepareFailed { worker, epoch: Epoch(failed.epoch), detail }
                }
                Some(What::Leaving(_)) => Event::Leaving { worker },
                Some(What::Exchange(late)) if !self.chosen && !late.shared_memory => {
                    self.chosen = true;
                    continue;
                }
                Some(What::Register(_) | What::Exchange(_)) => {
                    return "it registered twice, or chose an exchange twice".to_string();
                }
                // Of a newer worker.
                None => continue,
            };
            if inputs.send(Input::Said { worker, serial, event }).await.is_err() {
                return "control has ended".to_string();
            }
        }
    }
}
