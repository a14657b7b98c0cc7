//! Router and worker over gRPC on loopback, in two processes whose event loops have one thread each.

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use futures_util::stream::{BoxStream, StreamExt};
use gaterail_cluster::exchange::stream::{self, StreamEnd};
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use gaterail_proto::grpc::v1::cluster_server::{Cluster, ClusterServer};
use gaterail_proto::grpc::v1::{Bytes, ExpertsRequest, FromRouter, FromWorker};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::sides::{BODY_MAX, Side, answer, bind, start_worker};

type Answer<T> = Result<Response<BoxStream<'static, Result<T, Status>>>, Status>;

struct Service(Mutex<Sender<StreamEnd>>);

#[tonic::async_trait]
impl Cluster for Service {
    type JoinStream = BoxStream<'static, Result<FromRouter, Status>>;
    type ExchangeStream = BoxStream<'static, Result<Bytes, Status>>;
    type ExpertsStream = BoxStream<'static, Result<Bytes, Status>>;

    async fn join(&self, _: Request<Streaming<FromWorker>>) -> Answer<FromRouter> {
        Err(Status::unimplemented("only rows travel here"))
    }

    async fn exchange(&self, request: Request<Streaming<Bytes>>) -> Answer<Bytes> {
        let (end, outgoing) = stream::answer(request.into_inner(), BODY_MAX);
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).send(end).expect("the bench waits");
        Ok(Response::new(outgoing.boxed()))
    }

    async fn experts(&self, _: Request<ExpertsRequest>) -> Answer<Bytes> {
        Err(Status::unimplemented("only rows travel here"))
    }
}

/// An event loop whose thread is bound; it lives as long as the process.
fn event_loop(core: usize) -> &'static Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || bind(core))
        .enable_all()
        .build();
    Box::leak(Box::new(runtime.expect("a thread")))
}

/// The router's end, and the worker on `core`.
pub fn over_grpc(router_core: usize, core: usize) -> (StreamEnd, Side) {
    let (sender, ends) = channel();
    let service = ClusterServer::new(Service(Mutex::new(sender)))
        .max_decoding_message_size(stream::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(stream::MESSAGE_BYTES_MAX);
    let runtime = event_loop(router_core);
    let _inside = runtime.enter();
    let listener = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("its number");
    let server = Server::builder()
        .initial_stream_window_size(stream::WINDOW_BYTES)
        .initial_connection_window_size(stream::WINDOW_BYTES)
        .add_service(service);
    runtime.spawn(server.serve_with_incoming(listener.with_nodelay(Some(true))));
    let worker = start_worker(format!("grpc http://{address} {core}"));
    (ends.recv().expect("the router's end"), worker)
}

/// The worker's process.
pub fn work(uri: &str, core: usize) {
    bind(core);
    let mut end = event_loop(core).block_on(async {
        let endpoint = stream::endpoint(uri.to_string()).expect("an address");
        let mut client = ClusterClient::new(endpoint.connect().await.expect("a connection"))
            .max_decoding_message_size(stream::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(stream::MESSAGE_BYTES_MAX);
        stream::call(&mut client, "bench", BODY_MAX).await.expect("an exchange")
    });
    answer(&mut end);
}
