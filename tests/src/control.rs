//! Routers and workers as they are served: control, its port on loopback, workers that call it. Everything but the processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gaterail_cluster::tls::ServerTls;
use gaterail_kernels::{CpuOptions, Device, Isa};
use gaterail_model::ModelSource;
use gaterail_model::walk::{ExpertMath, Runner, RunnerOptions};
use gaterail_model::weights::Precision;
use gaterail_proto::RouterId;
use gaterail_router::cluster::{
    Cluster, ClusterOptions, ClusterStatus, Door, ExchangeStats, OwnExperts, Plans, RemoteExperts,
    RemoteLimits, ServedExperts, routes, secured, sockets, teller,
};
use gaterail_router::http::{Listening, Port, Protocol};
use gaterail_router::metrics::Metrics;
use gaterail_worker::{Worker, WorkerError, WorkerLimits, WorkerOptions};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const ROWS_MAX: usize = 256;
/// A test that waits for longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A router without an engine; its runner is driven by the test.
pub struct Router {
    pub cluster: Arc<Cluster>,
    pub address: SocketAddr,
    pub notes: Arc<Mutex<Vec<String>>>,
    listening: Listening,
}

impl Router {
    /// Serves the experts of a model on `address`; with the runner that needs them.
    pub async fn start(
        folder: &Path,
        precision: Precision,
        options: ClusterOptions,
        token: Option<&str>,
        address: SocketAddr,
    ) -> (Router, Runner<RemoteExperts>) {
        Router::start_with(folder, precision, options, None, token, address).await
    }

    /// The same over TLS, on any free port of this machine; without a token where its clients have certificates.
    pub async fn start_tls(
        folder: &Path,
        precision: Precision,
        options: ClusterOptions,
        tls: ServerTls,
    ) -> (Router, Runner<RemoteExperts>) {
        let door = match tls.proves_clients() {
            true => Door::behind_certificates(None),
            false => Door::new(None, loopback()),
        };
        Router::open(folder, precision, options, None, (door.expect("a door"), Some(tls)), loopback()).await
    }

    /// The same where the router's process may hold experts itself.
    pub async fn start_with(
        folder: &Path,
        precision: Precision,
        options: ClusterOptions,
        own: Option<OwnExperts>,
        token: Option<&str>,
        address: SocketAddr,
    ) -> (Router, Runner<RemoteExperts>) {
        let door = Door::new(token, address).expect("a door");
        Router::open(folder, precision, options, own, (door, None), address).await
    }

    async fn open(
        folder: &Path,
        precision: Precision,
        options: ClusterOptions,
        own: Option<OwnExperts>,
        (door, tls): (Door, Option<ServerTls>),
        address: SocketAddr,
    ) -> (Router, Runner<RemoteExperts>) {
        let source = ModelSource::open(folder).expect("a model");
        let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("a checkpoint"));
        let (spec, checkpoint) = (Arc::new(spec), Arc::new(checkpoint));
        let served = ServedExperts::new(folder, spec.clone(), checkpoint.clone(), precision, ROWS_MAX);
        let (faults_in, faults) = channel();
        let plans = Arc::new(Plans::new(faults_in));
        let stats = Arc::new(ExchangeStats::default());
        let router = RouterId(u64::from(std::process::id()) << 32 | u64::from(address.port()) | random());
        let limits = RemoteLimits { call_max: PATIENCE, plan_max: PATIENCE };
        let experts = RemoteExperts::new(ExpertMath::of(&spec), router, plans.clone(), stats.clone(), limits);
        let run = RunnerOptions {
            rows_max: ROWS_MAX,
            positions: 4096,
            shards: Vec::new(),
            precision,
            kv: precision.kv(),
        };
        let device = crate::device(Isa::detect());
        let (runner, _) =
            Runner::with_experts((*spec).clone(), &checkpoint, &device, &run, None, &mut |_| {}, experts)
                .expect("a runner");
        let notes: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = notes.clone();
        let note = move |text: &str| noted.lock().expect("notes").push(text.to_string());
        let told = notes.clone();
        let teller = Some(teller(move |line| told.lock().expect("notes").push(line)));
        let tls = tls.map(secured);
        let sockets = sockets(&options.limits);
        let cluster =
            Cluster::start(router, options, served, own, (plans, faults), stats, note).expect("control");
        let listener = tokio::net::TcpListener::bind(address).await.expect("a port");
        let app = routes(cluster.clone(), door);
        let (metrics, limits) = (Arc::new(Metrics::default()), sockets.into());
        let port = Port { app, protocol: Protocol::Http2, metrics, limits, tls, teller };
        let listening = Listening::start(listener, port).expect("a listening port");
        (Router { cluster, address: listening.address, notes, listening }, runner)
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.cluster.status().expect("control");
            if wanted(&status) {
                return status;
            }
            let notes = self.notes.lock().expect("notes").clone();
            assert!(Instant::now() < deadline, "never {what}: {status:#?}\n{notes:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a whole plan has so many workers, all of whom serve.
    pub async fn serving(&self, workers: usize) -> ClusterStatus {
        let all = |status: &ClusterStatus| {
            status.serving
                && status.pending.is_none()
                && status.workers.len() == workers
                && status.workers.iter().all(|worker| worker.state == "serving")
        };
        self.until(&format!("serving with {workers} workers"), all).await
    }

    /// Ends: goodbyes first, then the port.
    pub async fn stop(self) {
        self.cluster.stop().await;
        self.listening.stop(Duration::from_secs(2)).await;
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Any free port of this machine.
pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A port that is this test's while this lives, whether or not somebody listens there: it is bound, so that no other socket is
/// given its number, and whoever is told the number may still listen on it.
pub struct OwnPort {
    pub address: SocketAddr,
    _socket: tokio::net::TcpSocket,
}

impl OwnPort {
    pub fn new() -> OwnPort {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(loopback()).expect("a free port");
        OwnPort { address: socket.local_addr().expect("its number"), _socket: socket }
    }
}

impl Default for OwnPort {
    fn default() -> OwnPort {
        OwnPort::new()
    }
}

/// A worker on one thread, for a small model.
pub fn worker_options(routers: &[SocketAddr], name: &str) -> WorkerOptions {
    let open = || Device::cpu(CpuOptions { threads: 1, pin: false, isa: Isa::detect(), grain: 512 });
    WorkerOptions {
        join: routers.iter().map(SocketAddr::to_string).collect(),
        token: None,
        tls: None,
        name: name.to_string(),
        device: Arc::new(open),
        gpu: None,
        memory_bytes: 1 << 30,
        packed_cache: None,
        models: Vec::<PathBuf>::new(),
        read_checkpoints: true,
        shared_memory: true,
        waiting: Default::default(),
        limits: WorkerLimits::default(),
        note: Arc::new(|_| {}),
    }
}

/// A worker that runs in this process.
pub struct RunningWorker {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl RunningWorker {
    pub fn start(options: WorkerOptions) -> RunningWorker {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Worker::run(options, async {
            let _ = stopped.await;
        }));
        RunningWorker { stop: Some(stop), task }
    }

    /// Ends it as SIGTERM would.
    pub async fn drain(mut self) -> Result<(), WorkerError> {
        self.stop.take();
        self.ended().await
    }

    /// How it ends by itself.
    pub async fn ended(self) -> Result<(), WorkerError> {
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.expect("a worker that ends").expect("a worker that does not panic")
    }

    /// Ends it without a word: its connections break.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
