//! Weights out of the router: a stream of bytes becomes pieces, each checked to be the one that comes next.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gaterail_kernels::ops::ExpertPiece;
use gaterail_kernels::wire::read_piece;
use gaterail_kernels::{Arena, Device};
use gaterail_proto::grpc::SESSION;
use gaterail_proto::grpc::v1::ExpertsRequest;
use gaterail_proto::{ExpertSlice, LayerId, ShardSpec};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tonic::Request;

use crate::link::Client;
use crate::served::ServedModel;
use crate::source::Each;

/// Bytes before a piece: how many it has.
const LENGTH_BYTES: usize = 8;
/// Who waits for the router looks this often whether what comes is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A router that may be asked for weights.
#[derive(Clone)]
pub struct FromRouter {
    pub runtime: Handle,
    pub client: Client,
    pub session: String,
    /// Nobody wants any more what this one fetches.
    pub cancelled: Arc<AtomicBool>,
}

impl FromRouter {
    /// Asks for a shard, and hands what comes to `pieces`, until all has come or it is cancelled. The error is a sentence.
    pub async fn fetch(&self, shard: &ShardSpec, pieces: &mut Pieces<'_>) -> Result<(), String> {
        let mut request = Request::new(ExpertsRequest { layers: shard.to_message() });
        let session = self.session.parse().map_err(|_| "a session that no router gives".to_string())?;
        request.metadata_mut().insert(SESSION, session);
        let refused = |status: tonic::Status| format!("the router: {}", status.message());
        let mut client = self.client.clone();
        let Some(answer) = self.while_wanted(client.experts(request)).await else { return Ok(()) };
        let mut stream = answer.map_err(refused)?.into_inner();
        loop {
            // A router that has much to do may leave a worker waiting between two messages.
            let Some(message) = self.while_wanted(stream.message()).await else { return Ok(()) };
            let Some(bytes) = message.map_err(refused)? else { return pieces.finish() };
            if !pieces.take(&bytes.data)? {
                return Ok(());
            }
        }
    }

    /// What `wait` comes to; `None` as soon as nobody wants it any more.
    async fn while_wanted<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        while !self.cancelled.load(Ordering::Relaxed) {
            if let Ok(done) = timeout(LOOK_EVERY, &mut wait).await {
                return Some(done);
            }
        }
        None
    }
}

/// Bytes on their way to becoming pieces. Never more than one piece is held.
pub struct Pieces<'a> {
    served: &'a ServedModel,
    /// Those that are still to come.
    slices: std::slice::Iter<'a, ExpertSlice>,
    /// A larger piece has no room here, whatever the model is said to be.
    bytes_max: u64,
    /// What has come of the length and of the piece that is next.
    bytes: Vec<u8>,
    device: &'a Device,
    arena: &'a mut Arena,
    /// One piece of each layer, which the others have to go with.
    kinds: HashMap<LayerId, ExpertPiece>,
    each: Each<'a>,
}

impl<'a> Pieces<'a> {
    pub fn new(
        served: &'a ServedModel,
        (slices, bytes_max): (&'a [ExpertSlice], u64),
        device: &'a Device,
        arena: &'a mut Arena,
        each: Each<'a>,
    ) -> Pieces<'a> {
        let (bytes, kinds) = (Vec::new(), HashMap::new());
        Pieces { served, slices: slices.iter(), bytes_max, bytes, device, arena, kinds, each }
    }

    /// `false` when nobody wants more of it. The error is a sentence.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<bool, String> {
        while !bytes.is_empty() {
            let Some(slice) = self.slices.clone().next() else {
                return Err("the router sent more than was asked for".to_string());
            };
            let wanted = self.wanted(slice)?;
            let (now, rest) = bytes.split_at((wanted - self.bytes.len()).min(bytes.len()));
            self.bytes.extend_from_slice(now);
            bytes = rest;
            let whole = self.bytes.len() == self.wanted(slice)?;
            if whole && !self.piece(*slice)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All has come.
    pub fn finish(&mut self) -> Result<(), String> {
        match self.slices.len() {
            0 => Ok(()),
            missing => Err(format!("the router sent {missing} slices too few")),
        }
    }

    /// The bytes of length and piece, as far as they are known.
    fn wanted(&self, slice: &ExpertSlice) -> Result<usize, String> {
        let Some(length) = self.bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(LENGTH_BYTES) };
        let (length, max) =
            (u64::from_le_bytes(*length), self.served.shape(slice).bytes_max().min(self.bytes_max));
        if length == 0 || length > max {
            return Err(format!("a piece of {length} bytes where at most {max} were expected"));
        }
        Ok(LENGTH_BYTES + length as usize)
    }

    fn piece(&mut self, slice: ExpertSlice) -> Result<bool, String> {
        let (layer, expert) = (slice.layer.0, slice.expert.0);
        let shape = self.served.shape(&slice);
        let piece = read_piece(&self.bytes[LENGTH_BYTES..], &shape, self.device, self.arena)
            .map_err(|error| format!("expert {expert} of layer {layer}: {error}"))?;
        let kind = self.kinds.entry(slice.layer).or_insert_with(|| piece.clone());
        if !kind.goes_with(&piece) {
            return Err(format!("expert {expert} of layer {layer} does not go with the others"));
        }
        self.slices.next();
        self.bytes.clear();
        Ok((self.each)(slice, piece).is_some())
    }
}

#[cfg(test)]
mod tests;
