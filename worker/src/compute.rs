//! Calls in, sums out: what a worker does for a router, on a thread of its own. It keeps nothing from call to call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{
    CallRows, CallX, Channel, ChannelError, FrameBody, FrameKind, Header, RowForm,
};
use gaterail_kernels::ops::{ExpertRows, ExpertsScratch, PartialSums, QuantRows, SumsBytes};
use gaterail_kernels::{Buffer, Device, KernelError, Stream, View};
use gaterail_model::walk::{ExpertMath, RoutedRows};
use gaterail_model::weights::ExpertShard;
use gaterail_proto::RouterId;

use crate::shards::Shards;

/// How long one wait for a call takes before it begins anew.
const WAIT: Duration = Duration::from_secs(1);
/// A reply that nobody takes ends the connection.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// What the sums of one call may take.
const SUMS_BYTES_MAX: u64 = 2 << 30;
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
    int8: QuantRows,
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
            int8: QuantRows::new(device, 0, 0)?,
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
        let form = *computed.as_ref().unwrap_or(&RowForm::F32);
        let header =
            Header { form, body_bytes: 0, computed_ns: started.elapsed().as_nanos() as u64, ..*call };
        let deadline = Instant::now() + REPLY_MAX;
        match computed {
            Ok(_) => {
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

    /// The sums of a call, as bytes; and in which form the next of its layer had best come.
    fn compute(&mut self, call: &Header, body: &[u8]) -> Result<RowForm, Refused> {
        let shard = Some(call.router == self.router)
            .filter(|own| *own)
            .and_then(|_| self.shards.of(call.router, call.epoch))
            .ok_or(Refused::Epoch)?;
        let refused = |why: &dyn std::fmt::Display| Refused::Call(why.to_string());
        let rows = CallRows::read(call, body).map_err(|error| refused(&error))?;
        let is_own = call.width as usize == self.math.hidden
            && self.math.layer(call.layer).is_some_and(|layer| layer.top_k == call.top_k as usize);
        let sums = u64::from(call.rows) * (8 * u64::from(call.width) + 8);
        if !is_own || call.rows == 0 || sums > SUMS_BYTES_MAX {
            let Header { rows, width, top_k, layer, .. } = call;
            let what = format!("{rows} rows of {width} with {top_k} experts for layer {}", layer.0);
            return Err(Refused::Call(format!("{what}: not a call of this model")));
        }
        let pieces = shard.pieces(call.layer);
        let best = pieces.group().and_then(RowForm::int8).unwrap_or_default();
        if call.form != RowForm::F32 && call.form != best {
            let what =
                format!("rows as {:?} for layer {}, whose experts take {best:?}", call.form, call.layer.0);
            return Err(Refused::Call(what));
        }
        if let CallX::Int8 { codes, scales } = rows.x
            && !QuantRows::could_be(codes, scales)
        {
            return Err(Refused::Call("rows in int8 that no router makes".to_string()));
        }
        self.take_in(call, rows).map_err(|error| refused(&error))?;
        self.run(&shard, call).map_err(|error| refused(&error))?;
        Ok(best)
    }

    /// Brings the rows to the device.
    fn take_in(&mut self, call: &Header, rows: CallRows<'_>) -> Result<(), KernelError> {
        let device = self.stream.device().clone();
        if self.ids.len() < rows.ids.len() {
            self.ids = Buffer::zeros(&device, rows.ids.len().next_power_of_two())?;
            self.weights = Buffer::zeros(&device, rows.ids.len().next_power_of_two())?;
        }
        let (count, width) = (call.rows as usize, call.width as usize);
        if !self.sums.fits(count, width) {
            self.sums = PartialSums::new(&device, count.next_power_of_two(), width)?;
        }
        match (rows.x, call.form.group()) {
            (CallX::Int8 { codes, scales }, Some(group)) => {
                if !self.int8.has_room(count, width) {
                    self.int8 = QuantRows::new(&device, count.next_power_of_two(), width)?;
                }
                self.int8.upload(&self.stream, [count, width, group], codes, scales)?;
            }
            (CallX::Int8 { .. }, None) => unreachable!("rows are read in the form of their header"),
            (CallX::F32(x), _) => {
                if self.x.len() < x.len() {
                    self.x = Buffer::zeros(&device, x.len().next_power_of_two())?;
                }
                self.stream.upload(x, &mut self.x)?;
            }
        }
        self.stream.upload(rows.ids, &mut self.ids)?;
        self.stream.upload(rows.weights, &mut self.weights)
    }

    fn run(&mut self, shard: &ExpertShard, call: &Header) -> Result<(), KernelError> {
        self.sums.reset(&self.stream, call.rows as usize);
        let rows = RoutedRows {
            x: match call.form {
                RowForm::F32 => View::rows(&self.x, call.rows as usize, call.width as usize).into(),
                RowForm::Int8 { .. } => ExpertRows::Int8(&self.int8),
            },
            ids: &self.ids,
            weights: &self.weights,
            top_k: call.top_k as usize,
        };
        self.math.add(shard, call.layer, &rows, &self.stream, &mut self.scratch, &mut self.sums)?;
        self.bytes.encode(&self.stream, &self.sums)
    }
}
