//! What it costs to have the experts in other processes: decode and prefill of one process, and of a router with worker
//! processes over shared memory, tensor parallel and expert parallel, in turns in one run on the same weights.
//!
//! `cargo bench -p gaterail-benches --bench workers -- MODEL [rounds] [workers] [stored|int4]`. Worker i has core i to itself
//! and to the router's thread i.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Instant;

use gaterail_benches::{Spread, row};
use gaterail_cluster::exchange::body_bytes_max;
use gaterail_cluster::exchange::{SharedOffer, Waiting, create_shared, open_shared};
use gaterail_kernels::{CpuOptions, Device};
use gaterail_model::ModelSource;
use gaterail_model::kv::PageTable;
use gaterail_model::walk::{Batch, ExpertLayer, ExpertMath, LaneTimes, Runner, RunnerOptions};
use gaterail_model::weights::{LoadFrom, Precision, inventory, load_slices};
use gaterail_proto::{
    Epoch, ExpertCopy, ExpertInventory, ExpertPlace, Placement, RouterId, UnitRange, UnitRun, WorkerId,
};
use gaterail_router::cluster::{ExchangeStats, Plan, Plans, RemoteExperts, RemoteLimits};
use gaterail_worker::{Compute, Progress, Shards};

const ROUTER: RouterId = RouterId(1);
const EPOCH: Epoch = Epoch(1);
const ROWS_MAX: usize = 512;
const POSITIONS: usize = 16 * 1024;
const CONTEXT: usize = 128;
const STEPS: usize = 8;
const STREAMS: [usize; 2] = [1, 16];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "worker") {
        return work(&args[1..]);
    }
    let Some(model) = args.first() else {
        println!(
            "usage: cargo bench -p gaterail-benches --bench workers -- MODEL [rounds] [workers] [stored|int4]"
        );
        return;
    };
    let rounds = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let workers = args.get(2).and_then(|text| text.parse().ok()).unwrap_or(2);
    let precision = if args.iter().any(|arg| arg == "int4") { Precision::Int4 } else { Precision::AsStored };
    let cores = CpuOptions::default();
    let device = Device::cpu(CpuOptions { pin: true, ..cores.clone() }).expect("threads");
    let mut local = one_process(Path::new(model), &device, precision);
    let mut modes: Vec<Mode> = ["tp", "ep"]
        .into_iter()
        .map(|name| Mode::start(name, Path::new(model), (&device, cores.threads), precision, workers))
        .collect();
    println!(
        "{model} on {device}, {workers} worker processes, {rounds} rounds, medians (smallest to largest)\n"
    );
    for streams in STREAMS {
        compare(
            &format!("decode, {streams} streams at {CONTEXT}"),
            rounds,
            &mut local,
            &mut modes,
            &|turn| turn.decode(streams),
        );
    }
    compare("prefill of 512", rounds, &mut local, &mut modes, &|turn| turn.prefill());
    modes.into_iter().for_each(Mode::end);
}

/// A runner, whatever its experts are.
trait Turn {
    fn decode(&mut self, streams: usize) -> f64;
    fn prefill(&mut self) -> f64;
}

fn compare(
    what: &str,
    rounds: usize,
    local: &mut Runner,
    modes: &mut [Mode],
    turn: &dyn Fn(&mut dyn Turn) -> f64,
) {
    turn(local);
    modes.iter_mut().for_each(|mode| {
        turn(&mut mode.runner);
    });
    let before: Vec<Shares> = modes.iter().map(Mode::shares).collect();
    let (mut alone, mut rates) = (Vec::new(), vec![Vec::new(); modes.len()]);
    for _ in 0..rounds {
        alone.push(turn(local));
        for (mode, rates) in modes.iter_mut().zip(&mut rates) {
            rates.push(turn(&mut mode.runner));
        }
    }
    println!("{}", row(what, "tokens/s", &Spread::new(alone.clone()), "one process"));
    for ((mode, rates), before) in modes.iter().zip(&rates).zip(&before) {
        let mut ratios: Vec<f64> =
            rates.iter().zip(&alone).map(|(rate, alone)| rate / alone * 100.0).collect();
        ratios.sort_by(f64::total_cmp);
        let note = format!(
            "{}: {:.1} % of it; {}",
            mode.name,
            ratios[ratios.len() / 2],
            mode.shares().since(before)
        );
        println!("{}", row("", "tokens/s", &Spread::new(rates.clone()), &note));
    }
}

impl<E: ExpertLayer> Turn for Runner<E> {
    fn decode(&mut self, streams: usize) -> f64 {
        let vocab = self.spec().vocab;
        let mut tables: Vec<PageTable> = (0..streams).map(|_| PageTable::default()).collect();
        tables.iter_mut().for_each(|table| self.grow(table, CONTEXT + STEPS).expect("pages"));
        let started = Instant::now();
        for step in 0..STEPS {
            let mut batch = Batch::default();
            for (stream, table) in tables.iter().enumerate() {
                let token = ((CONTEXT + step) * 31 + stream).wrapping_mul(7919) % vocab;
                batch.add(&[token as u32], CONTEXT + step, table, |_| true);
            }
            self.step(&batch).expect("a step");
        }
        let rate = (streams * STEPS) as f64 / started.elapsed().as_secs_f64();
        tables.into_iter().for_each(|table| self.release(table));
        rate
    }

    fn prefill(&mut self) -> f64 {
        let vocab = self.spec().vocab;
        let mut table = PageTable::default();
        self.grow(&mut table, ROWS_MAX).expect("pages");
        let tokens: Vec<u32> = (0..ROWS_MAX).map(|i| (i.wrapping_mul(7919) % vocab) as u32).collect();
        let mut batch = Batch::default();
        batch.add(&tokens, 0, &table, |row| row + 1 == ROWS_MAX);
        let started = Instant::now();
        self.step(&batch).expect("a step");
        let rate = ROWS_MAX as f64 / started.elapsed().as_secs_f64();
        self.release(table);
        rate
    }
}

fn options(precision: Precision) -> RunnerOptions {
    RunnerOptions {
        rows_max: ROWS_MAX,
        positions: POSITIONS,
        shards: Vec::new(),
        precision,
        kv: precision.kv(),
    }
}

fn one_process(model: &Path, device: &Device, precision: Precision) -> Runner {
    Runner::load(model, device, &options(precision), &mut |_| {}).expect("a model")
}

/// A router with its workers.
struct Mode {
    name: &'static str,
    runner: Runner<RemoteExperts>,
    stats: Arc<ExchangeStats>,
    times: Arc<LaneTimes>,
    workers: Vec<Child>,
}

impl Mode {
    fn start(
        name: &'static str,
        model: &Path,
        (device, cores): (&Device, usize),
        precision: Precision,
        workers: usize,
    ) -> Mode {
        let source = ModelSource::open(model).expect("a model");
        let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("a checkpoint"));
        let (faults, told) = channel();
        std::thread::spawn(move || {
            if let Ok(fault) = told.recv() {
                eprintln!("{fault:?}");
                std::process::exit(1);
            }
        });
        let plans = Arc::new(Plans::new(faults));
        let stats = Arc::new(ExchangeStats::default());
        let math = ExpertMath::of(&spec);
        let top_k = math.layers.iter().flatten().map(|layer| layer.top_k).max().unwrap_or(1);
        let body_max = body_bytes_max(ROWS_MAX, math.hidden, top_k);
        let experts = RemoteExperts::new(math, ROUTER, plans.clone(), stats.clone(), RemoteLimits::default());
        let placement = placement(name, &inventory(&spec, Some(&checkpoint)), workers);
        let mut children = Vec::new();
        // The worker cannot ask: it inherits the binding of the thread that starts it.
        let cores = cores as u64;
        for index in 0..workers {
            let (offer, end) =
                create_shared(body_max, index as u64 + 77, Waiting::default()).expect("shared memory");
            let SharedOffer { pid, fd, bytes, nonce } = offer;
            let precision = if precision == Precision::Int4 { "int4" } else { "stored" };
            let numbers =
                [u64::from(pid), u64::from(fd), bytes, nonce, body_max, index as u64, workers as u64, cores];
            let mut child = Command::new(std::env::current_exe().expect("this program"))
                .args(["worker", name, precision])
                .arg(model)
                .args(numbers.map(|number| number.to_string()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a worker");
            let mut line = String::new();
            BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
            assert_eq!(line, "ready\n");
            plans.join(placement.workers[index], Box::new(end));
            children.push(child);
        }
        let speeds = vec![1.0; workers].into();
        plans.activate(Plan { epoch: EPOCH, placement: Arc::new(placement), speeds, own: None });
        let (runner, _) =
            Runner::with_experts(spec, &checkpoint, device, &options(precision), None, &mut |_| {}, experts)
                .expect("a runner");
        let times = runner.times();
        Mode { name, runner, stats, times, workers: children }
    }

    fn shares(&self) -> Shares {
        let get = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed) as f64;
        let (lane, exchange) = (&self.times, &self.stats);
        Shares([
            get(&lane.step_ns),
            get(&lane.attention_ns),
            get(&lane.gate_ns),
            get(&lane.ends_ns),
            get(&exchange.dispatch_ns),
            get(&exchange.mean_ns),
            get(&exchange.slowest_ns) - get(&exchange.mean_ns),
            get(&exchange.wait_ns) - get(&exchange.slowest_ns),
            get(&exchange.combine_ns),
            get(&exchange.layers),
        ])
    }

    fn end(mut self) {
        for worker in &mut self.workers {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

/// Where the time of steps went, and how many layers there were.
struct Shares([f64; 10]);

impl Shares {
    fn since(&self, before: &Shares) -> String {
        let [step, parts @ .., layers] =
            std::array::from_fn::<f64, 10, _>(|part| self.0[part] - before.0[part]);
        let names = ["attention", "gate", "ends", "dispatch", "experts", "slowest", "hops", "combine"];
        let part = |(name, time): (&str, &f64)| format!("{name} {:.1}", time / step * 100.0);
        let parts: Vec<String> = names.into_iter().zip(&parts).map(part).collect();
        format!("% of the step: {}; {:.0} us a layer", parts.join(", "), step / layers / 1e3)
    }
}

fn placement(name: &str, inventory: &ExpertInventory, workers: usize) -> Placement {
    let place = |(index, slice): (usize, gaterail_proto::ExpertSlice)| {
        let units = slice.units.end;
        let cut = |worker: u32| units * worker / workers as u32;
        let runs = match name {
            "ep" => vec![UnitRun { worker: (index % workers) as u32, units: slice.units }],
            _ => (0..workers as u32)
                .map(|worker| UnitRun {
                    worker,
                    units: UnitRange { start: cut(worker), end: cut(worker + 1) },
                })
                .filter(|run| run.units.start < run.units.end)
                .collect(),
        };
        ExpertPlace { layer: slice.layer, expert: slice.expert, copies: vec![ExpertCopy { runs }] }
    };
    Placement {
        workers: (0..workers as u64).map(WorkerId).collect(),
        experts: inventory.slices().enumerate().map(place).collect(),
    }
}

/// A worker process.
fn work(args: &[String]) {
    let (mode, precision, model) = (&args[0], &args[1], Path::new(&args[2]));
    let numbers: Vec<u64> = args[3..].iter().map(|text| text.parse().expect("a number")).collect();
    let [pid, fd, bytes, nonce, body_max, index, workers, cores] = numbers[..] else {
        panic!("eight numbers")
    };
    let mut core = rustix::thread::CpuSet::new();
    core.set((index % cores) as usize);
    rustix::thread::sched_setaffinity(None, &core).expect("a core");
    let offer = SharedOffer { pid: pid as u32, fd: fd as u32, bytes, nonce };
    let mut end = open_shared(&offer, body_max, Waiting::default()).expect("the router's memory");
    let source = ModelSource::open(model).expect("a model");
    let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("a checkpoint"));
    let device =
        Device::cpu(CpuOptions { threads: 1, pin: false, ..CpuOptions::default() }).expect("a device");
    let shards = Arc::new(Shards::new(spec.layers.len()));
    let shard = placement(mode, &inventory(&spec, None), workers as usize).shard(index as usize);
    let precision = if precision == "int4" { Precision::Int4 } else { Precision::AsStored };
    let from = LoadFrom { spec: &spec, checkpoint: &checkpoint, device: &device, precision, cache: None };
    shards.want(ROUTER, EPOCH, &shard);
    let outcome = load_slices(from, &shard.slices, &mut |_| {}, &mut |slice, piece| {
        shards.keep(slice, piece).expect("memory");
        true
    });
    let _ = outcome.expect("the shard");
    shards.prepare(ROUTER, EPOCH, shard).expect("all slices");
    let math = Arc::new(ExpertMath::of(&spec));
    let mut compute = Compute::new(math, shards, ROUTER, &device).expect("buffers");
    println!("ready");
    std::io::stdout().flush().expect("an output");
    compute.serve(&mut end, &Progress::default());
}
