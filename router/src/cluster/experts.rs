//! Weights for workers that cannot read the checkpoint: loaded one slice at a time, as they are computed with, and sent in
//! bounded pieces.
//!
//! What travels is, for every slice in the order of the request, a u64 with the bytes of the piece, little-endian, and the
//! piece (`gaterail_kernels::wire`).

use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::wire::write_piece;
use gaterail_kernels::{CpuOptions, Device};
use gaterail_model::weights::{LoadFrom, load_slices};
use gaterail_proto::ShardSpec;
use gaterail_proto::grpc::v1::{Bytes, ExpertsRequest};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::control::Cluster;
use super::served::ServedExperts;
use super::sessions::Session;

/// The bytes of a message.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages that wait for the worker.
const MESSAGES_MAX: usize = 4;

/// What a worker asks for, in pieces.
pub(super) async fn pieces(
    cluster: &Cluster,
    session: &Session,
    request: ExpertsRequest,
) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
    let shard = ShardSpec::from_message(&request.layers, &cluster.served.inventory);
    let shard = shard.map_err(Status::invalid_argument)?;
    let own = session.experts.clone().try_acquire_owned();
    let own = own.map_err(|_| Status::resource_exhausted("this worker gets weights already"))?;
    let turn = cluster.experts_turns.clone().acquire_owned().await;
    let turn = turn.map_err(|_| Status::unavailable("the router ends"))?;
    let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
    let served = cluster.served.clone();
    let spawned = std::thread::Builder::new().name("cluster-experts".into()).spawn(move || {
        let permits = [own, turn];
        send_all(&served, &shard, &messages, permits);
    });
    spawned.map_err(|error| Status::unavailable(format!("no thread to load weights: {error}")))?;
    Ok(receiver)
}

type Messages = mpsc::Sender<Result<Bytes, Status>>;

/// Loads and sends, until all is sent or nobody takes it.
fn send_all(
    served: &ServedExperts,
    shard: &ShardSpec,
    messages: &Messages,
    _permits: [OwnedSemaphorePermit; 2],
) {
    let options = CpuOptions::default();
    // The model is being served beside.
    let options = CpuOptions { threads: options.threads.div_ceil(2), pin: false, ..options };
    let mut buffer = Vec::new();
    let sent = Device::cpu(options).map_err(|error| error.to_string()).and_then(|device| {
        let from = LoadFrom {
            spec: &served.spec,
            checkpoint: &served.checkpoint,
            device: &device,
            precision: served.precision,
            cache: None,
        };
        let mut each = |_, piece: ExpertPiece| send(&piece, &mut buffer, messages);
        let outcome = load_slices(from, &shard.slices, &mut |_| {}, &mut each);
        outcome.map(drop).map_err(|error| error.to_string())
    });
    if let Err(why) = sent {
        let _ = messages.blocking_send(Err(Status::internal(why)));
    }
}

/// `false` when the worker is gone.
fn send(piece: &ExpertPiece, buffer: &mut Vec<u8>, messages: &Messages) -> bool {
    buffer.clear();
    buffer.extend_from_slice(&[0; 8]);
    write_piece(piece, &mut |bytes| buffer.extend_from_slice(bytes));
    let bytes = buffer.len() as u64 - 8;
    buffer[..8].copy_from_slice(&bytes.to_le_bytes());
    buffer
        .chunks(MESSAGE_BYTES)
        .all(|chunk| messages.blocking_send(Ok(Bytes { data: chunk.to_vec() })).is_ok())
}
