//! Workers that die, hang, leave, or lose their router.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_is_done_without_and_comes_again() {
    let (router, runner) = router(2).await;
    let alone = alone(&fixture(), Precision::Int4);
    let one = RunningWorker::start(worker_options(&[router.address], "one"));
    let two = RunningWorker::start(worker_options(&[router.address], "two"));
    let first = router.serving(2).await.epoch;
    let (runner, split) = run(runner, fixture()).await;
    assert!(split == alone, "before");
    // In the middle of many steps: they begin before it dies, and go on until another has come.
    let (came, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, ends) = (came.clone(), over.clone());
    let stepping = tokio::spawn(async move {
        let (mut runner, mut all) = (runner, Vec::new());
        while !ends.load(Ordering::Relaxed) {
            let (next, logits) = run(runner, fixture()).await;
            runner = next;
            all.push(logits);
            counted.fetch_add(1, Ordering::Relaxed);
        }
        (runner, all)
    });
    let deadline = Instant::now() + PATIENCE;
    while came.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "no steps");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    one.kill().await;
    let status = router.serving(1).await;
    assert!(status.epoch > first);
    let three = RunningWorker::start(worker_options(&[router.address], "three"));
    let status = router.serving(2).await;
    over.store(true, Ordering::Relaxed);
    let (runner, all) = stepping.await.unwrap();
    assert!(all.iter().all(|logits| *logits == alone), "while it died");
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
    // Long enough that whoever is only held up is heard again.
    options.policy.silence_max = Duration::from_secs(3);
    let (router, _runner) = Router::start(&fixture(), Precision::Int4, options, None, loopback()).await;
    let mut hand = ByHand::join(router.address, register(1)).await.unwrap();
    let session = hand.session().await;
    // Rows could travel; then nothing more is heard.
    let (_rows, queue) = mpsc::channel::<FromWorker>(1);
    drop(queue);
    let mut request = Request::new(tonic::codegen::tokio_stream::pending());
    request.metadata_mut().insert("gaterail-session", session.parse().unwrap());
    let _exchange = hand.client.exchange(request).await.unwrap();
    let beats = hand.beats();
    router.until("there", |status| status.workers.len() == 1).await;
    beats.abort();
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
    let beats = hung.beats();
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
    let port = OwnPort::new();
    let (first, runner) = Router::start(&fixture(), Precision::Int4, options(1), None, port.address).await;
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
