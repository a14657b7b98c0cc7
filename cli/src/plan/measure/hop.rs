//! Frames between two processes that share memory and a core, as a router and its worker of one machine do.
//!
//! The other process is this program once more, which sends every frame back until its channel ends.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use gaterail_cluster::exchange::{
    Channel, ChannelError, FrameBody, FrameKind, Header, RowForm, SharedOffer, Waiting, create_shared,
    open_shared,
};
use gaterail_cluster::predict::Hop;
use gaterail_kernels::ops::{PartialSums, SumsBytes, add_travelled};
use gaterail_kernels::{CpuOptions, Device, Pool, Stream};
use gaterail_proto::{Epoch, LayerId, RouterId};

use super::usual_seconds;
use crate::cores::Cores;
use crate::error::CliError;
use crate::{itself, terminal};

/// How `gaterail` is asked to be the other process.
pub const COMMAND: &str = "plan-echo";
const BODY_MAX: u64 = 8 << 20;
/// Bodies of the calls: a row's, and those of a prompt.
const SMALL: usize = 8 << 10;
const LARGE: usize = 4 << 20;
const CALLS: usize = 2000;
const LARGE_CALLS: usize = 40;
/// Layers, and what everybody does in one.
const LAYERS: usize = 300;
const ROUTER_WORKS: Duration = Duration::from_micros(100);
const WORKER_WORKS: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends frames back: the other side of a measurement
#[derive(Args, Debug)]
pub struct EchoArgs {
    /// Process id, descriptor, bytes and nonce of the memory
    #[arg(num_args = 4)]
    offer: Vec<u64>,

    #[arg(long)]
    cores: Option<Cores>,
}

pub fn echo(args: &EchoArgs) -> Result<(), CliError> {
    let refused = |error: &dyn std::fmt::Display| CliError::Refused(error.to_string());
    let [pid, fd, bytes, nonce] = args.offer[..] else {
        return Err(CliError::Usage("four numbers".to_string()));
    };
    if let Some(cores) = &args.cores {
        cores.bind()?;
    }
    let offer = SharedOffer { pid: pid as u32, fd: fd as u32, bytes, nonce };
    let mut end = open_shared(&offer, BODY_MAX, Waiting::default()).map_err(|error| refused(&error))?;
    let mut body = FrameBody::default();
    let answer = vec![2; LARGE];
    while let Ok(header) = end.receive(&mut body, Instant::now() + PATIENCE) {
        spin(Duration::from_nanos(header.computed_ns).min(WORKER_WORKS));
        let length = (header.rows as usize).min(LARGE);
        let reply = Header { kind: FrameKind::Reply, ..header };
        if end.send(&reply, &[&answer[..length]], Instant::now() + PATIENCE).is_err() {
            break;
        }
    }
    Ok(())
}

/// A process that ends with its measurement.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an exchange costs between this process and so many workers of this machine, for rows of `hidden`.
pub fn hop(workers: usize, threads: usize, hidden: usize, cores: Cores) -> Result<Hop, CliError> {
    // Threads of their own are bound to cores and gone after it.
    let measured = std::thread::spawn(move || measured(workers, threads, hidden, &cores)).join();
    measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn measured(workers: usize, threads: usize, hidden: usize, cores: &Cores) -> Result<Hop, CliError> {
    cores.bind()?;
    // It binds its threads to cores, this one first, as the server's does.
    let pool = Pool::new(threads, true).map_err(|error| CliError::Refused(error.to_string()))?;
    let mut others = Vec::new();
    for index in 0..workers.clamp(1, cores.count().max(1)) {
        others.push(Other::start(cores.share(index, 1))?);
    }
    let refused = |error: ChannelError| CliError::Refused(format!("measuring hops: {error}"));
    let layer = layer_seconds(&mut others, &pool).map_err(refused)?;
    let small = seconds(&mut *others[0].end, SMALL, SMALL, CALLS).map_err(refused)?;
    let out = seconds(&mut *others[0].end, LARGE, 0, LARGE_CALLS).map_err(refused)?;
    let home = seconds(&mut *others[0].end, 0, LARGE, LARGE_CALLS).map_err(refused)?;
    // A row is fetched from the router's device, and brought to the worker's.
    let copied = 2.0 * copy_seconds();
    let summed = sums_seconds(hidden)?;
    let rate = |seconds: f64| LARGE as f64 / seconds.max(1e-9);
    Ok(Hop {
        seconds: layer / 2.0,
        bytes_per_second: rate((out - small).max(0.0) + copied),
        home_bytes_per_second: rate((home - small).max(0.0) + summed),
    })
}

/// A process that sends frames back, and the way to it.
struct Other {
    end: Box<dyn Channel>,
    _process: Echo,
}

impl Other {
    fn start(core: Option<Cores>) -> Result<Other, CliError> {
        let refused = |error: &dyn std::fmt::Display| CliError::Refused(format!("measuring hops: {error}"));
        let nonce = getrandom::u64().map_err(|error| refused(&error))?;
        let (offer, end) =
            create_shared(BODY_MAX, nonce, Waiting::default()).map_err(|error| refused(&error))?;
        let SharedOffer { pid, fd, bytes, nonce } = offer;
        let mut command = Command::new(itself::program());
        command
            .arg(COMMAND)
            .args([u64::from(pid), u64::from(fd), bytes, nonce].map(|number| number.to_string()))
            .args(core.iter().flat_map(|core| ["--cores".to_string(), core.to_string()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if terminal::speaks_json() {
            // It would speak in words. What breaks it is seen at this end, too.
            command.stderr(Stdio::null());
        }
        let process = Echo(command.spawn().map_err(CliError::io("starting this program once more"))?);
        Ok(Other { end: Box::new(end), _process: process })
    }
}

/// A layer as it is served: the router's threads work, then every worker does. What it takes beyond the work.
fn layer_seconds(others: &mut [Other], pool: &Pool) -> Result<f64, ChannelError> {
    let (sent, mut came, mut all) = (vec![1; SMALL], FrameBody::default(), Vec::new());
    for call in 0..LAYERS + LAYERS / 10 {
        let begun = Instant::now();
        pool.run(pool.threads(), &|_| spin(ROUTER_WORKS));
        // The one that shares this thread's core comes last, as the router has it.
        for other in others.iter_mut().rev() {
            other.end.send(&header(SMALL, SMALL, WORKER_WORKS), &[&sent], begun + PATIENCE)?;
        }
        for other in others.iter_mut() {
            other.end.receive(&mut came, begun + PATIENCE)?;
        }
        if call >= LAYERS / 10 {
            all.push(begun.elapsed().saturating_sub(ROUTER_WORKS + WORKER_WORKS).as_secs_f64());
        }
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

fn spin(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Of so many bytes as a large frame has.
fn copy_seconds() -> f64 {
    let (from, mut to) = (vec![1u8; LARGE], vec![2u8; LARGE]);
    usual_seconds(|| std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from)))
}

/// Sums of as many bytes as a large frame has: written by a worker, and added to the router's own.
fn sums_seconds(hidden: usize) -> Result<f64, CliError> {
    let device = Device::cpu(CpuOptions { threads: 1, pin: false, ..CpuOptions::default() })?;
    let stream = Stream::new(&device);
    let rows = (LARGE / 4 / hidden.max(1)).max(1);
    let (mut from, mut to) =
        (PartialSums::new(&device, rows, hidden)?, PartialSums::new(&device, rows, hidden)?);
    from.reset(&stream, rows);
    to.reset(&stream, rows);
    let mut bytes = SumsBytes::default();
    let (tags, body) = (rows.next_multiple_of(8), rows * hidden.next_multiple_of(2) * 4);
    let mut sums = vec![1u8; tags + body];
    sums[rows..tags].fill(0);
    let refused = |error: &dyn std::fmt::Display| CliError::Refused(format!("measuring sums: {error}"));
    // Rows of zeros would not travel.
    add_travelled(&stream, &sums, rows, None, &mut from).map_err(|error| refused(&error))?;
    let mut failed = None;
    let seconds = usual_seconds(|| {
        let written = bytes.encode(&stream, &from).map_err(|error| refused(&error));
        let added = add_travelled(&stream, &sums, rows, None, &mut to).map_err(|error| refused(&error));
        failed = written.and(added).err().or(failed.take());
    });
    std::hint::black_box((&bytes, &to));
    if failed.is_none() && bytes.bytes().len() < body {
        failed = Some(refused(&"rows were left out"));
    }
    failed.map_or(Ok(seconds), Err)
}

/// The median of a call with bodies of such sizes.
fn seconds(end: &mut dyn Channel, out: usize, home: usize, calls: usize) -> Result<f64, ChannelError> {
    let (sent, mut came) = (vec![1; out], FrameBody::default());
    let mut seconds = Vec::with_capacity(calls);
    for call in 0..calls + calls / 10 {
        let begun = Instant::now();
        end.send(&header(out, home, Duration::ZERO), &[&sent], begun + PATIENCE)?;
        end.receive(&mut came, begun + PATIENCE)?;
        if call >= calls / 10 {
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// A call: `rows` are the bytes of its answer, and `computed_ns` how long it is to be worked on.
fn header(out: usize, home: usize, work: Duration) -> Header {
    Header {
        kind: FrameKind::Call,
        form: RowForm::F32,
        router: RouterId(1),
        epoch: Epoch(1),
        call: 0,
        layer: LayerId(0),
        rows: home as u32,
        width: 0,
        top_k: 0,
        body_bytes: out as u64,
        computed_ns: work.as_nanos() as u64,
    }
}
