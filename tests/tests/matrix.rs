//! Contract 4 over everything that may differ: every fixture model, one with wide experts and the demo model, precisions, numbers of workers, ways to
//! spread experts, exchanges, instruction sets, micro-batches, roads (broadcast or gather). Each pair of these meets in one case at least; in each case the
//! experts move to other workers in the middle of the sequence. All logits are those of one process, to the bit, and with them
//! all tokens and log-probabilities.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use std::sync::atomic::Ordering;

use gaterail_cluster::exchange::{Channel, Road};
use gaterail_cluster::placement::{Mode, Seat, Wanted, place};
use gaterail_kernels::Isa;
use gaterail_model::ModelSource;
use gaterail_model::weights::Precision;
use gaterail_proto::{ExpertInventory, ExpertPlace, Placement, WorkerId};
use gaterail_tests::exchanges::GrpcExchange;
use gaterail_tests::pairs::{Pair, Row, all_pairs, covering, pairs_of};
use gaterail_tests::wide::wide;
use gaterail_tests::workers::{Cluster, MakePair, ROUTER, any_placement, local, shared};
use gaterail_tests::{bits, demo_model, device, fixtures, load_as, logits_in_chunks, some_text};

/// Of the factors in a row.
const MODEL: usize = 0;
const PRECISION: usize = 1;
const WORKERS: usize = 2;
const SPREAD: usize = 3;
const EXCHANGE: usize = 4;
const ISAS: usize = 5;
const LANES: usize = 6;
const ROAD: usize = 7;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int4];
const WORKERS_MAX: usize = 4;
const EXCHANGES: [&str; 4] = ["local", "shared memory", "gRPC", "gRPC over TLS"];

/// How experts are spread, and the least number of workers for it.
const SPREADS: [(Mode, u32, usize); 4] =
    [(Mode::Ep, 1, 1), (Mode::Tp, 1, 1), (Mode::Mixed { ep: 2, tp: 2 }, 1, 4), (Mode::Ep, 2, 2)];

/// What decides which rows a worker gets.
const ROADS: [Option<Road>; 3] = [None, Some(Road::All), Some(Road::Chosen)];

/// Of the ways to spread.
const TP: usize = 1;

/// Of the instruction sets: the machine's own and a narrower one in turns.
const MIXED: usize = 2;

/// Steps before the experts move.
const STEPS_BEFORE: usize = 4;

/// Those with experts; `wide` is one whose experts have many units.
fn models(wide: &Path) -> Vec<PathBuf> {
    let sparse = |folder: &PathBuf| {
        let source = ModelSource::open(folder).expect("a model");
        source.spec().expect("a spec").sparse().is_some()
    };
    fixtures().into_iter().chain([wide.to_path_buf(), demo_model()]).filter(sparse).collect()
}

fn levels(models: usize) -> [usize; 8] {
    [models, PRECISIONS.len(), WORKERS_MAX, SPREADS.len(), EXCHANGES.len(), 3, 2, ROADS.len()]
}

fn is_possible(row: &Row) -> bool {
    row[WORKERS] + 1 >= SPREADS[row[SPREAD]].2 && (row[ISAS] != MIXED || row[WORKERS] > 0)
}

#[test]
fn every_pair_of_circumstances_changes_no_bit() {
    let wide = wide();
    let models = models(wide.path());
    let levels = levels(models.len());
    let mut rows = covering(&levels, is_possible, 4);
    // Most fixtures' experts have one unit, or two: who cuts them among more workers cuts nothing.
    let at = models.iter().position(|folder| folder == wide.path()).expect("the wide one");
    rows.extend(
        (1..WORKERS_MAX).map(|more| {
            vec![at, more % PRECISIONS.len(), more, TP, more, MIXED, more % 2, more % ROADS.len()]
        }),
    );
    // The reference of a model is computed once for each precision.
    rows.sort_by_key(|row| (row[MODEL], row[PRECISION]));
    let (clear, secret) = (GrpcExchange::in_clear(), GrpcExchange::over_tls());
    assert!(secret.speaks_tls() && !clear.speaks_tls(), "two ways to travel");
    if narrower().is_none() {
        eprintln!("this machine has one instruction set: none were mixed");
    }
    let mut covered: BTreeSet<Pair> = BTreeSet::new();
    let (mut most_cut, mut roads) = (BTreeSet::new(), BTreeSet::new());
    let mut reference: Option<Alone> = None;
    for (index, row) in rows.iter().enumerate() {
        let (folder, precision) = (&models[row[MODEL]], PRECISIONS[row[PRECISION]]);
        let of = (row[MODEL], row[PRECISION]);
        if reference.as_ref().is_none_or(|alone| alone.of != of) {
            reference = Some(alone(of, folder, precision));
        }
        let Alone { tokens, logits, .. } = reference.as_ref().expect("it was computed");
        let pair: MakePair<'_> = match row[EXCHANGE] {
            0 => &local,
            1 => &shared,
            2 => &|body_max| clear.pair(body_max),
            _ => &|body_max| secret.pair(body_max),
        };
        let Found { logits: found, parts, gathered, int8 } =
            spread(row, folder, (tokens, index as u64), pair);
        assert!(*logits == found, "{}", described(row, folder));
        roads.insert((ROADS[row[ROAD]] == Some(Road::All), gathered));
        assert_eq!(int8, precision == Precision::Int4, "rows in int8: {}", described(row, folder));
        most_cut.insert((folder == wide.path() && row[SPREAD] == TP, parts));
        covered.extend(pairs_of(row));
    }
    assert!((2..=WORKERS_MAX as u32).all(|parts| most_cut.contains(&(true, parts))), "{most_cut:?}");
    assert!(!roads.contains(&(true, true)) && roads.contains(&(false, true)), "{roads:?}");
    let missing: Vec<Pair> = all_pairs(&levels).filter(|pair| !covered.contains(pair)).collect();
    let impossible = |((one, a), (other, b)): &Pair| match (*one, *other) {
        (WORKERS, SPREAD) => a + 1 < SPREADS[*b].2,
        (WORKERS, ISAS) => (*a, *b) == (0, MIXED),
        _ => false,
    };
    assert!(missing.iter().all(impossible), "not covered: {missing:?}");
    assert_eq!(missing.len(), 5, "mixed on 1, 2 and 3 workers, copies on one, two instruction sets on one");
    eprintln!("{} cases of {} models", rows.len(), models.len());
}

/// What one process makes of a text.
struct Alone {
    /// Model and precision.
    of: (usize, usize),
    tokens: Vec<u32>,
    logits: Vec<Vec<u32>>,
}

fn alone(of: (usize, usize), folder: &Path, precision: Precision) -> Alone {
    let tokens = some_text(folder);
    let mut whole = load_as(folder, &device(Isa::detect()), Vec::new(), precision);
    let logits = bits(&logits_in_chunks(&mut whole, &tokens, sizes()));
    Alone { of, tokens, logits }
}

/// How much is read at once.
fn sizes() -> impl Iterator<Item = usize> {
    [7usize, 1, 1, 30, 1].into_iter().cycle()
}

/// What came of a case.
struct Found {
    logits: Vec<Vec<u32>>,
    /// In how many parts the first way cut an expert.
    parts: u32,
    /// Whether rows were picked out of a batch, and whether some went as int8.
    gathered: bool,
    int8: bool,
}

/// The same with the experts spread as the row has it, and then, in the middle of the sequence, in any other way.
fn spread(row: &Row, folder: &Path, (tokens, seed): (&[u32], u64), pair: MakePair<'_>) -> Found {
    let isas = isas(row[ISAS], row[WORKERS] + 1);
    let checked = |body_max: u64| -> (Box<dyn Channel>, Box<dyn Channel>) {
        let ends = pair(body_max);
        assert_eq!(ends.0.kind().to_string(), EXCHANGES[row[EXCHANGE].min(2)], "the way rows travel");
        ends
    };
    let (mut runner, mut cluster) =
        Cluster::start_on(ROADS[row[ROAD]], folder, PRECISIONS[row[PRECISION]], &isas, &checked);
    if row[LANES] == 1 {
        runner.overlap_from(2).expect("room for two");
    }
    let ids = cluster.ids();
    let first = placed(&cluster.inventory, &ids, row[SPREAD]);
    let parts = parts(&first, &cluster.inventory, row);
    let next = any_placement(&cluster.inventory, &ids, seed);
    let has_part = |plan: &Placement, id: &WorkerId| {
        plan.workers
            .iter()
            .position(|worker| worker == id)
            .is_some_and(|at| !plan.shard(at).slices.is_empty())
    };
    let holds: Vec<bool> = ids.iter().map(|id| has_part(&first, id) || has_part(&next, id)).collect();
    let before = cluster.activate(first);
    let (mut steps, mut sizes) = (0, sizes());
    let mut after = None;
    let chunks = std::iter::from_fn(|| {
        if steps == STEPS_BEFORE {
            after = Some(cluster.activate(next.clone()));
        }
        steps += 1;
        sizes.next()
    });
    let logits = bits(&logits_in_chunks(&mut runner, tokens, chunks));
    assert!(steps > STEPS_BEFORE + 1, "{}: only {steps} steps", described(row, folder));
    assert!(after > Some(before) && cluster.plans.in_use() == after, "the experts moved");
    let idle = (0..ids.len()).find(|worker| holds[*worker] && cluster.calls(*worker) == 0);
    assert!(idle.is_none(), "{}: worker {idle:?} was never asked", described(row, folder));
    let fault = cluster.faults.lock().expect("faults").try_recv();
    assert!(fault.is_err(), "{}: {fault:?}", described(row, folder));
    cluster.workers.iter().for_each(|worker| worker.shards.forget(ROUTER));
    let links = cluster.stats.links();
    let gathered = links.values().any(|link| link.gathered.load(Ordering::Relaxed) > 0);
    let int8 = links.values().any(|link| link.int8.load(Ordering::Relaxed) > 0);
    Found { logits, parts, gathered, int8 }
}

/// In how many parts experts are; with tensor parallelism every worker has one, as far as there are units.
fn parts(plan: &Placement, inventory: &ExpertInventory, row: &Row) -> u32 {
    let units = |place: &ExpertPlace| {
        let layer = inventory.layers.iter().find(|layer| layer.layer == place.layer);
        layer.expect("a layer of the inventory").units
    };
    for place in plan.experts.iter().filter(|_| row[SPREAD] == TP) {
        assert_eq!(place.copies[0].runs.len(), (row[WORKERS] + 1).min(units(place) as usize), "{place:?}");
    }
    plan.experts.iter().map(|place| place.copies[0].runs.len() as u32).max().unwrap_or(0)
}

/// As a router would place them.
fn placed(inventory: &ExpertInventory, workers: &[WorkerId], spread: usize) -> Placement {
    let (mode, copies, _) = SPREADS[spread];
    let seat = |worker: &WorkerId| Seat {
        worker: *worker,
        memory_bytes: 1 << 40,
        read_bytes_per_second: 1.0 + worker.0 as f64 / 100.0,
    };
    let seats: Vec<Seat> = workers.iter().map(seat).collect();
    let wanted = Wanted { copies, ..Wanted::new(inventory, &seats, mode) };
    place(&wanted).expect("there is room for everything")
}

/// The next below the machine's own, where it has one.
fn narrower() -> Option<Isa> {
    let below = |isa: &Isa| *isa != Isa::detect() && isa.is_available();
    // From the widest down: what is wider than the machine's own is not available.
    [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().find(below)
}

/// The machine's own, the next narrower one, or both in turns.
fn isas(level: usize, workers: usize) -> Vec<Isa> {
    let both = [Isa::detect(), narrower().unwrap_or(Isa::detect())];
    (0..workers).map(|worker| both[if level < MIXED { level } else { worker % 2 }]).collect()
}

fn described(row: &Row, folder: &Path) -> String {
    let (mode, copies, _) = SPREADS[row[SPREAD]];
    format!(
        "{}, {:?}, {} workers, {mode} in {copies} copies, {}, {:?}, {} micro-batches, road {:?}",
        folder.display(),
        PRECISIONS[row[PRECISION]],
        row[WORKERS] + 1,
        EXCHANGES[row[EXCHANGE]],
        isas(row[ISAS], row[WORKERS] + 1),
        row[LANES] + 1,
        ROADS[row[ROAD]],
    )
}
