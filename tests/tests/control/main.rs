//! Workers that join routers over real sockets: who is let in, what they load and from where, and what happens when one of
//! them goes. Whatever happens, the logits are those of one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::stream as exchange;
use gaterail_cluster::membership::{Refused, Wish};
use gaterail_kernels::{ARITHMETIC, Isa, PACKED_LAYOUT};
use gaterail_model::ModelSource;
use gaterail_model::walk::{ExpertLayer, Runner};
use gaterail_model::weights::Precision;
use gaterail_model::weights::cache::{PackedCache, list};
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use gaterail_proto::grpc::v1::from_router::What as ToWorker;
use gaterail_proto::grpc::v1::from_worker::What;
use gaterail_proto::grpc::v1::{
    Bytes, ExchangeChosen, ExpertsRequest, FromWorker, Heartbeat, Machine, Prepare, Prepared, Register,
    Slices,
};
use gaterail_router::cluster::{ClusterLimits, ClusterOptions, ClusterStatus, OwnExperts, RebalanceError};
use gaterail_router::http::VERSION;
use gaterail_tests::broken::Copy;
use gaterail_tests::control::{OwnPort, PATIENCE, Router, RunningWorker, loopback, worker_options};
use gaterail_tests::{bits, demo_model, device, fixtures_folder, load_as, logits_in_chunks, some_text};
use gaterail_worker::WorkerError;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status};

mod doors;
mod going;

const TOKEN: &str = "correct horse battery staple";

fn fixture() -> PathBuf {
    fixtures_folder().join("olmoe_a")
}

fn options(expected: usize) -> ClusterOptions {
    let mut options = ClusterOptions::default();
    options.policy.expected = expected;
    // Whoever is only held up is not dead: a worker that is killed breaks its connection.
    options.policy.silence_max = PATIENCE;
    options
}

async fn router(expected: usize) -> (Router, Runner<impl ExpertLayer + Send + 'static>) {
    Router::start(&fixture(), Precision::Int4, options(expected), None, loopback()).await
}

/// The logits of one process.
fn alone(folder: &Path, precision: Precision) -> Vec<Vec<u32>> {
    let mut whole = load_as(folder, &device(Isa::detect()), Vec::new(), precision);
    logits(&mut whole, folder)
}

fn logits<E: ExpertLayer>(runner: &mut Runner<E>, folder: &Path) -> Vec<Vec<u32>> {
    let chunks = [5usize, 1, 1, 20].into_iter().cycle();
    bits(&logits_in_chunks(runner, &some_text(folder), chunks))
}

/// The same on a thread where it may block.
async fn run<E: ExpertLayer + Send + 'static>(
    mut runner: Runner<E>,
    folder: PathBuf,
) -> (Runner<E>, Vec<Vec<u32>>) {
    tokio::task::spawn_blocking(move || {
        let logits = logits(&mut runner, &folder);
        (runner, logits)
    })
    .await
    .expect("a step that does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_join_load_and_compute() {
    for (shared_memory, exchange) in [(true, "shared memory"), (false, "gRPC")] {
        let (router, runner) = router(2).await;
        let start = |name| {
            let options = worker_options(&[router.address], name);
            RunningWorker::start(gaterail_worker::WorkerOptions { shared_memory, ..options })
        };
        let workers = [start("one"), start("two")];
        let status = router.serving(2).await;
        assert_eq!(status.workers.iter().map(|worker| &worker.exchange).collect::<Vec<_>>(), [exchange; 2]);
        assert!(status.workers.iter().all(|worker| worker.read_bytes_per_second > 0.0));
        // With the next heartbeat.
        router.until("heard", |status| status.workers.iter().all(|worker| worker.held_bytes > 0)).await;
        let share: f64 = status.workers.iter().map(|worker| worker.share).sum();
        assert!((share - 1.0).abs() < 1e-6, "{status:#?}");
        // The channels end with the runner, and workers come again, with no calls.
        let (_runner, split) = run(runner, fixture()).await;
        assert!(split == alone(&fixture(), Precision::Int4), "over {exchange}");
        let status =
            router.until("heard of calls", |status| status.workers.iter().all(|at| at.calls > 0)).await;
        // As programs read it.
        let json = serde_json::to_string(&status).expect("JSON");
        let read: ClusterStatus = serde_json::from_str(&json).expect("a status");
        let ids = |status: &ClusterStatus| status.workers.iter().map(|at| at.id.clone()).collect::<Vec<_>>();
        assert_eq!((ids(&read), read.epoch), (ids(&status), status.epoch));
        for worker in workers {
            worker.kill().await;
        }
        router.until("empty", |status| status.workers.is_empty()).await;
        router.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_serves_two_routers() {
    let (first, first_runner) = router(1).await;
    let (second, second_runner) =
        Router::start(&demo_model(), Precision::Int8, options(1), None, loopback()).await;
    let worker = RunningWorker::start(worker_options(&[first.address, second.address], "both"));
    first.serving(1).await;
    second.serving(1).await;
    let ((_, one), (_, other)) = tokio::join!(run(first_runner, fixture()), run(second_runner, demo_model()));
    assert!(one == alone(&fixture(), Precision::Int4));
    assert!(other == alone(&demo_model(), Precision::Int8));
    // One of them goes; the other does not notice.
    first.stop().await;
    second.serving(1).await;
    worker.kill().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_the_file_gets_the_bytes_from_the_router() {
    for (fixture, precision) in [
        ("olmoe_a", Precision::Int4),
        ("olmoe_a", Precision::AsStored),
        ("gpt_oss_a", Precision::AsStored),
        ("deepseek_v3_a", Precision::AsStored),
        ("qwen3_moe_gptq_a", Precision::F32),
        ("olmoe_awq", Precision::AsStored),
        ("gguf_qwen3moe", Precision::AsStored),
        ("gguf_olmoe", Precision::F32),
    ] {
        let folder = fixtures_folder().join(fixture);
        let (router, runner) = Router::start(&folder, precision, options(2), None, loopback()).await;
        let start = |name, read_checkpoints| {
            let options = worker_options(&[router.address], name);
            RunningWorker::start(gaterail_worker::WorkerOptions { read_checkpoints, ..options })
        };
        let workers = [start("blind", false), start("seeing", true)];
        router.serving(2).await;
        let (_, split) = run(runner, folder.clone()).await;
        assert!(split == alone(&folder, precision), "{fixture}, {precision:?}");
        for worker in workers {
            worker.kill().await;
        }
        router.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_room_says_so() {
    let mut options = options(1);
    options.policy.retry_wait = Duration::from_millis(50);
    let (router, _runner) = Router::start(&fixture(), Precision::Int4, options, None, loopback()).await;
    // What it says it has is not what it has: plans count on the first, loading on the second.
    let mut hand = ByHand::join(router.address, register(9)).await.unwrap();
    hand.session().await;
    let small =
        gaterail_worker::WorkerOptions { memory_bytes: 1000, ..worker_options(&[router.address], "small") };
    let small = RunningWorker::start(small);
    router.until("joined", |status| status.workers.iter().any(|worker| worker.name == "small")).await;
    let says_so = |note: &String| ["fit", "room", "plan"].iter().any(|word| note.contains(word));
    let deadline = Instant::now() + PATIENCE;
    while !router.notes.lock().unwrap().iter().any(says_so) {
        assert!(Instant::now() < deadline, "{:?}", router.notes);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!router.cluster.status().unwrap().serving);
    small.kill().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_router_holds_experts_itself() {
    let one = (worker_options(&[], "").device)().unwrap();
    let rate =
        gaterail_kernels::measure::read_bandwidth(&one, 128 << 20, Duration::from_millis(100)).unwrap();
    let machine = gaterail_cluster::membership::Machine {
        device: "this one".to_string(),
        card: None,
        threads: 1,
        memory_bytes: 1 << 30,
        // As the worker measures itself: each gets a share.
        read_bytes_per_second: rate,
        int8_operations_per_second: rate,
        pid: std::process::id(),
    };
    let own = Some(OwnExperts { machine, cache: None });
    let (router, runner) =
        Router::start_with(&fixture(), Precision::Int4, options(2), own, None, loopback()).await;
    let alone = alone(&fixture(), Precision::Int4);
    let worker = RunningWorker::start(worker_options(&[router.address], "other"));
    let status = router.serving(2).await;
    assert!(status.workers.iter().all(|worker| worker.share > 0.0), "{status:#?}");
    let (runner, both) = run(runner, fixture()).await;
    assert!(both == alone, "both");
    worker.kill().await;
    let status = router.serving(1).await;
    assert_eq!(status.workers[0].name, "router");
    let (_, own) = run(runner, fixture()).await;
    assert!(own == alone, "the router alone");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_wish_at_a_time_is_looked_at() {
    let (router, _runner) = router(1).await;
    let wish = |copies| Wish { copies: Some(copies), ..Wish::default() };
    let nobody = router.cluster.rebalance(wish(1)).await;
    assert_eq!(nobody, Err(RebalanceError::Refused(Refused::Nobody)));
    let worker = RunningWorker::start(worker_options(&[router.address], "one"));
    router.serving(1).await;
    let (first, second) = tokio::join!(router.cluster.rebalance(wish(2)), router.cluster.rebalance(wish(1)));
    assert!(matches!(first, Err(RebalanceError::Refused(Refused::Misfit(_)))), "{first:?}");
    assert_eq!(second, Err(RebalanceError::Another));
    let third = router.cluster.rebalance(wish(1)).await.expect("nobody else asks");
    assert_eq!((third.epoch, third.from), (None, Some(third.planned)));
    worker.kill().await;
    router.stop().await;
}

#[test]
fn a_digest_knows_the_contents_and_nothing_else() {
    let digest = |folder: &Path| {
        let source = ModelSource::open(folder).unwrap();
        source.checkpoint().unwrap().digest(&source.spec().unwrap())
    };
    let original = digest(&fixture());
    let copy = Copy::of("olmoe_a");
    assert_eq!(digest(copy.path()), original, "elsewhere, and at another time");
    let mut all = vec![original.clone()];
    for name in ["olmoe_b", "olmoe_awq", "qwen3_moe_a"] {
        all.push(digest(&fixtures_folder().join(name)));
    }
    // One bit of the data, at its end; one number of the configuration.
    let weights = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    all.push(digest(copy.path()));
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    assert_eq!(digest(copy.path()), original);
    let config = copy.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = text.replace("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-04");
    assert_ne!(text, changed, "a configuration with a norm");
    std::fs::write(&config, changed).unwrap();
    all.push(digest(copy.path()));
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "every one is another");
}

/// Workers that keep packed experts apart, as two hosts do, come back in another order: each gets what it has packed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_packed_is_not_packed_again() {
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let start = |router: SocketAddr, which: usize| {
        let cache = PackedCache { bytes_min: 0, ..PackedCache::new(folders[which].path().to_path_buf()) };
        let options = worker_options(&[router], ["one", "two"][which]);
        RunningWorker::start(gaterail_worker::WorkerOptions { packed_cache: Some(cache), ..options })
    };
    let files = || folders.each_ref().map(|folder| list(folder.path()).map_or(0, |files| files.len()));
    for order in [[0, 1], [1, 0]] {
        let (router, _runner) = router(2).await;
        let mut workers = Vec::new();
        for (there, which) in order.into_iter().enumerate() {
            workers.push(start(router.address, which));
            router.until("joined", |status| status.workers.len() == there + 1).await;
        }
        let status = router.serving(2).await;
        let packed: Vec<u64> = status.workers.iter().map(|worker| worker.packed_experts).collect();
        let held: Vec<u64> = status.workers.iter().map(|worker| worker.experts).collect();
        let known = if order == [0, 1] { vec![0; 2] } else { held };
        assert_eq!(packed, known, "{order:?}");
        // They are written when all are served.
        let deadline = Instant::now() + PATIENCE;
        while files() != [1, 1] && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if order == [1, 0] {
            // Time enough to write what would have been packed.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(files(), [1, 1], "{order:?}");
        for worker in workers {
            worker.kill().await;
        }
        router.stop().await;
    }
}

async fn client(address: SocketAddr) -> ClusterClient<tonic::transport::Channel> {
    let endpoint = exchange::endpoint(format!("http://{address}")).expect("an address");
    ClusterClient::new(endpoint.connect().await.expect("a connection"))
}

fn register(worker: u64) -> Register {
    Register {
        worker,
        name: "by hand".to_string(),
        version: VERSION.to_string(),
        packed_layout: PACKED_LAYOUT,
        arithmetic: ARITHMETIC,
        machine: Some(Machine {
            device: "none".to_string(),
            card: None,
            memory_bytes: 1 << 30,
            read_bytes_per_second: 1e9,
            ..Machine::default()
        }),
        host: String::new(),
    }
}

/// A worker's side of Join, message by message.
struct ByHand {
    client: ClusterClient<tonic::transport::Channel>,
    say: mpsc::Sender<FromWorker>,
    hear: tonic::Streaming<gaterail_proto::grpc::v1::FromRouter>,
}

impl ByHand {
    async fn join(address: SocketAddr, register: Register) -> Result<ByHand, Status> {
        let mut client = client(address).await;
        let (say, said) = mpsc::channel(16);
        say.send(FromWorker { what: Some(What::Register(register)) }).await.expect("room");
        let hear = client.join(from_queue(said)).await?.into_inner();
        Ok(ByHand { client, say, hear })
    }

    /// Heartbeats of a worker that computes nothing, until the connection ends or they are aborted.
    fn beats(&self) -> tokio::task::JoinHandle<()> {
        let say = self.say.clone();
        tokio::spawn(async move {
            let beat = || Some(What::Heartbeat(Heartbeat { calls: 0, held_bytes: 1 }));
            while say.send(FromWorker { what: beat() }).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    async fn next(&mut self) -> Result<Option<ToWorker>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.hear.message()).await;
        Ok(next.expect("an answer")?.and_then(|message| message.what))
    }

    /// The session of Welcome.
    async fn session(&mut self) -> String {
        match self.next().await {
            Ok(Some(ToWorker::Welcome(welcome))) => welcome.session,
            other => panic!("no welcome: {other:?}"),
        }
    }
}

struct FromQueue(mpsc::Receiver<FromWorker>);

impl tonic::codegen::tokio_stream::Stream for FromQueue {
    type Item = FromWorker;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<FromWorker>> {
        self.0.poll_recv(context)
    }
}

fn from_queue(queue: mpsc::Receiver<FromWorker>) -> FromQueue {
    FromQueue(queue)
}
