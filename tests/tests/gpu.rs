//! Contract 4 with experts in a GPU's memory: the CUDA kernels, run on the CPU by the shim, beside workers that compute on the
//! CPU. The bits are those of one process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gaterail_cluster::exchange::Road;
use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::{Device, Isa};
use gaterail_model::walk::{ExpertLayer, Runner};
use gaterail_model::weights::cache::{CacheError, CacheOutcome, PackedCache, list};
use gaterail_model::weights::{
    ExpertShard, LoadFrom, Precision, check_for_cards, inventory, load_slices_onto,
};
use gaterail_proto::{ExpertSlice, UnitRange};
use gaterail_router::cluster::ClusterOptions;
use gaterail_shim::Shim;
use gaterail_tests::broken::Copy;
use gaterail_tests::control::{Router, RunningWorker, loopback, worker_options};
use gaterail_tests::workers::{Cluster, ROUTER, any_placement, everywhere, expert_parallel, local, shared};
use gaterail_tests::{bits, device, fixtures, fixtures_folder, load_as, logits_in_chunks, some_text};
use gaterail_worker::WorkerOptions;
use serde_json::{Map, Value, json};

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

/// A model's slices through a worker's cache; on a card if there is one, and whatever became of them there.
fn packed(folder: &Path, precision: Precision, cache: &PackedCache, card: Option<&Device>) -> Packed {
    let source = gaterail_model::ModelSource::open(folder).expect("a model");
    let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("tensors"));
    let device = device(Isa::detect());
    let from =
        LoadFrom { spec: &spec, checkpoint: &checkpoint, device: &device, precision, cache: Some(cache) };
    // Half of every expert that can be cut, else all of it.
    let half = |slice: ExpertSlice| {
        let end = slice.units.end.div_ceil(2);
        ExpertSlice { units: UnitRange { end, ..slice.units }, ..slice }
    };
    let slices: Vec<ExpertSlice> = inventory(&spec, None).slices().map(half).collect();
    let mut pieces = Vec::new();
    let outcome = load_slices_onto(from, &slices, &mut |_| {}, &mut |_, piece| {
        let piece = match card {
            Some(card) => piece.on(card).expect("room on the card"),
            None => piece,
        };
        pieces.push(piece.clone());
        Some(piece)
    });
    Packed { pieces, outcome: outcome.expect("experts") }
}

struct Packed {
    pieces: Vec<ExpertPiece>,
    outcome: CacheOutcome,
}

impl Packed {
    /// The file that is kept, by name and bytes.
    fn kept(self, held: bool) -> Result<(std::ffi::OsString, Vec<u8>), CacheError> {
        let Packed { pieces, outcome } = self;
        let pieces = Some(pieces).filter(|_| held);
        let written = outcome.pending.expect("something to keep").write(&mut |_| {});
        drop(pieces);
        let path = written?.path;
        Ok((path.file_name().expect("a name").to_owned(), std::fs::read(&path).expect("a file")))
    }
}

fn cache_in(folder: &Path) -> PackedCache {
    PackedCache { bytes_min: 0, ..PackedCache::new(folder.to_path_buf()) }
}

#[test]
fn what_lies_on_a_card_is_kept_byte_for_byte_as_on_the_cpu() {
    let mut cards = 0;
    for (seed, folder) in sparse().iter().enumerate() {
        let precision = [Precision::Int4, Precision::Int8, Precision::AsStored][seed % 3];
        let source = gaterail_model::ModelSource::open(folder).expect("a model");
        let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("tensors"));
        if check_for_cards(&spec, &checkpoint, precision, usize::MAX).is_err() {
            continue;
        }
        let what = format!("{} {precision:?}", folder.display());
        let [here, there] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let gpu = Shim::device(seed as u64);
        let (card, free) = (Device::Cuda(gpu.clone()), gpu.free_bytes().expect("memory"));
        let on_cpu = packed(folder, precision, &cache_in(here.path()), None).kept(true);
        let on_card = packed(folder, precision, &cache_in(there.path()), Some(&card));
        assert!(gpu.free_bytes().expect("memory") < free, "{what}: nothing is on the card");
        let on_card = on_card.kept(true).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(on_cpu.expect("a file") == on_card, "{what}: another file");
        // And it is read: there is nothing more to keep.
        let again = packed(folder, precision, &cache_in(there.path()), Some(&card));
        assert!(again.outcome.pending.is_none() && again.outcome.notes.is_empty(), "{what}");
        drop(again);
        assert_eq!(gpu.free_bytes().expect("memory"), free, "{what}: the card keeps something");
        cards += 1;
    }
    assert!(cards > 8, "{cards} models");
}

/// Keeping takes no room that experts could have: what has gone from the card by then is not written.
#[test]
fn what_has_left_its_card_is_not_kept() {
    let folder = fixtures_folder().join("olmoe_a");
    let there = tempfile::tempdir().expect("a folder");
    let gpu = Shim::device(0);
    let free = gpu.free_bytes().expect("memory");
    let card = Device::Cuda(gpu.clone());
    let loaded = packed(&folder, Precision::Int4, &cache_in(there.path()), Some(&card));
    let error = loaded.kept(false).expect_err("nothing is there").to_string();
    assert!(error.contains("does not hold them any more"), "{error}");
    assert_eq!(gpu.free_bytes().expect("memory"), free);
    assert_eq!(std::fs::read_dir(there.path()).expect("a folder").count(), 0, "nothing is left of the file");
}

/// As an operator has it: what a worker on a card has packed the next one reads, wherever that computes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_its_place_reads_what_a_worker_on_a_gpu_has_packed() {
    let folder = fixtures_folder().join("olmoe_a");
    let kept = tempfile::tempdir().expect("a folder");
    let mut options = ClusterOptions::default();
    options.policy.expected = 1;
    options.policy.silence_max = Duration::from_secs(20);
    let (router, mut runner) = Router::start(&folder, Precision::Int4, options, None, loopback()).await;
    let expected = alone(&folder, Precision::Int4);
    let file = || list(kept.path()).expect("a folder").pop();
    for gpu in [true, true, false] {
        let before = file();
        if let Some(before) = &before {
            let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
            let file = std::fs::File::options().append(true).open(&before.path).expect("a file");
            file.set_modified(long_ago).expect("an older file");
        }
        let worker = RunningWorker::start(WorkerOptions {
            gpu: gpu.then(|| Shim::device(5)),
            packed_cache: Some(cache_in(kept.path())),
            ..worker_options(&[router.address], "it")
        });
        let status = router.serving(1).await;
        assert_eq!(status.workers[0].packed_experts > 0, before.is_some(), "{status:#?}");
        let path = folder.clone();
        let found = tokio::task::spawn_blocking(move || {
            let found = logits(&mut runner, &path);
            (runner, found)
        });
        let (back, found) = found.await.expect("a step");
        runner = back;
        assert!(found == expected, "gpu: {gpu}, second: {}", before.is_some());
        let until = std::time::Instant::now() + gaterail_tests::control::PATIENCE;
        // Written beside the answers; one that is used is marked as used now.
        while file().is_none_or(|file| file.used.elapsed().is_ok_and(|ago| ago > Duration::from_secs(1800))) {
            assert!(std::time::Instant::now() < until, "nothing is kept, or nothing of it read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        worker.kill().await;
        router.until("alone", |status| status.workers.is_empty()).await;
    }
    drop(runner);
    router.stop().await;
}

/// What the tables say before anything is loaded is what the card says of what was loaded.
#[test]
fn forms_without_kernels_are_known_before_they_are_loaded() {
    let mut seen = [0; 2];
    let mut check = |folder: &Path, precision| {
        let source = gaterail_model::ModelSource::open(folder).expect("a model");
        let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("tensors"));
        let what = format!("{} {precision:?}", folder.display());
        let (gpu, device) = (Shim::device(1), device(Isa::detect()));
        let told = check_for_cards(&spec, &checkpoint, precision, gpu.properties().shared_bytes);
        let from = LoadFrom { spec: &spec, checkpoint: &checkpoint, device: &device, precision, cache: None };
        let slices: Vec<ExpertSlice> = inventory(&spec, None).slices().collect();
        let mut pieces = Vec::new();
        let kept = load_slices_onto(from, &slices, &mut |_| {}, &mut |slice, piece| {
            pieces.push((slice.layer, piece.clone()));
            Some(piece)
        });
        let _ = kept.expect("experts");
        let loaded = ExpertShard::on(&Device::Cuda(gpu), spec.layers.len(), pieces);
        assert_eq!(told.is_ok(), loaded.is_ok(), "{what}: {told:?}, and then {:?}", loaded.err());
        seen[usize::from(told.is_ok())] += 1;
        told.err().unwrap_or_default()
    };
    for folder in sparse() {
        for precision in
            [Precision::AsStored, Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int4]
        {
            check(&folder, precision);
        }
    }
    // One down that was left out of the quantisation, in groups of 128, is in another form than the others however it is run.
    let mixed = Copy::of("mixtral_awq");
    leave_one_out(&mixed);
    let told = check(mixed.path(), Precision::Int4);
    assert!(told.contains("in groups of 128") && told.contains("in groups of 64"), "{told}");
    let told = check(mixed.path(), Precision::Int8);
    assert!(told.contains("8-bit codes in groups of 64"), "{told}");
    let told = check(mixed.path(), Precision::AsStored);
    assert!(told.contains("as stored"), "{told}");
    assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
}

/// The down of the first expert becomes a matrix in f16; the other tensors lie as they lay, without a hole.
fn leave_one_out(copy: &Copy) {
    copy.tensors("model.safetensors", |header, data| {
        let module = "model.layers.0.block_sparse_moe.experts.0.w2.";
        let (before, mut after) = (std::mem::take(data), Map::new());
        let mut put = |name: &str, entry: &Value, bytes: &[u8]| {
            let at = data.len();
            data.extend_from_slice(bytes);
            let mut entry = entry.clone();
            entry["data_offsets"] = json!([at, data.len()]);
            after.insert(name.to_string(), entry);
        };
        for (name, entry) in header.iter().filter(|(name, _)| !name.starts_with(module)) {
            let Some(offsets) = entry["data_offsets"].as_array() else { continue };
            let [from, to] = [0, 1].map(|at| offsets[at].as_u64().expect("an offset") as usize);
            put(name, entry, &before[from..to]);
        }
        let matrix = json!({ "dtype": "F16", "shape": [128, 256] });
        put(&format!("{module}weight"), &matrix, &[0; 128 * 256 * 2]);
        *header = after;
    });
}

/// A GPU has no kernels for experts in f32: a worker there does not join who serves them, and says what would work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn experts_that_a_gpu_cannot_compute_are_refused_in_words_before_they_are_placed() {
    let folder = fixtures_folder().join("olmoe_a");
    let mut options = ClusterOptions::default();
    options.policy.expected = 1;
    let (router, _runner) = Router::start(&folder, Precision::F32, options, None, loopback()).await;
    let gpu = worker_options(&[router.address], "gpu");
    let gpu = RunningWorker::start(WorkerOptions { gpu: Some(Shim::device(1)), ..gpu });
    let ended = gpu.ended().await.expect_err("it cannot serve").to_string();
    for part in ["no form for experts in f32", "--weights int4", "--device cpu"] {
        assert!(ended.contains(part), "{ended}");
    }
    let notes = router.notes.lock().expect("notes").clone();
    assert!(notes.iter().all(|note| !note.contains("epoch")), "something was planned: {notes:?}");
    router.stop().await;
}
