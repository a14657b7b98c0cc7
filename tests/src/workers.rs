//! A router's experts in workers that are threads of this process: everything of an exchange but the way rows travel, which is
//! given.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use gaterail_cluster::exchange::{
    Channel, Cut, Road, Waiting, body_bytes_max, create_shared, local_pair, open_shared,
};
use gaterail_kernels::cuda::CudaDevice;
use gaterail_kernels::{CpuOptions, Device, Isa};
use gaterail_model::ModelSource;
use gaterail_model::walk::{ExpertMath, Runner, RunnerOptions};
use gaterail_model::weights::{LoadFrom, Precision, inventory, load_slices};
use gaterail_proto::{
    Epoch, ExpertCopy, ExpertInventory, ExpertPlace, Placement, RouterId, UnitRange, UnitRun, WorkerId,
};
use gaterail_router::cluster::{ExchangeStats, Fault, OwnShard, Plan, Plans, RemoteExperts, RemoteLimits};
use gaterail_worker::{Compute, Progress, Shards};

use crate::cuts::hash;

pub const ROUTER: RouterId = RouterId(7);

/// One way for rows to travel: the router's end and the worker's.
pub type MakePair<'a> = &'a dyn Fn(u64) -> (Box<dyn Channel>, Box<dyn Channel>);

/// Threads of this process.
pub fn local(body_max: u64) -> (Box<dyn Channel>, Box<dyn Channel>) {
    let (one, other) = local_pair(body_max);
    (Box::new(one), Box::new(other))
}

/// Memory that is shared as two processes share it.
pub fn shared(body_max: u64) -> (Box<dyn Channel>, Box<dyn Channel>) {
    let (offer, router) = create_shared(body_max, hash(body_max), Waiting::default()).expect("memory");
    let worker = open_shared(&offer, body_max, Waiting::default()).expect("the same memory");
    (Box::new(router), Box::new(worker))
}

/// A model whose experts workers hold.
pub struct Cluster {
    pub plans: Arc<Plans>,
    pub stats: Arc<ExchangeStats>,
    pub faults: Mutex<Receiver<Fault>>,
    pub inventory: ExpertInventory,
    pub workers: Vec<Worker>,
    folder: PathBuf,
    precision: Precision,
    math: Arc<ExpertMath>,
    layers: usize,
    epoch: u64,
}

/// One worker, as its router sees it and from within.
pub struct Worker {
    pub id: WorkerId,
    pub shards: Arc<Shards>,
    /// Where its weights are packed.
    pub device: Device,
    /// Ends the router's end.
    pub cut: Cut,
    /// Ends the worker's end, as its death would.
    pub kill: Cut,
    pub progress: Arc<Progress>,
}

const ROWS_MAX: usize = 1024;

impl Cluster {
    /// A runner without experts, and as many workers as `isas` has entries. There is no plan yet.
    pub fn start(
        folder: &Path,
        precision: Precision,
        isas: &[Isa],
        pair: MakePair<'_>,
    ) -> (Runner<RemoteExperts>, Cluster) {
        Cluster::start_on(None, folder, precision, isas, pair)
    }

    /// The same whose rows go one road, whatever has fewer bytes.
    pub fn start_on(
        road: Option<Road>,
        folder: &Path,
        precision: Precision,
        isas: &[Isa],
        pair: MakePair<'_>,
    ) -> (Runner<RemoteExperts>, Cluster) {
        let source = ModelSource::open(folder).expect("a model");
        let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("a checkpoint"));
        let (faults_in, faults) = channel();
        let plans = Arc::new(Plans::new(faults_in));
        let stats = Arc::new(ExchangeStats::default());
        let math = ExpertMath::of(&spec);
        let limits = RemoteLimits {
            call_max: std::time::Duration::from_secs(60),
            plan_max: std::time::Duration::from_secs(60),
        };
        let experts = RemoteExperts::new(math.clone(), ROUTER, plans.clone(), stats.clone(), limits);
        let experts = experts.on_road(road);
        let options = RunnerOptions {
            rows_max: ROWS_MAX,
            positions: 8192,
            shards: Vec::new(),
            precision,
            kv: precision.kv(),
        };
        let device = crate::device(Isa::detect());
        let (inventory, layers) = (inventory(&spec, Some(&checkpoint)), spec.layers.len());
        let (runner, _) =
            Runner::with_experts(spec, &checkpoint, &device, &options, None, &mut |_| {}, experts)
                .expect("a runner");
        let mut cluster = Cluster {
            plans,
            stats,
            faults: Mutex::new(faults),
            inventory,
            workers: Vec::new(),
            folder: folder.to_path_buf(),
            precision,
            math: Arc::new(math),
            layers,
            epoch: 0,
        };
        isas.iter().for_each(|isa| cluster.join(*isa, pair));
        (runner, cluster)
    }

    /// One more worker.
    pub fn join(&mut self, isa: Isa, pair: MakePair<'_>) {
        self.join_on(None, isa, pair);
    }

    /// The same whose experts a GPU holds and computes.
    pub fn join_gpu(&mut self, gpu: Arc<CudaDevice>, pair: MakePair<'_>) {
        self.join_on(Some(gpu), Isa::detect(), pair);
    }

    fn join_on(&mut self, gpu: Option<Arc<CudaDevice>>, isa: Isa, pair: MakePair<'_>) {
        let top_k = self.math.layers.iter().flatten().map(|layer| layer.top_k).max().unwrap_or(1);
        let (router, mut own) = pair(body_bytes_max(ROWS_MAX, self.math.hidden, top_k));
        let (cut, kill) = (router.cut(), own.cut());
        let options = CpuOptions { threads: 1, pin: false, isa, grain: 512 };
        let device = Device::cpu(options).expect("a device");
        let shards = Arc::new(Shards::on(gpu.as_ref(), self.layers));
        let progress = Arc::new(Progress::default());
        let computing = gpu.map_or(device.clone(), Device::Cuda);
        let compute = Compute::new(self.math.clone(), shards.clone(), ROUTER, &computing);
        let mut compute = compute.expect("buffers");
        let counted = progress.clone();
        std::thread::spawn(move || compute.serve(&mut *own, &counted));
        let id = WorkerId(100 + self.workers.len() as u64);
        self.plans.join(id, router);
        self.workers.push(Worker { id, shards, device, cut, kill, progress });
    }

    /// Loads what a placement says, and puts it in force. Its workers are named by their order here.
    pub fn activate(&mut self, placement: Placement) -> Epoch {
        self.activate_with(placement, None)
    }

    /// The same where one of the placement's workers may be the router itself.
    pub fn activate_with(&mut self, placement: Placement, own: Option<OwnShard>) -> Epoch {
        placement.check(&self.inventory).expect("a placement");
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        for (index, id) in placement.workers.iter().enumerate() {
            let worker = self.workers.iter().find(|worker| worker.id == *id);
            let Some(worker) = worker else { continue };
            let shard = placement.shard(index);
            worker.shards.want(ROUTER, epoch, &shard);
            self.load(worker, &worker.shards.missing(&shard));
            worker.shards.prepare(ROUTER, epoch, shard).expect("all slices");
        }
        let speeds = vec![1.0; placement.workers.len()].into();
        self.plans.activate(Plan { epoch, placement: Arc::new(placement), speeds, own });
        epoch
    }

    fn load(&self, worker: &Worker, slices: &[gaterail_proto::ExpertSlice]) {
        let source = ModelSource::open(&self.folder).expect("a model");
        let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("a checkpoint"));
        let from = LoadFrom {
            spec: &spec,
            checkpoint: &checkpoint,
            device: &worker.device,
            precision: self.precision,
            cache: None,
        };
        let outcome = load_slices(from, slices, &mut |_| {}, &mut |slice, piece| {
            worker.shards.keep(slice, piece).expect("memory");
            true
        });
        let _ = outcome.expect("slices");
    }

    pub fn ids(&self) -> Vec<WorkerId> {
        self.workers.iter().map(|worker| worker.id).collect()
    }

    /// Calls that a worker answered.
    pub fn calls(&self, worker: usize) -> u64 {
        self.workers[worker].progress.calls.load(Ordering::Relaxed)
    }
}

/// Any placement at all: every expert has one copy or several, each cut into runs as the seed has it.
pub fn any_placement(inventory: &ExpertInventory, workers: &[WorkerId], seed: u64) -> Placement {
    let mut state = seed;
    let mut below = |n: usize| {
        state = hash(state);
        (state >> 8) as usize % n
    };
    let mut place = |slice: gaterail_proto::ExpertSlice| {
        let mut order: Vec<u32> = (0..workers.len() as u32).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, below(at + 1));
        }
        let copies = 1 + below(order.len().min(3));
        let groups = (0..copies).map(|copy| order.iter().skip(copy).step_by(copies).copied().collect());
        let copies =
            groups.map(|group: Vec<u32>| ExpertCopy { runs: runs(slice.units.end, &group, &mut below) });
        ExpertPlace { layer: slice.layer, expert: slice.expert, copies: copies.collect() }
    };
    let experts = inventory.slices().map(&mut place).collect();
    Placement { workers: workers.to_vec(), experts }
}

/// Units cut between the first few workers of a group, who may get several runs each.
fn runs(units: u32, group: &[u32], below: &mut impl FnMut(usize) -> usize) -> Vec<UnitRun> {
    let members = 1 + below(group.len());
    let (mut runs, mut start, mut turn) = (Vec::new(), 0, 0);
    while start < units {
        let end = (start + 1 + below(2 + units as usize / members) as u32).min(units);
        runs.push(UnitRun { worker: group[turn % members], units: UnitRange { start, end } });
        (start, turn) = (end, turn + 1);
    }
    runs
}

/// Whole experts, one after another.
pub fn expert_parallel(inventory: &ExpertInventory, workers: &[WorkerId]) -> Placement {
    let place = |(index, slice): (usize, gaterail_proto::ExpertSlice)| {
        let worker = (index % workers.len()) as u32;
        let copy = ExpertCopy { runs: vec![UnitRun { worker, units: slice.units }] };
        ExpertPlace { layer: slice.layer, expert: slice.expert, copies: vec![copy] }
    };
    Placement { workers: workers.to_vec(), experts: inventory.slices().enumerate().map(place).collect() }
}

/// Every expert on every worker.
pub fn everywhere(inventory: &ExpertInventory, workers: &[WorkerId]) -> Placement {
    let place = |slice: gaterail_proto::ExpertSlice| {
        let copy = |worker| ExpertCopy { runs: vec![UnitRun { worker, units: slice.units }] };
        let copies = (0..workers.len() as u32).map(copy).collect();
        ExpertPlace { layer: slice.layer, expert: slice.expert, copies }
    };
    Placement { workers: workers.to_vec(), experts: inventory.slices().map(place).collect() }
}
