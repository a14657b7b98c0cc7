//! Who is let in, and what is said to who is not.

use super::*;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_fit_is_told_why() {
    let (router, _runner) = router(1).await;
    let machine = |rate| Machine { read_bytes_per_second: rate, ..register(1).machine.unwrap() };
    let cases: [(Register, Code, &str); 7] = [
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
        (Register { arithmetic: ARITHMETIC + 1, ..register(1) }, Code::FailedPrecondition, "arithmetic"),
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
    // A router for each limit: whoever is not to meet it has time.
    let limited = |limits: ClusterLimits| {
        let options = ClusterOptions { limits, ..options(1) };
        async { Router::start(&fixture(), Precision::Int4, options, None, loopback()).await }
    };
    let short = Duration::from_millis(300);
    let limits = || ClusterLimits {
        workers_max: 2,
        register_time_max: PATIENCE,
        exchange_time_max: PATIENCE,
        ..ClusterLimits::default()
    };
    // Never registers.
    let (router, _runner) = limited(ClusterLimits { register_time_max: short, ..limits() }).await;
    let (say, said) = mpsc::channel::<FromWorker>(1);
    let refused = client(router.address).await.join(from_queue(said)).await.expect_err("silence");
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    drop(say);
    router.stop().await;
    // Registers, and never lets rows travel.
    let (router, _runner) = limited(ClusterLimits { exchange_time_max: short, ..limits() }).await;
    let mut slow = ByHand::join(router.address, register(2)).await.unwrap();
    slow.session().await;
    assert_eq!(slow.next().await.expect_err("too late").code(), Code::DeadlineExceeded);
    router.stop().await;
    // Claims memory that was not offered: it named no host.
    let (router, _runner) = limited(limits()).await;
    let mut liar = ByHand::join(router.address, register(3)).await.unwrap();
    let session = liar.session().await;
    let chosen = What::Exchange(ExchangeChosen { shared_memory: true, packed: Vec::new() });
    liar.say.send(FromWorker { what: Some(chosen) }).await.unwrap();
    assert_eq!(liar.next().await.expect_err("a lie").code(), Code::InvalidArgument);
    // Its session is over with it.
    let deadline = Instant::now() + PATIENCE;
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
