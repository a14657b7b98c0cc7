//! The cluster behind a server: its port is opened, its processes on this machine are started.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use gaterail_cluster::exchange::Road;
use gaterail_cluster::membership::{Machine, Policy};
use gaterail_cluster::placement::{Seat, Wanted, place};
use gaterail_kernels::measure;
use gaterail_model::walk::ExpertMath;
use gaterail_proto::{RouterId, WorkerId};
use gaterail_router::cluster::{
    Cluster, ClusterOptions, ClusterStatus, Door, ExchangeStats, OwnExperts, Plans, RemoteExperts,
    RemoteLimits, ServedExperts, secured, teller,
};
use gaterail_router::notes::Notes;

use super::choice::Team;
use super::port::{Bound, door};
use super::settings::WorkerSettings;
use super::share::Share;
use super::supervisor::{Crew, Present, Supervisor};
use crate::device::DeviceArg;
use crate::error::CliError;
use crate::packed_cache::PackedCacheArg;
use crate::serve::run::Loading;
use crate::terminal;

const TOKEN_BYTES: usize = 32;
const PRESENT_EVERY: Duration = Duration::from_millis(500);
/// What is read to measure this process, and for how long it is measured.
const READ_BYTES: usize = 128 << 20;
const READING: Duration = Duration::from_millis(100);
const MULTIPLYING: Duration = Duration::from_millis(20);
/// Who watches for stalls looks this often.
const STALLS_EVERY: Duration = Duration::from_millis(50);

/// The workers of a server.
pub struct Workers {
    pub cluster: Arc<Cluster>,
    pub stats: Arc<ExchangeStats>,
    /// How others join.
    pub join_command: String,
    router: RouterId,
    plans: Arc<Plans>,
    plan_max: Duration,
    road: Option<Road>,
    /// `None` where all workers come by themselves.
    pub supervisor: Option<Supervisor>,
    /// What control has to say of workers that go is no news any more.
    stopping: Arc<AtomicBool>,
}

/// What is to be opened.
pub struct Opening<'a> {
    pub team: Team,
    pub settings: &'a WorkerSettings,
    pub served: ServedExperts,
    /// One for each process to start, and one more where this process holds experts.
    pub shares: Vec<Share>,
    pub device: DeviceArg,
    pub packed_cache: &'a PackedCacheArg,
}

impl Opening<'_> {
    /// Opens the port and starts the processes; nothing is loaded yet.
    pub fn open(self, bound: Option<Bound>, front: &mut Loading) -> Result<Workers, CliError> {
        self.check_room()?;
        let bound = bound.map_or_else(Bound::own, Ok)?;
        let (address, secret) = (bound.address, bound.tls.is_some());
        let Opening { team, settings, served, mut shares, device, packed_cache } = self;
        // Where all workers are ours, nobody else has to know it.
        let token = match &settings.token {
            Some(token) => Some(token.clone()),
            None if team.spawn > 0 && settings.listen.is_none() => Some(random_token()?),
            None => None,
        };
        let refused = |error: &dyn std::fmt::Display| CliError::Refused(error.to_string());
        let door = door(token.as_deref(), address, bound.tls.as_ref()).map_err(|error| refused(&error))?;
        let own = match (settings.local, shares.pop_if(|_| settings.local)) {
            (true, Some(share)) => Some(own_experts(share, device, packed_cache)?),
            _ => None,
        };
        let (faults_in, faults) = channel();
        let plans = Arc::new(Plans::new(faults_in));
        let stats = Arc::new(ExchangeStats::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let silent = stopping.clone();
        let router = RouterId(getrandom::u64().map_err(|error| refused(&error))?);
        let cluster = Cluster::start(
            router,
            options(&team, settings),
            served,
            own,
            (plans.clone(), faults),
            stats.clone(),
            move |line| {
                // That workers go is what is wanted then.
                if !silent.load(Ordering::Relaxed) {
                    terminal::note(&terminal::visible(&format!("gaterail: {line}")));
                }
            },
        )
        .map_err(CliError::io("starting the threads of the cluster"))?;
        let notes = Notes::to(terminal::note).map_err(CliError::io("starting a thread"))?;
        let Bound { socket, tls, .. } = bound;
        let told = notes.clone();
        let told = move |line: String| told.tell(terminal::visible(&format!("gaterail: {line}")));
        let tls = tls.map(secured);
        front.take_workers(socket, cluster.clone(), door, tls, Some(teller(told)))?;
        front.spawn(watch_stalls(stats.clone(), notes.clone()));
        let (mut join, mut token) = (reachable(address), token);
        if secret && team.spawn > 0 {
            // Our own processes have no certificates, and what they hear never leaves this machine.
            let own = Bound::own()?;
            let secret = random_token()?;
            let door = Door::new(Some(&secret), own.address).map_err(|error| refused(&error))?;
            (join, token) = (own.address, Some(secret));
            front.take_workers(own.socket, cluster.clone(), door, None, None)?;
        }
        let supervisor = (team.spawn > 0).then(|| {
            let flags = flags(settings, packed_cache);
            let (token, quiet) = (token.unwrap_or_default(), stopping.clone());
            Supervisor::start(Crew { join, token, flags, shares, notes, quiet })
        });
        let (supervisor, plan_max) = (supervisor.transpose()?, settings.plan_max);
        let road = settings.road;
        let join_command = settings.join_command(address);
        if let Some(supervisor) = &supervisor {
            front.spawn(tell_who_is_there(Arc::downgrade(&cluster), supervisor.present()));
        }
        Ok(Workers { cluster, stats, join_command, router, plans, plan_max, road, supervisor, stopping })
    }

    /// Whether the experts fit into the shares at all, where nobody else will come.
    fn check_room(&self) -> Result<(), CliError> {
        if self.settings.listen.is_some() {
            return Ok(());
        }
        let seat = |(index, share): (usize, &Share)| Seat {
            worker: WorkerId(index as u64),
            memory_bytes: share.memory,
            read_bytes_per_second: 1.0,
        };
        let seats: Vec<Seat> = self.shares.iter().enumerate().map(seat).collect();
        let wanted = Wanted {
            copies: self.settings.copies,
            ..Wanted::new(self.served.inventory(), &seats, self.team.mode)
        };
        place(&wanted).map(drop).map_err(|misfit| CliError::Refused(misfit.to_string()))
    }
}

impl Workers {
    /// Makes the seam's other side, on the engine's thread.
    pub fn experts(&self, math: ExpertMath) -> impl FnOnce() -> RemoteExperts + Send + use<> {
        let limits = RemoteLimits { plan_max: self.plan_max, ..RemoteLimits::default() };
        let (router, plans, stats) = (self.router, self.plans.clone(), self.stats.clone());
        let road = self.road;
        move || RemoteExperts::new(math, router, plans, stats, limits).on_road(road)
    }

    /// The server ends: workers leave with its engine, and that is not told. Deaths of this machine's processes still are.
    pub fn hush(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Says goodbye to all; those of this machine end.
    pub async fn stop(self) {
        let Workers { cluster, supervisor, .. } = self;
        cluster.stop().await;
        // It waits for processes, and nobody waits for this thread any more.
        drop(supervisor);
    }
}

/// How the table after loading names them; `open` is how others may join.
pub fn lines(status: &ClusterStatus, open: Option<&str>) -> Vec<(String, String)> {
    let bytes = crate::progress::bytes_text;
    let count = status.workers.len();
    let copies =
        if status.copies > 1 { format!(", {} copies of every expert", status.copies) } else { String::new() };
    let join = open.map_or(String::new(), |command| format!("; {command}"));
    let mut lines = vec![("workers".to_string(), format!("{count}, {}{copies}{join}", status.mode))];
    for at in &status.workers {
        let text = format!(
            "{}; {} of {}, {} experts",
            at.device,
            bytes(at.bytes),
            bytes(at.memory_bytes),
            at.experts
        );
        lines.push((format!("  {}", terminal::visible(&at.name)), terminal::visible(&text)));
    }
    lines
}

/// What this process may hold itself, measured as workers measure themselves.
fn own_experts(share: Share, device: DeviceArg, cache: &PackedCacheArg) -> Result<OwnExperts, CliError> {
    let Share { threads, memory, .. } = share;
    // On a thread of its own, which the device may bind to a core.
    let measured = std::thread::spawn(move || -> Result<Machine, CliError> {
        let device = device.open(Some(threads))?;
        Ok(Machine {
            device: device.to_string(),
            card: None,
            threads: threads as u32,
            memory_bytes: memory,
            read_bytes_per_second: measure::read_bandwidth(&device, READ_BYTES, READING)?,
            int8_operations_per_second: measure::int8_peak(&device, MULTIPLYING),
            pid: std::process::id(),
        })
    });
    let machine = measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(OwnExperts { machine, cache: cache.cache() })
}

fn options(team: &Team, settings: &WorkerSettings) -> ClusterOptions {
    let policy = Policy {
        mode: team.mode,
        copies: settings.copies,
        replica_bytes: settings.replica_bytes,
        rebalance_gain_min: settings.rebalance_gain_min,
        rebalance_every: settings.rebalance_every,
        expected: team.expected,
        join_wait: settings.join_wait,
        silence_max: settings.silence_max,
        ..Policy::default()
    };
    ClusterOptions { policy, shared_memory: settings.shared_memory, ..ClusterOptions::default() }
}

fn flags(settings: &WorkerSettings, packed_cache: &PackedCacheArg) -> Vec<String> {
    let mut flags = vec!["--packed-cache".to_string(), packed_cache.to_string()];
    if !settings.shared_memory {
        flags.push("--no-shared-memory".to_string());
    }
    flags
}

/// The address under which a process of this machine finds a socket.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn random_token() -> Result<String, CliError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::Refused(format!("the system has no random numbers: {error}")))?;
    let mut token = String::new();
    // Writing to a String cannot fail.
    for byte in bytes {
        let _ = write!(token, "{byte:02x}");
    }
    Ok(token)
}

/// Tells a supervisor which of its processes the server has as workers.
async fn tell_who_is_there(cluster: Weak<Cluster>, present: Arc<Mutex<Present>>) {
    loop {
        tokio::time::sleep(PRESENT_EVERY).await;
        let Some(cluster) = cluster.upgrade() else { return };
        let Some(status) = cluster.status() else { return };
        let pids = status.workers.iter().map(|at| at.pid);
        present.lock().unwrap_or_else(PoisonError::into_inner).tell(pids);
    }
}

/// Says how long answers stood still because a worker failed.
async fn watch_stalls(stats: Arc<ExchangeStats>, notes: Notes) {
    use std::sync::atomic::Ordering;
    let mut seen = 0;
    loop {
        tokio::time::sleep(STALLS_EVERY).await;
        let stalls = stats.stalls.load(Ordering::Acquire);
        if stalls != seen {
            let ms = stats.last_stall_ns.load(Ordering::Relaxed) as f64 / 1e6;
            let what = if stalls - seen == 1 {
                "a layer was".to_string()
            } else {
                format!("{} layers were", stalls - seen)
            };
            notes.tell(format!(
                "gaterail: {what} computed again without the worker that failed; answers stood still for {ms:.0} ms, and none was lost"
            ));
            seen = stalls;
        }
    }
}
