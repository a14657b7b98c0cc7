//! Contract 4 with the experts in workers: tokens and log-probabilities are bit-identical for any number of workers and any
//! placement, before, while and after it changes, and when workers die in the middle of a step. Contract 2: a stale epoch
//! computes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{Channel, FrameBody, FrameKind, Header, RowForm, local_pair};
use gaterail_kernels::ops::{QuantRows, quantize};
use gaterail_kernels::{Buffer, Isa, Stream, View};
use gaterail_model::ModelSource;
use gaterail_model::walk::{ExpertMath, StepError};
use gaterail_model::weights::{LoadFrom, Precision, load_slices};
use gaterail_proto::{Epoch, LayerId, RouterId, ShardSpec, WorkerId};
use gaterail_router::cluster::OwnShard;
use gaterail_tests::workers::{
    Cluster, MakePair, ROUTER, any_placement, everywhere, expert_parallel, local, shared,
};
use gaterail_tests::{bits, demo_model, device, fixtures, load_as, logits_in_chunks, some_text};
use gaterail_worker::{Compute, Progress, Shards};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sparse fixtures and the demo model, in f32, bf16 and int4.
fn cases() -> Vec<(std::path::PathBuf, Precision)> {
    let folders: Vec<_> = fixtures().into_iter().chain([demo_model()]).collect();
    let precisions = [Precision::F32, Precision::Bf16, Precision::Int4];
    folders.iter().flat_map(|folder| precisions.map(|precision| (folder.clone(), precision))).collect()
}

/// AVX-512 and AVX2 in turns, as far as the machine has them.
fn mixed_isas(count: usize) -> Vec<Isa> {
    let isas = [Isa::detect(), if Isa::Avx2.is_available() { Isa::Avx2 } else { Isa::Portable }];
    (0..count).map(|worker| isas[worker % 2]).collect()
}

#[test]
fn placement_changes_no_bit() {
    let device = device(Isa::detect());
    let (mut placements, mut cut) = (0, 0);
    let mut in_halves = false;
    for (index, (folder, precision)) in cases().into_iter().enumerate() {
        let tokens = some_text(&folder);
        let chunks = || [7usize, 1, 1, 30, 1].into_iter().cycle();
        let mut whole = load_as(&folder, &device, Vec::new(), precision);
        if whole.spec().sparse().is_none() {
            continue;
        }
        let alone = bits(&logits_in_chunks(&mut whole, &tokens, chunks()));
        // Two micro-batches in flight for every other model, and over shared memory for two of four.
        in_halves = !in_halves;
        let pair: MakePair<'_> = if index % 4 < 2 { &local } else { &shared };
        let (mut runner, mut cluster) = Cluster::start(&folder, precision, &mixed_isas(1), pair);
        if in_halves {
            runner.overlap_from(2).unwrap();
        }
        for workers in 1..=4 {
            if workers > 1 {
                cluster.join(mixed_isas(4)[workers - 1], pair);
            }
            let ids = cluster.ids();
            let seed = (index * 10 + workers) as u64;
            let mut all = vec![any_placement(&cluster.inventory, &ids, seed)];
            if workers == 2 {
                all.push(expert_parallel(&cluster.inventory, &ids));
                all.push(everywhere(&cluster.inventory, &ids));
            }
            for placement in all {
                let epoch = cluster.activate(placement);
                let split = bits(&logits_in_chunks(&mut runner, &tokens, chunks()));
                assert!(alone == split, "{}, {precision:?}: {workers} workers", folder.display());
                cluster.workers.iter().for_each(|worker| worker.shards.retire(ROUTER, epoch));
                placements += 1;
                cut += usize::from(cluster.inventory.layers.iter().any(|layer| layer.units > 1));
            }
        }
        assert!(cluster.calls(0) > 0, "{}: nobody was asked", folder.display());
        assert!(cluster.faults.lock().unwrap().try_recv().is_err(), "{}: a fault", folder.display());
    }
    assert!(
        placements > 400 && cut > 50,
        "only {placements} placements, {cut} of experts with several units"
    );
}

/// What a call to a worker came to.
struct Asked {
    kind: FrameKind,
    form: RowForm,
    body: Vec<u8>,
}

/// Sends one call to a worker that holds all of the demo model for (ROUTER, epoch 5).
fn ask(header: &Header, parts: &[&[u8]]) -> Asked {
    let folder = demo_model();
    let source = ModelSource::open(&folder).unwrap();
    let (spec, checkpoint) = (source.spec().unwrap(), source.checkpoint().unwrap());
    let device = device(Isa::detect());
    let shards = Arc::new(Shards::new(spec.layers.len()));
    let inventory = gaterail_model::weights::inventory(&spec, None);
    let whole = ShardSpec::whole(&inventory);
    let (precision, cache) = (Precision::Int4, None);
    let from = LoadFrom { spec: &spec, checkpoint: &checkpoint, device: &device, precision, cache };
    shards.want(ROUTER, Epoch(5), &whole);
    let outcome = load_slices(from, &whole.slices, &mut |_| {}, &mut |slice, piece| {
        shards.keep(slice, piece).unwrap();
        true
    });
    let _ = outcome.unwrap();
    shards.prepare(ROUTER, Epoch(5), whole).unwrap();
    let mut compute = Compute::new(Arc::new(ExpertMath::of(&spec)), shards, ROUTER, &device).unwrap();
    let (mut router, mut own) = local_pair(1 << 20);
    let worker = std::thread::spawn(move || {
        let _ = compute.serve(&mut own, &Progress::default());
    });
    let deadline = Instant::now() + PATIENCE;
    router.send(header, parts, deadline).unwrap();
    let mut body = FrameBody::default();
    let reply = router.receive(&mut body, deadline).unwrap();
    assert_eq!(reply.call, header.call);
    drop(router);
    worker.join().unwrap();
    Asked { kind: reply.kind, form: reply.form, body: body.bytes().to_vec() }
}

/// Codes as bytes, and scales.
fn in_int8(x: &[f32], width: usize, group: usize) -> (Vec<u8>, Vec<f32>) {
    let stream = Stream::open(&device(Isa::detect())).unwrap();
    let rows = x.len() / width;
    let mut there = Buffer::zeros(stream.device(), x.len()).unwrap();
    stream.upload(x, &mut there).unwrap();
    let mut int8 = QuantRows::new(stream.device(), rows, width).unwrap();
    quantize(&stream, View::rows(&there, rows, width), group, &mut int8);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    int8.download_all(&stream, &mut codes, &mut scales).unwrap();
    (codes.into_iter().map(|code| code as u8).collect(), scales)
}

#[test]
fn a_worker_computes_calls_of_its_epochs_and_no_others() {
    let spec = ModelSource::open(&demo_model()).unwrap().spec().unwrap();
    let (width, top_k) = (spec.hidden, spec.sparse().unwrap().top_k);
    let layer = spec.layers.iter().position(|layer| layer.mlp.sparse().is_some()).unwrap();
    let x: Vec<f32> = (0..2 * width).map(|i| (i as f32 * 0.37).sin()).collect();
    let ids: Vec<u32> = (0..2 * top_k as u32).collect();
    let weights = vec![0.25f32; 2 * top_k];
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let id_bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let parts: [&[u8]; 3] = [&id_bytes, &bytes(&weights), &bytes(&x)];
    let good = Header {
        kind: FrameKind::Call,
        form: RowForm::F32,
        router: ROUTER,
        epoch: Epoch(5),
        call: 1,
        layer: LayerId(layer as u32),
        rows: 2,
        width: width as u32,
        top_k: top_k as u32,
        body_bytes: 0,
        computed_ns: 0,
    };
    let reply = ask(&good, &parts);
    assert_eq!(reply.kind, FrameKind::Reply);
    assert!(reply.body.len() > 8, "sums");
    // It says in which form it would rather have had them, and makes the same of that.
    let group = reply.form.group().expect("packed experts");
    let (codes, scales) = in_int8(&x, width, group);
    let int8: [&[u8]; 4] = [&bytes(&scales), &id_bytes, &bytes(&weights), &codes];
    let again = ask(&Header { form: reply.form, ..good }, &int8);
    assert_eq!((again.kind, again.form), (FrameKind::Reply, reply.form));
    assert!(again.body == reply.body, "other sums of the same rows in int8");
    for other in [32, 64, 128].into_iter().filter(|other| *other != group) {
        let (codes, scales) = in_int8(&x, width, other);
        let parts: [&[u8]; 4] = [&bytes(&scales), &id_bytes, &bytes(&weights), &codes];
        let reply = ask(&Header { form: RowForm::int8(other).unwrap(), ..good }, &parts);
        assert_eq!(reply.kind, FrameKind::Failed, "groups of {other}");
    }
    // Scales that are powers of two or NaN, and codes of +-127: kernels count on no others.
    for scale in [0.0, -scales[0], 3.0, 2f32.powi(-107), 2f32.powi(123), f32::INFINITY, f32::NAN] {
        let scales: Vec<f32> = std::iter::once(scale).chain(scales[1..].iter().copied()).collect();
        let parts: [&[u8]; 4] = [&bytes(&scales), &id_bytes, &bytes(&weights), &codes];
        let asked = ask(&Header { form: reply.form, ..good }, &parts);
        let expected = if scale.is_nan() { FrameKind::Reply } else { FrameKind::Failed };
        assert_eq!(asked.kind, expected, "a scale of {scale}");
    }
    let least: Vec<u8> = std::iter::once(0x80).chain(codes[1..].iter().copied()).collect();
    let parts: [&[u8]; 4] = [&bytes(&scales), &id_bytes, &bytes(&weights), &least];
    assert_eq!(ask(&Header { form: reply.form, ..good }, &parts).kind, FrameKind::Failed, "a code of -128");
    // Whole in itself, with twice the experts that the model gives a row.
    let one: [&[u8]; 3] = [&id_bytes, &bytes(&weights), &bytes(&x[..width])];
    let refused = ask(&Header { rows: 1, top_k: 2 * top_k as u32, ..good }, &one);
    assert_eq!(refused.kind, FrameKind::Failed);
    let why = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(why.contains("not a call of this model"), "{why}");
    for stale in [
        Header { epoch: Epoch(4), ..good },
        Header { epoch: Epoch(6), ..good },
        Header { router: RouterId(8), ..good },
    ] {
        let reply = ask(&stale, &parts);
        assert_eq!((reply.kind, reply.body.len()), (FrameKind::Aborted, 0), "{stale:?}");
    }
    for bad in [
        Header { rows: 3, ..good },
        Header { rows: 0, ..good },
        Header { width: u32::MAX, rows: u32::MAX, top_k: u32::MAX, ..good },
        Header { layer: LayerId(99), ..good },
        Header { width: width as u32 - 2, top_k: top_k as u32 + 1, ..good },
        Header { form: reply.form, ..good },
    ] {
        let reply = ask(&bad, &parts);
        assert_eq!(reply.kind, FrameKind::Failed, "{bad:?}");
        assert!(!reply.body.is_empty(), "a reason");
    }
}

/// Kills workers in the middle of steps; whoever controls makes a plan of those that are left.
#[test]
fn a_death_changes_no_bit() {
    let device = device(Isa::detect());
    let folder = demo_model();
    for (seed, precision) in
        [Precision::F32, Precision::Int4, Precision::Int4, Precision::Int4].into_iter().enumerate()
    {
        let tokens = some_text(&folder);
        let chunks = || [9usize, 1, 1, 1].into_iter().cycle();
        let mut whole = load_as(&folder, &device, Vec::new(), precision);
        let alone = bits(&logits_in_chunks(&mut whole, &tokens, chunks()));
        let pair: MakePair<'_> = if seed < 2 { &shared } else { &local };
        let (mut runner, mut cluster) = Cluster::start(&folder, precision, &mixed_isas(4), pair);
        let ids = cluster.ids();
        cluster.activate(any_placement(&cluster.inventory, &ids, seed as u64));
        if seed % 2 == 1 {
            runner.overlap_from(2).unwrap();
        }
        let stats = cluster.stats.clone();
        let until = Instant::now() + PATIENCE;
        // The text is read again until three have died, however late control is.
        let texts = std::thread::scope(|scope| {
            let cluster = &mut cluster;
            let control = scope.spawn(move || {
                let (mut alive, mut deaths, mut killed) = (ids, 0, false);
                while deaths < 3 {
                    assert!(Instant::now() < until, "{deaths} have died");
                    // The next to die is the last one that is left but one, after some calls of its.
                    let victim = alive.len() - 1;
                    if cluster.calls(victim) > 5 * (deaths + 1) {
                        cluster.workers[victim].kill.now();
                        killed = true;
                    }
                    // Every second time control hears of it before the engine does, and takes a while.
                    if killed && deaths % 2 == 1 {
                        cluster.plans.leave(alive[victim]);
                        std::thread::sleep(Duration::from_millis(3));
                    } else {
                        let fault = cluster.faults.lock().unwrap().recv_timeout(Duration::from_millis(1));
                        let Ok(fault) = fault else { continue };
                        if !alive.contains(&fault.worker) {
                            continue;
                        }
                        let why = format!("{fault:?}, {alive:?} are left");
                        assert!(fault.worker == alive[victim], "{why}");
                        cluster.plans.leave(fault.worker);
                    }
                    alive.pop();
                    deaths += 1;
                    killed = false;
                    let next = any_placement(&cluster.inventory, &alive, 1000 * seed as u64 + deaths);
                    cluster.activate(next);
                }
            });
            let mut texts = Vec::new();
            while !control.is_finished() {
                texts.push(bits(&logits_in_chunks(&mut runner, &tokens, chunks())));
            }
            control.join().unwrap();
            texts
        });
        assert!(!texts.is_empty() && texts.iter().all(|split| *split == alone), "{precision:?}, seed {seed}");
        assert!(stats.again.load(Ordering::Relaxed) >= 2, "layers that were computed again");
    }
}

#[test]
fn the_routers_own_share_changes_no_bit() {
    let folder = demo_model();
    let device = device(Isa::detect());
    let tokens = some_text(&folder);
    let mut whole = load_as(&folder, &device, Vec::new(), Precision::Int4);
    let alone = bits(&logits_in_chunks(&mut whole, &tokens, std::iter::repeat(11)));
    let (mut runner, mut cluster) = Cluster::start(&folder, Precision::Int4, &mixed_isas(2), &local);
    let router = WorkerId(1);
    let source = ModelSource::open(&folder).unwrap();
    let (spec, checkpoint) = (source.spec().unwrap(), source.checkpoint().unwrap());
    for seed in 0..6 {
        let ids = [cluster.ids()[0], router, cluster.ids()[1]];
        let ids = if seed == 5 { &ids[1..2] } else { &ids[..] };
        let placement = any_placement(&cluster.inventory, ids, seed);
        let index = ids.iter().position(|id| *id == router).unwrap();
        let shards = Shards::new(spec.layers.len());
        let own = placement.shard(index);
        let from = LoadFrom {
            spec: &spec,
            checkpoint: &checkpoint,
            device: &device,
            precision: Precision::Int4,
            cache: None,
        };
        shards.want(ROUTER, Epoch(1), &own);
        let outcome = load_slices(from, &own.slices, &mut |_| {}, &mut |slice, piece| {
            shards.keep(slice, piece).unwrap();
            true
        });
        let _ = outcome.unwrap();
        shards.prepare(ROUTER, Epoch(1), own).unwrap();
        let own = OwnShard { index, shard: shards.of(ROUTER, Epoch(1)).unwrap() };
        cluster.activate_with(placement, Some(own));
        let split = bits(&logits_in_chunks(&mut runner, &tokens, std::iter::repeat(11)));
        assert!(alone == split, "seed {seed}");
    }
}

/// The step waits for workers as long as it may, goes on when there are some, and else fails without an end to the engine.
#[test]
fn without_workers_a_step_waits_and_then_fails() {
    let folder = demo_model();
    let device = device(Isa::detect());
    let tokens = some_text(&folder);
    let mut whole = load_as(&folder, &device, Vec::new(), Precision::Int4);
    let alone = bits(&logits_in_chunks(&mut whole, &tokens, std::iter::repeat(8)));
    let (mut runner, mut cluster) = Cluster::start(&folder, Precision::Int4, &mixed_isas(1), &local);
    let plans = cluster.plans.clone();
    let late = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            let ids = cluster.ids();
            cluster.activate(expert_parallel(&cluster.inventory, &ids));
        });
        bits(&logits_in_chunks(&mut runner, &tokens, std::iter::repeat(8)))
    });
    assert!(alone == late, "a plan that came late");
    cluster.workers[0].kill.now();
    plans.close();
    let mut table = gaterail_model::kv::PageTable::default();
    runner.grow(&mut table, 1).unwrap();
    let mut batch = gaterail_model::walk::Batch::default();
    batch.add(&tokens[..1], 0, &table, |_| true);
    match runner.step(&batch) {
        Err(StepError::Experts(_)) => {}
        other => panic!("{other:?}"),
    }
}
