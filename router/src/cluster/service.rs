//! `gaterail.v1.Cluster`: the port that workers call.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{self, State};
use axum::middleware::{self, Next};
use axum::{Router, response};
use futures_util::stream::{self, BoxStream, StreamExt};
use gaterail_cluster::exchange::stream as exchange;
use gaterail_cluster::tls::ServerTls;
use gaterail_proto::grpc::v1::cluster_server::{Cluster as Service, ClusterServer};
use gaterail_proto::grpc::v1::{Bytes, ExpertsRequest, FromRouter, FromWorker};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::control::Cluster;
use super::options::{ClusterLimits, Door};
use super::{experts, join};
use crate::http::{ListenLimits, Protocol, Teller, Tls};

/// What the system keeps for a worker: a frame of a step's rows.
const SEND_BUFFER_BYTES: usize = 4 << 20;
const CONNECTIONS_SPARE: usize = 16;
/// A worker calls at once, and has a call open as long as it is there; a stranger has none.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Join, Exchange, Experts.
const STREAMS_MAX: u32 = 8;

/// The routes of the port, behind its door.
pub fn routes(cluster: Arc<Cluster>, door: Door) -> Router {
    let bytes_max = cluster.options.limits.message_bytes_max;
    let service = ClusterServer::new(Front { cluster })
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(bytes_max);
    Routes::new(service).into_axum_router().layer(middleware::from_fn_with_state(door, checked))
}

/// Nobody's message is waited for before the door was asked.
async fn checked(State(door): State<Door>, call: extract::Request, next: Next) -> response::Response {
    match door.check(&MetadataMap::from_headers(call.headers().clone())) {
        Ok(()) => next.run(call).await,
        Err(refused) => refused.into_http(),
    }
}

/// What a worker is told that comes in clear.
const SECRET_ONLY: &str = "this router takes workers over TLS only: join with --certs DIR, or --tls-ca FILE";

/// TLS in front of the port.
pub fn secured(server: ServerTls) -> Tls {
    Tls::new(server, Protocol::Http2, SECRET_ONLY)
}

/// What workers do wrong is told to `note`: their operator may look here.
pub fn teller(note: impl Fn(String) + Send + Sync + 'static) -> Arc<Teller> {
    Arc::new(Teller::new(move |line| note(format!("a worker at {line}"))))
}

/// What workers may do with a socket: rows and weights are larger than questions and answers.
pub fn sockets(limits: &ClusterLimits) -> ListenLimits {
    ListenLimits {
        // One that ends beside one that begins; and some who can be told that there is no room.
        connections_max: 2 * limits.workers_max + CONNECTIONS_SPARE,
        header_time_max: HEADER_TIME_MAX,
        send_buffer_bytes: SEND_BUFFER_BYTES,
        window_bytes: exchange::WINDOW_BYTES,
        streams_max: STREAMS_MAX,
        ping_every: exchange::KEEP_ALIVE_EVERY,
        ..ListenLimits::default()
    }
}

struct Front {
    cluster: Arc<Cluster>,
}

type Messages<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Service for Front {
    type JoinStream = Messages<FromRouter>;
    type ExchangeStream = Messages<Bytes>;
    type ExpertsStream = Messages<Bytes>;

    async fn join(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let messages = join::join(self.cluster.clone(), request.into_inner()).await?;
        Ok(Response::new(from_queue(messages)))
    }

    async fn exchange(
        &self,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let session = self.cluster.sessions.of(request.metadata())?;
        let waiting = session.take_exchange()?;
        let (end, outgoing) = exchange::answer(request.into_inner(), self.cluster.served.body_bytes_max);
        let too_late = |_| Status::aborted("this worker was given up");
        waiting.send(Box::new(end)).map_err(too_late)?;
        Ok(Response::new(outgoing.boxed()))
    }

    async fn experts(
        &self,
        request: Request<ExpertsRequest>,
    ) -> Result<Response<Self::ExpertsStream>, Status> {
        let session = self.cluster.sessions.of(request.metadata())?;
        let pieces = experts::pieces(&self.cluster, session, request.into_inner()).await?;
        Ok(Response::new(from_queue(pieces)))
    }
}

fn from_queue<T: Send + 'static>(queue: mpsc::Receiver<Result<T, Status>>) -> Messages<T> {
    stream::unfold(queue, |mut queue| async { Some((queue.recv().await?, queue)) }).boxed()
}
