//! Calls in, sums out: what a worker does for a router, on a thread of its own. It keeps nothing from call to call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{CallRows, Channel, ChannelError, FrameBody, FrameKind, Header};
use gaterail_kernels::ops::{ExpertsScratch, PartialSums, SumsBytes};
use gaterail_kernels::{Buffer, Device, KernelError, Stream, View};
use gaterail_model::walk::{ExpertMath, RoutedRows};
use gaterail_model::weights::ExpertShard;
use gaterail_proto::RouterId;

use crate::shards::Shards;

/// How long one wait for a call takes before it begins anew.
const WAIT: Duration = Duration::from_secs(1);
/// A reply that nobody takes ends the connection.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// The longest reason of a failure that travels.
const REASON_BYTES_MAX: usize = 1024;

/// Computes calls of one router.
pub struct Compute {
    math: Arc<ExpertMath>,
    shards: Arc<Shards>,
    router: RouterId,
    stream: Stream,
    /// The rows of the call at hand, on the device; kept for their room.
    x: Buffer<f32>,
    ids: Buffer<u32>,
    weights: Buffer<f32>,
    sums: PartialSums,
    scratch: ExpertsScratch,
    bytes: SumsBytes,
}

/// What others may know of the calls.
#[derive(Debug, Default)]
pub struct Progress {
    /// Calls that were answered.
    pub calls: AtomicU64,
    /// Whether one is being computed.
    pub busy: AtomicBool,
}

/// Why a call was not computed.
enum Refused {
    /// An epoch that is not held.
    Epoch,
    Call(String),
}

impl Compute {
    pub fn new(
        math: Arc<ExpertMath>,
        shards: Arc<Shards>,
        router: RouterId,
        device: &Device,
    ) -> Result<Compute, KernelError> {
        Ok(Compute {
            sums: PartialSums::new(device, 0, math.hidden)?,
            math,
            shards,
            router,
            stream: Stream::open(device)?,
            x: Buffer::zeros(device, 0)?,
            ids: Buffer::zeros(device, 0)?,
            weights: Buffer::zeros(device, 0)?,
            scratch: ExpertsScratch::new(device)?,
            bytes: SumsBytes::default(),
        })
    }

    /// Answers calls until the connection ends; says how it did.
    pub fn serve(&mut self, channel: &mut dyn Channel, progress: &Progress) -> ChannelError {
        let mut body = FrameBody::default();
        loop {
            let call = match channel.receive(&mut body, Instant::now() + WAIT) {
                Ok(header) => header,
                Err(ChannelError::Deadline) => continue,
                Err(error) => return error,
            };
            progress.busy.store(true, Ordering::Relaxed);
            let sent = self.answer(&call, body.bytes(), channel);
            progress.busy.store(false, Ordering::Relaxed);
            progress.calls.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = sent {
                return error;
            }
        }
    }

    fn answer(&mut self, call: &Header, body: &[u8], channel: &mut dyn Channel) -> Result<(), ChannelError> {
        let started = Instant::now();
        // A kernel's assertion must not end the process: other routers are served too.
        let computed = catch_unwind(AssertUnwindSafe(|| self.compute(call, body)));
        let computed = computed
            .unwrap_or_else(|_| Err(Refused::Call("the kernels panicked; the worker's log says why".into())));
        let header = Header { body_bytes: 0, computed_ns: started.elapsed().as_nanos() as u64, ..*call };
        let deadline = Instant::now() + REPLY_MAX;
        match computed {
            Ok(()) => {
                channel.send(&Header { kind: FrameKind::Reply, ..header }, &[self.bytes.bytes()], deadline)
            }
            Err(Refused::Epoch) => {
                channel.send(&Header { kind: FrameKind::Aborted, ..header }, &[], deadline)
            }
            Err(Refused::Call(why)) => {
                let why = &why.as_bytes()[..why.len().min(REASON_BYTES_MAX)];
                channel.send(&Header { kind: FrameKind::Failed, ..header }, &[why], deadline)
            }
        }
    }

    /// The sums of a call, as bytes.
    fn compute(&mut self, call: &Header, body: &[u8]) -> Result<(), Refused> {
        let shard = Some(call.router == self.router)
            .filter(|own| *own)
            .and_then(|_| self.shards.of(call.router, call.epoch))
            .ok_or(Refused::Epoch)?;
        let refused = |why: &dyn std::fmt::Display| Refused::Call(why.to_string());
        let rows = CallRows::read(call, body).map_err(|error| refused(&error))?;
        let fits = call.width as usize == self.math.hidden && call.rows > 0 && call.top_k > 0;
        if !fits || self.math.layer(call.layer).is_none() {
            let Header { rows, width, top_k, layer, .. } = call;
            let what = format!("{rows} rows of {width} with {top_k} experts for layer {}", layer.0);
            return Err(Refused::Call(format!("{what}: not a call of this model")));
        }
        self.take_in(call, rows).map_err(|error| refused(&error))?;
        self.run(&shard, call).map_err(|error| refused(&error))
    }

    /// Brings the rows to the device.
    fn take_in(&mut self, call: &Header, rows: CallRows<'_>) -> Result<(), KernelError> {
        let device = self.stream.device().clone();
        if self.x.len() < rows.x.len() {
            self.x = Buffer::zeros(&device, rows.x.len().next_power_of_two())?;
        }
        if self.ids.len() < rows.ids.len() {
            self.ids = Buffer::zeros(&device, rows.ids.len().next_power_of_two())?;
            self.weights = Buffer::zeros(&device, rows.ids.len().next_power_of_two())?;
        }
        let (count, width) = (call.rows as usize, call.width as usize);
        if !self.sums.fits(count, width) {
            self.sums = PartialSums::new(&device, count.next_power_of_two(), width)?;
        }
        self.stream.upload(rows.x, &mut self.x)?;
        self.stream.upload(rows.ids, &mut self.ids)?;
        self.stream.upload(rows.weights, &mut self.weights)
    }

    fn run(&mut self, shard: &ExpertShard, call: &Header) -> Result<(), KernelError> {
        self.sums.reset(&self.stream, call.rows as usize);
        let rows = RoutedRows {
            x: View::rows(&self.x, call.rows as usize, call.width as usize),
            ids: &self.ids,
            weights: &self.weights,
            top_k: call.top_k as usize,
        };
        self.math.add(shard, call.layer, &rows, &self.stream, &mut self.scratch, &mut self.sums)?;
        self.bytes.encode(&self.stream, &self.sums)
    }
}
