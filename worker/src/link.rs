//! One connection to one router, from the call of Join to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::unfold;
use gaterail_cluster::exchange::{Channel, Cut, SharedOffer, open_shared, stream};
use gaterail_cluster::tls::TlsTrouble;
use gaterail_kernels::{ARITHMETIC, PACKED_LAYOUT};
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use gaterail_proto::grpc::v1::from_router::What as FromRouterWhat;
use gaterail_proto::grpc::v1::from_worker::What;
use gaterail_proto::grpc::v1::{
    ExchangeChosen, FromRouter as Message, FromWorker, Heartbeat, Leaving, Loading as LoadingMessage,
    Prepare, PrepareFailed, Prepared, Register, Welcome,
};
use gaterail_proto::{Epoch, RouterId, ShardSpec};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel as Http2;
use tonic::{Code, Request, Status, Streaming};

use crate::client::Shared;
use crate::compute::{Compute, Progress};
use crate::fetch::FromRouter;
use crate::loading::{Loading, Told, Wanted};
use crate::models::Model;
use crate::options::WorkerOptions;
use crate::served::ServedModel;

/// Messages that wait for the connection.
const OUTGOING_MAX: usize = 64;
/// Looking for what lies packed takes no longer.
const PACKED_MAX: Duration = Duration::from_secs(2);
/// What loading tells and nobody has heard yet.
const TOLD_MAX: usize = 16;
/// No router may ask for heartbeats more often, or rely on rarer ones.
const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// It may be tried again.
    Again(String),
    /// The router wants this worker no more.
    Over(String),
    /// Joining again would not help.
    Refused(String),
    /// This process can compute no more.
    Broken(String),
    /// This worker ends.
    Stopped,
}

/// A connection that is over.
pub struct Connection {
    /// Whether the router said welcome.
    pub joined: bool,
    /// Whether it was of use: something was prepared, or it lasted.
    pub settled: bool,
    pub ended: Ended,
}

/// What is kept for a router that may come again.
pub type Kept = Vec<(RouterId, Arc<Model>)>;

/// A router's port for workers, whose door is told the token with every call.
pub type Client = ClusterClient<InterceptedService<Http2, Token>>;

/// What a router's door asks for.
#[derive(Clone)]
pub struct Token(pub(crate) Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Joins the router at `address` and serves it, until something ends that.
pub async fn run(
    shared: &Shared,
    address: &str,
    stop: &mut watch::Receiver<bool>,
    kept: &mut Kept,
) -> Connection {
    let joining = async {
        let client = connect(shared, address).await?;
        let (outgoing, incoming) = join(shared, client.clone()).await?;
        welcomed(shared, client, outgoing, incoming).await
    };
    let link = tokio::select! {
        link = joining => link,
        _ = stop.wait_for(|stop| *stop) => Err(Ended::Stopped),
    };
    let mut link = match link {
        Ok(link) => link,
        Err(ended) => return Connection { joined: false, settled: false, ended },
    };
    kept.retain(|(router, _)| *router != link.router);
    kept.push((link.router, link.model.clone()));
    (shared.options.note)(&format!("joined {address} (router {})", link.router));
    let since = Instant::now();
    let ended = link.live(shared, stop, kept).await;
    let settled = link.prepared || since.elapsed() > SETTLED_AFTER;
    link.close().await;
    Connection { joined: true, settled, ended }
}

fn again(error: impl std::error::Error + 'static) -> Ended {
    use std::fmt::Write;
    if let Some(trouble) = trouble(&error) {
        return Ended::Again(trouble);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    Ended::Again(text)
}

/// What TLS has to say, if that is what failed.
fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let trouble = inner.and_then(|inner| inner.downcast_ref::<TlsTrouble>());
        if let Some(TlsTrouble(why)) = trouble.or_else(|| error.downcast_ref()) {
            return Some(why.clone());
        }
        cause = error.source();
    }
    None
}

/// An answer to anything but Join: the router has taken this worker, and may again.
fn broken(status: Status) -> Ended {
    let why = status.message();
    Ended::Again(if why.is_empty() { status.code().to_string() } else { why.to_string() })
}

/// An answer to Join.
fn refused(status: Status) -> Ended {
    let why = status.message().to_string();
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::Unimplemented => Ended::Refused(why),
        _ => broken(status),
    }
}

async fn connect(shared: &Shared, address: &str) -> Result<Client, Ended> {
    let limits = &shared.options.limits;
    let token = shared.options.token.as_ref().map(|token| format!("Bearer {token}").parse());
    let token = token.transpose().map_err(|_| Ended::Refused("a token that is no plain text".to_string()))?;
    let tls = shared.options.tls.as_ref();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = stream::endpoint(format!("{scheme}://{address}"));
    let endpoint = endpoint.map_err(|error| Ended::Refused(error.to_string()))?;
    let connecting = async {
        match tls {
            Some(tls) => tls.connect(&endpoint).await,
            None => endpoint.connect().await,
        }
    };
    let connection = timeout(limits.connect_max, connecting).await;
    let connection =
        connection.map_err(|_| Ended::Again("it does not answer".to_string()))?.map_err(again)?;
    Ok(ClusterClient::with_interceptor(connection, Token(token))
        .max_decoding_message_size(limits.message_bytes_max)
        .max_encoding_message_size(limits.message_bytes_max))
}

type Outgoing = mpsc::Sender<FromWorker>;

async fn join(shared: &Shared, mut client: Client) -> Result<(Outgoing, Streaming<Message>), Ended> {
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let register = Register {
        worker: shared.id.0,
        name: shared.options.name.clone(),
        version: shared.version.clone(),
        packed_layout: PACKED_LAYOUT,
        arithmetic: ARITHMETIC,
        machine: Some(shared.machine.clone()),
        host: shared.host.clone(),
    };
    // The first message of a queue that is empty.
    let _ = outgoing.try_send(FromWorker { what: Some(What::Register(register)) });
    let messages = unfold(queue, |mut queue| async { Some((queue.recv().await?, queue)) });
    let joined = timeout(shared.options.limits.connect_max, client.join(messages)).await;
    let joined = joined.map_err(|_| Ended::Again("it does not answer".to_string()))?;
    Ok((outgoing, joined.map_err(refused)?.into_inner()))
}

/// A router's answer, and everything that follows from it: the model, the way for rows, the thread that computes.
async fn welcomed(
    shared: &Shared,
    client: Client,
    outgoing: Outgoing,
    mut incoming: Streaming<Message>,
) -> Result<Link, Ended> {
    let limits = &shared.options.limits;
    let first = timeout(limits.connect_max, incoming.message()).await;
    let first = first.map_err(|_| Ended::Again("it does not say welcome".to_string()))?.map_err(refused)?;
    let Some(FromRouterWhat::Welcome(welcome)) = first.and_then(|message| message.what) else {
        return Err(Ended::Again("it does not say welcome".to_string()));
    };
    let Welcome { router, session, heartbeat_ms, body_bytes_max, shared_memory, model } = welcome;
    let served = ServedModel::new(model.unwrap_or_default()).map_err(Ended::Refused)?;
    if let Some(gpu) = &shared.options.gpu {
        served.check_card(gpu.properties()).map_err(Ended::Refused)?;
    }
    if body_bytes_max > limits.body_bytes_max {
        return Err(Ended::Refused(format!(
            "frames of {body_bytes_max} bytes are more than this worker takes"
        )));
    }
    let router = RouterId(router);
    let (shared_models, options) = (shared.models.clone(), shared.options.clone());
    let model = tokio::task::spawn_blocking(move || shared_models.of(router, served, &options)).await;
    let model = model.map_err(|error| Ended::Again(error.to_string()))?;
    let packed = packed(&model, &shared.options).await;
    let runtime = tokio::runtime::Handle::current();
    let weights = FromRouter { runtime, client, session, cancelled: Arc::default() };
    let offer = shared_memory.filter(|_| shared.options.shared_memory);
    let offer = offer.map(|at| SharedOffer { pid: at.pid, fd: at.fd, bytes: at.bytes, nonce: at.nonce });
    let channel = exchange(shared, &weights, (offer, body_bytes_max), packed, &outgoing).await?;
    let cut = channel.cut();
    let progress = Arc::new(Progress::default());
    let computing = compute(shared, &model, router, channel, progress.clone())?;
    let heartbeat = Duration::from_millis(heartbeat_ms.into()).clamp(HEARTBEAT.0, HEARTBEAT.1);
    Ok(Link {
        router,
        model,
        weights,
        outgoing,
        incoming,
        cut,
        progress,
        computing,
        heartbeat,
        loading: None,
        prepared: false,
        said: Instant::now(),
    })
}

/// What lies packed here. Whoever cannot find out soon joins without.
async fn packed(model: &Arc<Model>, options: &WorkerOptions) -> ShardSpec {
    let (model, options) = (model.clone(), options.clone());
    let looking = tokio::task::spawn_blocking(move || model.source.packed(&model.served, &options));
    timeout(PACKED_MAX, looking).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// The way for rows: the offered memory, or a stream.
async fn exchange(
    shared: &Shared,
    router: &FromRouter,
    (offer, body_bytes_max): (Option<SharedOffer>, u64),
    packed: ShardSpec,
    outgoing: &Outgoing,
) -> Result<Box<dyn Channel>, Ended> {
    let packed = packed.to_message();
    let choose = |shared_memory| {
        let packed = packed.clone();
        FromWorker { what: Some(What::Exchange(ExchangeChosen { shared_memory, packed })) }
    };
    let closed = |_| Ended::Again("its stream ended".to_string());
    if let Some(offer) = offer {
        match open_shared(&offer, body_bytes_max, shared.options.waiting) {
            Ok(end) => {
                outgoing.try_send(choose(true)).map_err(closed)?;
                return Ok(Box::new(end));
            }
            Err(error) => (shared.options.note)(&format!("no memory is shared with the router: {error}")),
        }
    }
    outgoing.try_send(choose(false)).map_err(closed)?;
    let mut client = router.client.clone();
    let called = stream::call(&mut client, &router.session, body_bytes_max);
    let end = timeout(shared.options.limits.connect_max, called).await;
    let end = end.map_err(|_| Ended::Again("it takes no rows".to_string()))?.map_err(broken)?;
    Ok(Box::new(end))
}

/// The thread that computes for this router; what is received says how it ended.
fn compute(
    shared: &Shared,
    model: &Arc<Model>,
    router: RouterId,
    mut channel: Box<dyn Channel>,
    progress: Arc<Progress>,
) -> Result<oneshot::Receiver<Ended>, Ended> {
    let (ended, computing) = oneshot::channel();
    let (options, math, shards) = (shared.options.clone(), model.served.math.clone(), model.shards.clone());
    let work = move || {
        let why = match options.open_device().and_then(|device| Compute::new(math, shards, router, &device)) {
            Ok(mut compute) => compute.serve(&mut *channel, &progress).to_string(),
            Err(error) => error.to_string(),
        };
        drop(channel);
        let broken = options.gpu.as_ref().and_then(|gpu| Some((gpu, gpu.check().err()?)));
        let _ = ended.send(match broken {
            Some((gpu, error)) => Ended::Broken(format!("{gpu} computes nothing any more: {error}")),
            None => Ended::Again(why),
        });
    };
    let spawned = std::thread::Builder::new().name("compute".into()).spawn(work);
    spawned.map_err(|error| Ended::Again(format!("no thread to compute: {error}")))?;
    Ok(computing)
}

struct Link {
    router: RouterId,
    model: Arc<Model>,
    weights: FromRouter,
    outgoing: Outgoing,
    incoming: Streaming<Message>,
    cut: Cut,
    progress: Arc<Progress>,
    computing: oneshot::Receiver<Ended>,
    heartbeat: Duration,
    loading: Option<Loading>,
    /// Whether anything that the router wanted was ever there.
    prepared: bool,
    /// When it was said last how far loading is.
    said: Instant,
}

impl Link {
    async fn live(&mut self, shared: &Shared, stop: &mut watch::Receiver<bool>, kept: &mut Kept) -> Ended {
        let (tell, mut told) = mpsc::channel(TOLD_MAX);
        let mut beat = interval(self.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drained: Option<Instant> = None;
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let went = tokio::select! {
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => self.hear(message, shared, &tell),
                    Ok(None) => Err(Ended::Again("its stream ended".to_string())),
                    Err(status) => Err(broken(status)),
                },
                Some(told) = told.recv() => self.tell(told, shared, kept),
                _ = beat.tick() => self.beat(),
                ended = &mut self.computing => {
                    Err(ended.unwrap_or_else(|_| Ended::Again("the computing thread panicked".to_string())))
                }
                _ = stop.wait_for(|stop| *stop), if drained.is_none() => {
                    drained = Some(Instant::now() + shared.options.limits.drain_max);
                    self.say(What::Leaving(Leaving {}))
                }
                () = sleep_until(drained.unwrap_or(far)), if drained.is_some() => Err(Ended::Stopped),
            };
            match went {
                Ok(()) => {}
                Err(_) if drained.is_some() => return Ended::Stopped,
                Err(ended) => return ended,
            }
        }
    }

    fn say(&self, what: What) -> Result<(), Ended> {
        let sent = self.outgoing.try_send(FromWorker { what: Some(what) });
        sent.map_err(|_| Ended::Again("it takes no messages".to_string()))
    }

    fn beat(&self) -> Result<(), Ended> {
        let calls = self.progress.calls.load(Ordering::Relaxed);
        let held_bytes = self.model.shards.held_bytes();
        self.say(What::Heartbeat(Heartbeat { calls, held_bytes }))
    }

    fn hear(&mut self, message: Message, shared: &Shared, tell: &mpsc::Sender<Told>) -> Result<(), Ended> {
        match message.what {
            Some(FromRouterWhat::Prepare(prepare)) => self.prepare(prepare, shared, tell.clone()),
            Some(FromRouterWhat::Retire(retire)) => {
                self.model.shards.retire(self.router, Epoch(retire.before_epoch));
                Ok(())
            }
            Some(FromRouterWhat::Goodbye(goodbye)) => {
                Err(if goodbye.again { Ended::Again(goodbye.why) } else { Ended::Over(goodbye.why) })
            }
            Some(FromRouterWhat::Welcome(_)) => Err(Ended::Again("it says welcome twice".to_string())),
            // Of a newer router.
            None => Ok(()),
        }
    }

    fn prepare(&mut self, prepare: Prepare, shared: &Shared, tell: mpsc::Sender<Told>) -> Result<(), Ended> {
        let epoch = Epoch(prepare.epoch);
        let shard = match ShardSpec::from_message(&prepare.layers, &self.model.served.inventory) {
            Ok(shard) => shard,
            Err(detail) => return self.failed(epoch, detail),
        };
        let wanted = Wanted { router: self.router, epoch, shard };
        let (model, weights) = (self.model.clone(), self.weights.clone());
        let before = self.loading.take();
        match Loading::start(model, wanted, shared.options.clone(), weights, before, tell) {
            Ok(loading) => self.loading = Some(loading),
            Err(error) => return self.failed(epoch, format!("no thread to load: {error}")),
        }
        Ok(())
    }

    fn failed(&self, epoch: Epoch, detail: String) -> Result<(), Ended> {
        self.say(What::PrepareFailed(PrepareFailed { epoch: epoch.0, detail }))
    }

    fn tell(&mut self, told: Told, shared: &Shared, kept: &mut Kept) -> Result<(), Ended> {
        match told {
            Told::Loading { epoch, bytes, total } => {
                if self.said.elapsed() >= SAY_EVERY {
                    self.said = Instant::now();
                    (shared.options.note)(&format!("loading: {} of {}", megabytes(bytes), megabytes(total)));
                }
                self.say(What::Loading(LoadingMessage { epoch: epoch.0, bytes, bytes_total: total }))
            }
            Told::Prepared { epoch, source, bytes } => {
                // Whoever was here before, this is what is wanted now.
                kept.retain(|(router, model)| {
                    let own = *router == self.router;
                    if !own {
                        model.shards.forget(*router);
                    }
                    own
                });
                self.prepared = true;
                let held_bytes = self.model.shards.held_bytes();
                let source = source.to_string();
                self.said = Instant::now();
                let held = megabytes(held_bytes);
                let from = if source.is_empty() { String::new() } else { format!(" (from the {source})") };
                (shared.options.note)(&format!("ready: epoch {epoch}, {held} of experts held{from}"));
                let prepared = Prepared { epoch: epoch.0, held_bytes, source, loaded_bytes: bytes };
                self.say(What::Prepared(prepared))
            }
            Told::Failed { epoch, detail } => self.failed(epoch, detail),
        }
    }

    /// Waits for the end of the thread that computes: it ends with the call that it is at.
    async fn close(mut self) {
        self.cut.now();
        if !self.computing.is_terminated() {
            let _ = timeout(CLOSE_MAX, &mut self.computing).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut.now();
        if let Some(loading) = &self.loading {
            loading.cancel();
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A connection that lasted for so long was no mistake.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// Where loading takes long, the operator is told this often how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// A call that computes for longer does so without anybody.
const CLOSE_MAX: Duration = Duration::from_secs(2);
