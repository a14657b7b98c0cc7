//! Both ends of an exchange over gRPC, without the joining. The suite of channels and the bench of hops have this file as well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use futures_util::stream::{BoxStream, StreamExt};
use gaterail_cluster::exchange::stream::{self, StreamEnd};
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use gaterail_proto::grpc::v1::cluster_server::{Cluster, ClusterServer};
use gaterail_proto::grpc::v1::{Bytes, ExpertsRequest, FromRouter, FromWorker};
use tonic::transport::Channel as Connection;
use tonic::{Request, Response, Status, Streaming};

/// What an exchange is called for here.
pub const SESSION: &str = "a session";

type Answer<T> = Result<Response<BoxStream<'static, Result<T, Status>>>, Status>;

/// A router's port that takes exchanges alone.
pub struct Exchanges {
    /// How large the bodies of the next one may be.
    body_max: Arc<AtomicU64>,
    ends: Mutex<Sender<StreamEnd>>,
}

/// The port, and the router's end of every exchange.
pub fn exchanges(body_max: Arc<AtomicU64>) -> (ClusterServer<Exchanges>, Receiver<StreamEnd>) {
    let (sender, ends) = channel();
    let service = ClusterServer::new(Exchanges { body_max, ends: Mutex::new(sender) })
        .max_decoding_message_size(stream::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(stream::MESSAGE_BYTES_MAX);
    (service, ends)
}

/// A worker that calls it.
pub fn caller(connection: Connection) -> ClusterClient<Connection> {
    ClusterClient::new(connection)
        .max_decoding_message_size(stream::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(stream::MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl Cluster for Exchanges {
    type JoinStream = BoxStream<'static, Result<FromRouter, Status>>;
    type ExchangeStream = BoxStream<'static, Result<Bytes, Status>>;
    type ExpertsStream = BoxStream<'static, Result<Bytes, Status>>;

    async fn join(&self, _: Request<Streaming<FromWorker>>) -> Answer<FromRouter> {
        Err(Status::unimplemented("only Exchange is here"))
    }

    async fn exchange(&self, request: Request<Streaming<Bytes>>) -> Answer<Bytes> {
        assert_eq!(request.metadata().get(stream::SESSION).expect("a session"), SESSION);
        let (end, outgoing) = stream::answer(request.into_inner(), self.body_max.load(Ordering::Relaxed));
        self.ends.lock().expect("nobody panics with it").send(end).expect("somebody waits for it");
        Ok(Response::new(outgoing.boxed()))
    }

    async fn experts(&self, _: Request<ExpertsRequest>) -> Answer<Bytes> {
        Err(Status::unimplemented("only Exchange is here"))
    }
}
