//! Frames over a bidirectional gRPC stream, for a worker that shares no memory with its router.
//!
//! A frame travels as pieces of at most `PIECE_BYTES_MAX`, its header first; where pieces end says nothing. Between the stream,
//! which is awaited, and the channel's end, which blocks, lie two bounded queues of bytes.
//!
//! | file | |
//! |---|---|
//! | [`queue`] | pieces between a thread that blocks and a task that awaits |
//! | [`end`] | frames out of pieces and into them: the `Channel` |
//! | [`wire`] | how connections for this are set up |

mod end;
mod queue;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt, unfold};
use gaterail_proto::grpc::v1::Bytes;
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use tonic::codegen::{Body, StdError};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};

pub use end::StreamEnd;
use queue::Queue;
pub use wire::{
    CONNECT_MAX, KEEP_ALIVE_EVERY, KEEP_ALIVE_TIMEOUT, MESSAGE_BYTES_MAX, PIECE_BYTES_MAX, SESSION,
    WINDOW_BYTES, endpoint,
};

/// How long a dropped end waits for the other to hang up, so that what it sent last still arrives.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// The server's side of `Exchange`: its end, and what to answer with. Runs inside the event loop.
pub fn answer(
    incoming: impl Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static,
    body_max: u64,
) -> (StreamEnd, impl Stream<Item = Result<Bytes, Status>> + Send + 'static) {
    let link = Link::new(body_max);
    tokio::spawn(take_in(incoming, link.clone()));
    let outgoing = give_out(link.clone()).map(Ok);
    (StreamEnd::new(link, body_max), outgoing)
}

/// The client's side: calls `Exchange` with the session that the router gave. Runs inside the event loop.
pub async fn call<T>(client: &mut ClusterClient<T>, session: &str, body_max: u64) -> Result<StreamEnd, Status>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let link = Link::new(body_max);
    let mut request = Request::new(give_out(link.clone()));
    let session: MetadataValue<Ascii> =
        session.parse().map_err(|_| Status::invalid_argument("a session that is no text"))?;
    request.metadata_mut().insert(SESSION, session);
    let incoming = client.exchange(request).await?.into_inner();
    tokio::spawn(take_in(incoming, link.clone()));
    Ok(StreamEnd::new(link, body_max))
}

/// What an end and its stream have in common.
pub(crate) struct Link {
    incoming: Queue,
    outgoing: Queue,
}

impl Link {
    fn new(body_max: u64) -> Arc<Link> {
        Arc::new(Link { incoming: Queue::new(body_max), outgoing: Queue::new(body_max) })
    }
}

/// From the stream to the thread that receives. When the stream ends nothing can be sent, either.
async fn take_in(mut incoming: impl Stream<Item = Result<Bytes, Status>> + Send + Unpin, link: Arc<Link>) {
    while let Some(Ok(piece)) = incoming.next().await {
        if !link.incoming.push_async(piece.data).await {
            // Nobody receives any more. What is still on its way out has time to leave.
            let rest = async { while let Some(Ok(_)) = incoming.next().await {} };
            let _ = tokio::time::timeout(FAREWELL_MAX, rest).await;
            break;
        }
    }
    link.incoming.finish();
    link.outgoing.abandon();
}

/// From the thread that sends to the stream.
fn give_out(link: Arc<Link>) -> impl Stream<Item = Bytes> + Send + 'static {
    /// The connection is lost, or the call is over.
    struct Leaving(Arc<Link>);
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.0.outgoing.abandon();
        }
    }
    unfold(Leaving(link), |leaving| async move {
        let data = leaving.0.outgoing.pop_async().await?;
        Some((Bytes { data }, leaving))
    })
}
