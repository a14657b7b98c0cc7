//! Weights for workers that cannot read the checkpoint: loaded one slice at a time, as they are computed with, and sent in
//! bounded pieces.
//!
//! What travels is, for every slice in the order of the request, a u64 with the bytes of the piece, little-endian, and the
//! piece (`gaterail_kernels::wire`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::wire::write_piece;
use gaterail_kernels::{CpuOptions, Device};
use gaterail_model::weights::{LoadFrom, load_slices};
use gaterail_proto::grpc::v1::{Bytes, ExpertsRequest};
use gaterail_proto::{ExpertSlice, ShardSpec};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Status;

use super::control::Cluster;
use super::served::ServedExperts;
use super::sessions::Session;

/// The bytes of a message.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages that wait for the worker.
const MESSAGES_MAX: usize = 4;
/// A worker that takes nothing for so long gets nothing more; whether it does is looked at this often.
const SEND_MAX: Duration = Duration::from_secs(30);
const SEND_EVERY: Duration = Duration::from_millis(1);
/// A worker that gets weights, and wants others, has them after so long at most.
const OWN_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a worker asks for, in pieces.
pub(super) async fn pieces(
    cluster: &Cluster,
    session: Arc<Session>,
    request: ExpertsRequest,
) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
    let shard = ShardSpec::from_message(&request.layers, &cluster.served.inventory);
    let shard = shard.map_err(Status::invalid_argument)?;
    // What it asked for before, and does not want any more, ends when the next piece finds nobody.
    let own = timeout(OWN_WAIT_MAX, session.experts.clone().acquire_owned()).await;
    let own = own.ok().and_then(Result::ok);
    let own = own.ok_or_else(|| Status::resource_exhausted("this worker gets weights already"))?;
    let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
    let (served, turns) = (cluster.served.clone(), cluster.experts_turns.clone());
    let to = Receiving { session, messages, turns, runtime: Handle::current() };
    let spawned = std::thread::Builder::new().name("cluster-experts".into()).spawn(move || {
        to.send_all(&served, &shard);
        drop(own);
    });
    spawned.map_err(|error| Status::unavailable(format!("no thread to load weights: {error}")))?;
    Ok(receiver)
}

/// A worker that gets weights.
struct Receiving {
    session: Arc<Session>,
    messages: mpsc::Sender<Result<Bytes, Status>>,
    /// Workers that get weights take turns, one slice at a time, so that all of them get on.
    turns: Arc<Semaphore>,
    runtime: Handle,
}

impl Receiving {
    /// Loads and sends, until all is sent or nobody takes it.
    fn send_all(&self, served: &ServedExperts, shard: &ShardSpec) {
        let options = CpuOptions::default();
        // The model is being served beside.
        let options = CpuOptions { threads: options.threads.div_ceil(2), pin: false, ..options };
        let sent = Device::cpu(options).map_err(|error| error.to_string()).and_then(|device| {
            let from = LoadFrom {
                spec: &served.spec,
                checkpoint: &served.checkpoint,
                device: &device,
                precision: served.precision,
                cache: None,
            };
            self.send_slices(from, &shard.slices)
        });
        if let Err(why) = sent {
            self.send(Err(Status::internal(why)));
        }
    }

    fn send_slices(&self, from: LoadFrom<'_>, slices: &[ExpertSlice]) -> Result<(), String> {
        let mut buffer = Vec::new();
        // The turn for the slice that is loaded next; not held while it is sent, which takes as long as the worker likes.
        let mut turn = self.turn();
        let mut each = |_, piece: ExpertPiece| {
            turn = None;
            let sent = self.send_piece(&piece, &mut buffer);
            turn = self.turn();
            sent && turn.is_some()
        };
        let outcome = load_slices(from, slices, &mut |_| {}, &mut each);
        outcome.map(drop).map_err(|error| error.to_string())
    }

    /// `None` where the router ends.
    fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.runtime.block_on(self.turns.clone().acquire_owned()).ok()
    }

    /// `false` when the worker is gone, or takes nothing.
    fn send_piece(&self, piece: &ExpertPiece, buffer: &mut Vec<u8>) -> bool {
        buffer.clear();
        buffer.extend_from_slice(&[0; 8]);
        write_piece(piece, &mut |bytes| buffer.extend_from_slice(bytes));
        let bytes = buffer.len() as u64 - 8;
        buffer[..8].copy_from_slice(&bytes.to_le_bytes());
        buffer.chunks(MESSAGE_BYTES).all(|chunk| self.send(Ok(Bytes { data: chunk.to_vec() })))
    }

    fn send(&self, message: Result<Bytes, Status>) -> bool {
        let (deadline, mut message) = (Instant::now() + SEND_MAX, message);
        while !self.session.is_over() && Instant::now() < deadline {
            message = match self.messages.try_send(message) {
                Ok(()) => return true,
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(message)) => message,
            };
            std::thread::sleep(SEND_EVERY);
        }
        false
    }
}
