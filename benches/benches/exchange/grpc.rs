//! Router and worker over gRPC on loopback, in two processes whose event loops have one thread each.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use gaterail_cluster::exchange::stream::{self, StreamEnd};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::exchange_ends::{SESSION, caller, exchanges};
use super::sides::{BODY_MAX, Side, answer, bind, start_worker};

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
    let (service, ends) = exchanges(Arc::new(AtomicU64::new(BODY_MAX)));
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
        let mut client = caller(endpoint.connect().await.expect("a connection"));
        stream::call(&mut client, SESSION, BODY_MAX).await.expect("an exchange")
    });
    answer(&mut end);
}
