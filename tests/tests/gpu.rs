//! Contract 4 with experts in a GPU's memory: the CUDA kernels, run on the CPU by the shim, beside workers that compute on the
//! CPU. The bits are those of one process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gaterail_cluster::exchange::Road;
use gaterail_kernels::Isa;
use gaterail_model::walk::{ExpertLayer, Runner};
use gaterail_model::weights::Precision;
use gaterail_router::cluster::ClusterOptions;
use gaterail_shim::Shim;
use gaterail_tests::control::{Router, RunningWorker, loopback, worker_options};
use gaterail_tests::workers::{Cluster, ROUTER, any_placement, everywhere, expert_parallel, local, shared};
use gaterail_tests::{bits, device, fixtures, fixtures_folder, load_as, logits_in_chunks, some_text};
use gaterail_worker::WorkerOptions;

/// Of packed experts: a fiber per CUDA thread takes its time.
const TOKENS: usize = 48;

fn logits<E: ExpertLayer>(runner: &mut Runner<E>, folder: &Path) -> Vec<Vec<u32>> {
    let mut tokens = some_text(folder);
    tokens.truncate(TOKENS);
    // More rows than the kernels for few of them take, some, and one.
    let chunks = [35usize, 1, 9, 1, 2].into_iter().cycle();
    bits(&logits_in_chunks(runner, &tokens, chunks))
}

fn alone(folder: &Path, precision: Precision) -> Vec<Vec<u32>> {
    logits(&mut load_as(folder, &device(Isa::detect()), Vec::new(), precision), folder)
}

/// Fixtures with experts, by name.
fn sparse() -> Vec<PathBuf> {
    let is_sparse = |folder: &PathBuf| {
        let source = gaterail_model::ModelSource::open(folder).expect("a model");
        source.spec().expect("a spec").sparse().is_some()
    };
    fixtures().into_iter().filter(is_sparse).collect()
}

#[test]
fn a_gpu_computes_the_bits_of_the_cpu() {
    let mut calls = [0; 2];
    let models = sparse();
    assert!(models.len() > 10, "{models:?}");
    for (seed, folder) in models.iter().enumerate() {
        let precision = [Precision::Int4, Precision::Int8][seed % 2];
        let expected = alone(folder, precision);
        let road = [None, Some(Road::All), Some(Road::Chosen)][seed % 3];
        let (mut runner, mut cluster) = Cluster::start_on(road, folder, precision, &[], &local);
        cluster.join_gpu(Shim::device(seed as u64), &local);
        cluster.join(Isa::detect(), &shared);
        let ids = cluster.ids();
        let placements = [
            everywhere(&cluster.inventory, &ids[..1]),
            expert_parallel(&cluster.inventory, &ids),
            any_placement(&cluster.inventory, &ids, seed as u64),
        ];
        for (index, placement) in placements.into_iter().enumerate() {
            let epoch = cluster.activate(placement);
            let found = logits(&mut runner, folder);
            assert!(found == expected, "{}, {precision:?}, placement {index}", folder.display());
            cluster.workers.iter().for_each(|worker| worker.shards.retire(ROUTER, epoch));
        }
        assert!(cluster.faults.lock().unwrap().try_recv().is_err(), "{}: a fault", folder.display());
        calls.iter_mut().enumerate().for_each(|(worker, calls)| *calls += cluster.calls(worker));
    }
    assert!(calls.iter().all(|&calls| calls > 100), "{calls:?} calls");
}

/// As `gaterail worker --device cuda:0` does it: measured, registered, loaded, asked, and gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_on_a_gpu_joins_a_router() {
    let folder = fixtures_folder().join("olmoe_a");
    let mut options = ClusterOptions::default();
    options.policy.expected = 2;
    options.policy.silence_max = gaterail_tests::control::PATIENCE;
    let (router, mut runner) = Router::start(&folder, Precision::Int4, options, None, loopback()).await;
    let gpu = worker_options(&[router.address], "gpu");
    let gpu = RunningWorker::start(WorkerOptions { gpu: Some(Shim::device(3)), ..gpu });
    let cpu = RunningWorker::start(worker_options(&[router.address], "cpu"));
    let status = router.serving(2).await;
    let on = |device: &str| status.workers.iter().any(|worker| worker.device.contains(device));
    assert!(on("shim") && on("CPU"), "{status:#?}");
    let (path, expected) = (folder.clone(), alone(&folder, Precision::Int4));
    let (mut runner, found) = tokio::task::spawn_blocking(move || {
        let found = logits(&mut runner, &path);
        (runner, found)
    })
    .await
    .expect("a step that does not panic");
    assert!(found == expected, "with a GPU among the workers");
    // Without it, and again what one process computes.
    gpu.kill().await;
    router.until("alone", |status| status.workers.len() == 1 && status.serving).await;
    let path = folder.clone();
    let found = tokio::task::spawn_blocking(move || logits(&mut runner, &path)).await.expect("a step");
    assert!(found == expected, "after its death");
    cpu.drain().await.expect("a worker that drains");
    router.stop().await;
}

/// A GPU has no kernels for experts in f32, and whoever placed them there hears it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn experts_that_a_gpu_cannot_compute_are_refused_in_words() {
    let folder = fixtures_folder().join("olmoe_a");
    let mut options = ClusterOptions::default();
    options.policy.expected = 1;
    options.policy.silence_max = gaterail_tests::control::PATIENCE;
    let (router, _runner) = Router::start(&folder, Precision::F32, options, None, loopback()).await;
    let gpu = worker_options(&[router.address], "gpu");
    let gpu = RunningWorker::start(WorkerOptions { gpu: Some(Shim::device(1)), ..gpu });
    let said = |router: &Router| {
        let notes = router.notes.lock().expect("notes");
        notes.iter().any(|note| note.contains("no form for plain experts: use --weights int4"))
    };
    let until = std::time::Instant::now() + gaterail_tests::control::PATIENCE;
    while !said(&router) {
        assert!(std::time::Instant::now() < until, "{:?}", router.notes.lock());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gpu.kill().await;
    router.stop().await;
}
