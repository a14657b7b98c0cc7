//! Workers that join routers over real sockets: who is let in, what they load and from where, and what happens when one of
//! them goes. Whatever happens, the logits are those of one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::stream as exchange;
use gaterail_cluster::membership::{Refused, Wish};
use gaterail_kernels::{Isa, PACKED_LAYOUT};
use gaterail_model::ModelSource;
use gaterail_model::walk::{ExpertLayer, Runner};
use gaterail_model::weights::Precision;
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
use gaterail_tests::control::{Router, RunningWorker, loopback, worker_options};
use gaterail_tests::{bits, demo_model, device, fixtures_folder, load_as, logits_in_chunks, some_text};
use gaterail_worker::WorkerError;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status};

const TOKEN: &str = "correct horse battery staple";

fn fixture() -> PathBuf {
    fixtures_folder().join("olmoe_a")
}

fn options(expected: usize) -> ClusterOptions {
    let mut options = ClusterOptions::default();
    options.policy.expected = expected;
    // Other programs use these cores, too.
    options.policy.silence_max = Duration::from_secs(5);
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
async fn only_the_token_opens_the_door() {
    let (router, _runner) =
        Router::start(&fixture(), Precision::Int4, options(1), Some(TOKEN), loopback()).await;
    for (token, says) in [(None, "with a token only"), (Some("incorrect horse battery"), "not this router's")]
    {
        let options = worker_options(&[router.address], "stranger");
        let token = token.map(str::to_owned);
        let ended = RunningWorker::start(gaterail_worker::WorkerOptions { token, ..options }).ended().await;
        let Err(WorkerError::Refused { why, .. }) = ended else { panic!("{ended:?}") };
        assert!(why.contains(says), "{why}");
    }
    // Nor the other calls.
    let mut client = client(router.address).await;
    let refused = client.experts(ExpertsRequest::default()).await.expect_err("a stranger");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let options = worker_options(&[router.address], "friend");
    let friend = gaterail_worker::WorkerOptions { token: Some(TOKEN.to_string()), ..options };
    let friend = RunningWorker::start(friend);
    router.serving(1).await;
    friend.kill().await;
    router.stop().await;
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
        machine: Some(Machine {
            device: "none".to_string(),
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

    async fn next(&mut self) -> Result<Option<ToWorker>, Status> {
        let next = tokio::time::timeout(gaterail_tests::control::PATIENCE, self.hear.message()).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_fit_is_told_why() {
    let (router, _runner) = router(1).await;
    let machine = |rate| Machine { read_bytes_per_second: rate, ..register(1).machine.unwrap() };
    let cases: [(Register, Code, &str); 6] = [
        (
            Register { version: "0.0.0".to_string(), ..register(1) },
            Code::FailedPrecondition,
            "the worker 0.0.0",
        ),
        (
            Register { packed_layout: PACKED_LAYOUT + 1, ..register(1) },
            Code::FailedPrecondition,
            "packed layout",
        ),
        (Register { machine: None, ..register(1) }, Code::InvalidArgument, "machine"),
        (Register { name: "x".repeat(300), ..register(1) }, Code::InvalidArgument, "name, 300 bytes"),
        (Register { name: "a\u{1b}[2J".to_string(), ..register(1) }, Code::InvalidArgument, "name"),
        (Register { machine: Some(machine(f64::NAN)), ..register(1) }, Code::InvalidArgument, "rates"),
    ];
    for (register, code, says) in cases {
        let refused = ByHand::join(router.address, register).await.err().expect(says);
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(says), "{refused:?}");
    }
    assert!(router.cluster.status().unwrap().workers.is_empty());
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_too_long_or_comes_too_much_is_sent_away() {
    let mut options = options(1);
    options.limits = ClusterLimits {
        workers_max: 2,
        register_time_max: Duration::from_millis(300),
        exchange_time_max: Duration::from_millis(300),
        ..options.limits
    };
    let (router, _runner) = Router::start(&fixture(), Precision::Int4, options, None, loopback()).await;
    // Never registers.
    let (say, said) = mpsc::channel::<FromWorker>(1);
    let refused = client(router.address).await.join(from_queue(said)).await.expect_err("silence");
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    drop(say);
    // Registers, and never lets rows travel.
    let mut slow = ByHand::join(router.address, register(2)).await.unwrap();
    slow.session().await;
    assert_eq!(slow.next().await.expect_err("too late").code(), Code::DeadlineExceeded);
    // Claims memory that was not offered: it named no host.
    let mut liar = ByHand::join(router.address, register(3)).await.unwrap();
    let session = liar.session().await;
    let chosen = What::Exchange(ExchangeChosen { shared_memory: true });
    liar.say.send(FromWorker { what: Some(chosen) }).await.unwrap();
    assert_eq!(liar.next().await.expect_err("a lie").code(), Code::InvalidArgument);
    // Its session is over with it.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut request = Request::new(ExpertsRequest::default());
        request.metadata_mut().insert("gaterail-session", session.parse().unwrap());
        match liar.client.experts(request).await {
            Err(status) if status.code() == Code::Unauthenticated => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One more than there is room for.
    let _one = ByHand::join(router.address, register(4)).await.unwrap();
    let _two = ByHand::join(router.address, register(5)).await.unwrap();
    let refused = ByHand::join(router.address, register(6)).await.err().expect("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_are_for_members_and_for_what_there_is() {
    let (router, _runner) = router(2).await;
    let mut hand = ByHand::join(router.address, register(1)).await.unwrap();
    let session = hand.session().await;
    let ask = |session: &str, slices: Vec<u32>| {
        let mut request = Request::new(ExpertsRequest { layers: vec![Slices { layer: 0, slices }] });
        request.metadata_mut().insert("gaterail-session", session.parse().unwrap());
        request
    };
    let refused = hand.client.experts(ask("0123", vec![0, 0, 1])).await.expect_err("no session");
    assert_eq!(refused.code(), Code::Unauthenticated);
    for slices in [vec![0, 0, 1000], vec![1000, 0, 1], vec![0], vec![0, 0, 1, 0, 0, 1]] {
        let refused = hand.client.experts(ask(&session, slices.clone())).await.expect_err("no such slice");
        assert_eq!(refused.code(), Code::InvalidArgument, "{slices:?}");
    }
    let mut stream = hand.client.experts(ask(&session, vec![0, 0, 1])).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(Bytes { data }) = stream.message().await.unwrap() {
        bytes.extend(data);
    }
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(length as usize, bytes.len() - 8);
    assert_eq!(&bytes[8..12], b"GREX");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_is_done_without_and_comes_again() {
    let (router, runner) = router(2).await;
    let alone = alone(&fixture(), Precision::Int4);
    let one = RunningWorker::start(worker_options(&[router.address], "one"));
    let two = RunningWorker::start(worker_options(&[router.address], "two"));
    let first = router.serving(2).await.epoch;
    let (runner, split) = run(runner, fixture()).await;
    assert!(split == alone, "before");
    // In the middle of many steps.
    let stepping = tokio::spawn(async move {
        let mut runner = runner;
        let mut all = Vec::new();
        for _ in 0..10 {
            let (next, logits) = run(runner, fixture()).await;
            runner = next;
            all.push(logits);
        }
        (runner, all)
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    one.kill().await;
    let status = router.serving(1).await;
    assert!(status.epoch > first);
    let three = RunningWorker::start(worker_options(&[router.address], "three"));
    let (runner, all) = stepping.await.unwrap();
    assert!(all.iter().all(|logits| *logits == alone), "while it died");
    let status = router.serving(2).await;
    assert_eq!(
        status.workers.iter().map(|worker| worker.name.as_str()).collect::<Vec<_>>(),
        ["two", "three"]
    );
    let (_, split) = run(runner, fixture()).await;
    assert!(split == alone, "after");
    two.kill().await;
    three.kill().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_is_dismissed() {
    let mut options = options(1);
    options.policy.silence_max = Duration::from_millis(400);
    let (router, _runner) = Router::start(&fixture(), Precision::Int4, options, None, loopback()).await;
    let mut hand = ByHand::join(router.address, register(1)).await.unwrap();
    let session = hand.session().await;
    // Rows could travel; then nothing more is heard.
    let (_rows, queue) = mpsc::channel::<FromWorker>(1);
    drop(queue);
    let mut request = Request::new(tonic::codegen::tokio_stream::pending());
    request.metadata_mut().insert("gaterail-session", session.parse().unwrap());
    let _exchange = hand.client.exchange(request).await.unwrap();
    router.until("there", |status| status.workers.len() == 1).await;
    loop {
        match hand.next().await {
            Ok(Some(ToWorker::Prepare(_))) => {}
            Ok(Some(ToWorker::Goodbye(goodbye))) => break assert!(goodbye.again, "{goodbye:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(hand.next().await.is_ok_and(|end| end.is_none()), "the stream ends with the goodbye");
    router.until("gone", |status| status.workers.is_empty()).await;
    router.stop().await;
}

/// Its process is well and sends heartbeats; the thread that computes hangs. Nothing but the count of calls tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_lives_and_computes_nothing_is_done_without() {
    let mut options = options(2);
    options.policy.stuck_max = Duration::from_millis(500);
    let (router, runner) = Router::start(&fixture(), Precision::Int4, options, None, loopback()).await;
    let fast = Machine { read_bytes_per_second: 1e12, ..register(1).machine.unwrap() };
    let mut hung =
        ByHand::join(router.address, Register { machine: Some(fast), ..register(1) }).await.unwrap();
    let session = hung.session().await;
    let mut request = Request::new(tonic::codegen::tokio_stream::pending());
    request.metadata_mut().insert("gaterail-session", session.parse().unwrap());
    let _exchange = hung.client.exchange(request).await.unwrap();
    let say = hung.say.clone();
    let beats = tokio::spawn(async move {
        let beat = || Some(What::Heartbeat(Heartbeat { calls: 0, held_bytes: 1 }));
        while say.send(FromWorker { what: beat() }).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let say = hung.say.clone();
    let answers = tokio::spawn(async move {
        loop {
            match hung.next().await {
                Ok(Some(ToWorker::Prepare(Prepare { epoch, .. }))) => {
                    let prepared = Prepared { epoch, ..Prepared::default() };
                    let _ = say.send(FromWorker { what: Some(What::Prepared(prepared)) }).await;
                }
                Ok(Some(ToWorker::Goodbye(goodbye))) => return goodbye.why,
                Ok(Some(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let well = RunningWorker::start(worker_options(&[router.address], "well"));
    let status = router.serving(2).await;
    let hung_holds = status.workers.iter().find(|at| at.name == "by hand").map(|at| at.experts);
    assert!(hung_holds > Some(0), "{status:#?}");
    let (_runner, logits) = run(runner, fixture()).await;
    assert!(logits == alone(&fixture(), Precision::Int4), "another answer");
    let why = answers.await.expect("a goodbye");
    assert!(why.contains("stuck"), "{why}");
    beats.abort();
    well.kill().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_outlives_its_router() {
    let (first, runner) = router(1).await;
    let address = first.address;
    let worker = RunningWorker::start(worker_options(&[address], "faithful"));
    let id = first.serving(1).await.workers[0].id.clone();
    drop(runner);
    first.stop().await;
    let again = Router::start(&fixture(), Precision::Int4, options(1), None, address).await;
    let (second, runner) = again;
    assert_eq!(second.serving(1).await.workers[0].id, id, "the same process");
    let (_, split) = run(runner, fixture()).await;
    assert!(split == alone(&fixture(), Precision::Int4));
    // Drained: the only worker waits until its time is over, and goes.
    worker.kill().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_leaves_is_replaced_first() {
    let (router, runner) = router(2).await;
    let one = RunningWorker::start(worker_options(&[router.address], "one"));
    let two = RunningWorker::start(worker_options(&[router.address], "two"));
    router.serving(2).await;
    one.drain().await.expect("a goodbye");
    let status = router.serving(1).await;
    assert_eq!(status.workers[0].name, "two");
    let notes = router.notes.lock().unwrap().clone();
    assert!(!notes.iter().any(|note| note.contains("no plan")), "{notes:#?}");
    let (_, split) = run(runner, fixture()).await;
    assert!(split == alone(&fixture(), Precision::Int4));
    two.kill().await;
    router.stop().await;
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
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!router.cluster.status().unwrap().serving);
    let notes = router.notes.lock().unwrap().join("\n");
    assert!(notes.contains("fit") || notes.contains("room") || notes.contains("plan"), "{notes}");
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
