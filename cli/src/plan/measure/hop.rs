//! Frames between two processes that share memory and a core, as a router and its worker of one machine do.
//!
//! The other process is this program once more, which sends every frame back until its channel ends.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use gaterail_cluster::exchange::{
    Channel, ChannelError, FrameBody, FrameKind, Header, SharedOffer, Waiting, create_shared, open_shared,
};
use gaterail_cluster::predict::Hop;
use gaterail_proto::{Epoch, LayerId, RouterId};

use crate::cores::Cores;
use crate::error::CliError;

/// How `gaterail` is asked to be the other process.
pub const COMMAND: &str = "plan-echo";
const BODY_MAX: u64 = 8 << 20;
/// Bodies of the calls: a row's, and those of a prompt.
const SMALL: usize = 8 << 10;
const LARGE: usize = 4 << 20;
const CALLS: usize = 2000;
const LARGE_CALLS: usize = 40;
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
    let answer = vec![2; SMALL];
    while let Ok(header) = end.receive(&mut body, Instant::now() + PATIENCE) {
        let length = if header.body_bytes as usize == SMALL { SMALL } else { 0 };
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

/// Half of what a call and its answer take, and what a call with a large body takes.
pub fn hop() -> Result<Hop, CliError> {
    // A thread of its own is bound to a core and gone after it.
    let measured = std::thread::spawn(measured).join();
    measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn measured() -> Result<Hop, CliError> {
    let refused = |error: &dyn std::fmt::Display| CliError::Refused(format!("measuring hops: {error}"));
    let core = Cores::allowed().share(0, 1);
    if let Some(core) = &core {
        core.bind()?;
    }
    let nonce = getrandom::u64().map_err(|error| refused(&error))?;
    let (offer, mut end) =
        create_shared(BODY_MAX, nonce, Waiting::default()).map_err(|error| refused(&error))?;
    let SharedOffer { pid, fd, bytes, nonce } = offer;
    let program = std::env::current_exe().map_err(CliError::io("finding this program"))?;
    let mut command = Command::new(program);
    command
        .arg(COMMAND)
        .args([u64::from(pid), u64::from(fd), bytes, nonce].map(|number| number.to_string()))
        .args(core.iter().flat_map(|core| ["--cores".to_string(), core.to_string()]))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let _echo = Echo(command.spawn().map_err(CliError::io("starting this program once more"))?);
    let small = seconds(&mut end, SMALL, CALLS).map_err(|error| refused(&error))?;
    let large = seconds(&mut end, LARGE, LARGE_CALLS).map_err(|error| refused(&error))?;
    Ok(Hop { seconds: small / 2.0, bytes_per_second: LARGE as f64 / (large - small).max(small) })
}

/// The median of a call with so large a body and its answer.
fn seconds(end: &mut dyn Channel, bytes: usize, calls: usize) -> Result<f64, ChannelError> {
    let (sent, mut came) = (vec![1; bytes], FrameBody::default());
    let header = Header {
        kind: FrameKind::Call,
        router: RouterId(1),
        epoch: Epoch(1),
        call: 0,
        layer: LayerId(0),
        rows: 0,
        width: 0,
        top_k: 0,
        body_bytes: bytes as u64,
        computed_ns: 0,
    };
    let mut seconds = Vec::with_capacity(calls);
    for call in 0..calls + calls / 10 {
        let begun = Instant::now();
        end.send(&header, &[&sent], begun + PATIENCE)?;
        end.receive(&mut came, begun + PATIENCE)?;
        if call >= calls / 10 {
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
