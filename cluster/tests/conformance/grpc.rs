//! Channels over gRPC on loopback: a server that hands its ends over to whoever connected last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt, iter};
use gaterail_cluster::exchange::stream::{self, StreamEnd};
use gaterail_cluster::exchange::{Channel, ChannelError, FrameBody, FrameError, FrameKind};
use gaterail_proto::grpc::v1::Bytes;
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::transport::{Channel as Connection, Server};

use super::Ends;
use super::exchange_ends::{SESSION, caller, exchanges};
use super::frames::{body, header, send, soon};

/// One event loop for all tests: ends outlive the function that made them.
fn runtime() -> &'static Runtime {
    static RUNTIME: std::sync::OnceLock<Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
    })
}

fn serve(body_max: u64) -> (SocketAddr, Receiver<StreamEnd>) {
    let (service, ends) = exchanges(Arc::new(AtomicU64::new(body_max)));
    let _inside = runtime().enter();
    let listener = tonic::transport::server::TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("its number");
    let server = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(stream::WINDOW_BYTES)
        .initial_connection_window_size(stream::WINDOW_BYTES)
        .http2_keepalive_interval(Some(stream::KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(stream::KEEP_ALIVE_TIMEOUT))
        .add_service(service);
    runtime().spawn(server.serve_with_incoming(listener.with_nodelay(Some(true))));
    (address, ends)
}

async fn connect(address: SocketAddr) -> ClusterClient<Connection> {
    let endpoint = stream::endpoint(format!("http://{address}")).expect("an address");
    caller(endpoint.connect().await.expect("a connection"))
}

pub fn ends(body_max: u64) -> Ends {
    let (address, ends) = serve(body_max);
    let worker = runtime().block_on(async {
        let mut client = connect(address).await;
        stream::call(&mut client, SESSION, body_max).await.expect("an exchange")
    });
    (Box::new(ends.recv_timeout(soon() - Instant::now()).expect("the router's end")), Box::new(worker))
}

/// The router's end, and pieces sent to it that need not be frames.
fn told(body_max: u64, pieces: Vec<Vec<u8>>) -> StreamEnd {
    let (address, ends) = serve(body_max);
    runtime().spawn(async move {
        // Whoever sends too much is stopped by who receives it: a call that its own side takes back may never be heard of.
        let mut client = connect(address).await.max_encoding_message_size(usize::MAX);
        let pieces = iter(pieces.into_iter().map(|data| Bytes { data }));
        let mut request = Request::new(pieces.chain(futures_util::stream::pending()));
        request.metadata_mut().insert(stream::SESSION, SESSION.parse().unwrap());
        let mut answers = client.exchange(request).await.expect("a call").into_inner();
        while let Ok(Some(_)) = answers.message().await {}
    });
    ends.recv_timeout(soon() - Instant::now()).expect("the router's end")
}

#[test]
fn pieces_end_anywhere() {
    let frame = |call: u64, bytes: usize| {
        let header =
            gaterail_cluster::exchange::Header { body_bytes: bytes as u64, ..header(FrameKind::Call, call) };
        [header.to_bytes().to_vec(), body(call, bytes)].concat()
    };
    let frames = [frame(0, 100), frame(1, 0), frame(2, 999), frame(3, 1)].concat();
    for size in [1, 7, 63, 64, 65, 300, 5000] {
        let pieces = frames.chunks(size).flat_map(|piece| [piece.to_vec(), Vec::new()]).collect();
        let mut router = told(1000, pieces);
        for (call, bytes) in [(0, 100), (1, 0), (2, 999), (3, 1)] {
            super::frames::expect(&mut router, FrameKind::Call, call, bytes);
        }
    }
}

#[test]
fn bytes_that_are_no_frame() {
    let good = gaterail_cluster::exchange::Header { body_bytes: 10, ..header(FrameKind::Call, 1) }.to_bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut header = good;
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header.to_vec()
    };
    let cases = [
        (with(0, b"GRX1"), FrameError::Magic),
        (with(4, &[9]), FrameError::Kind(9)),
        (with(5, &[3]), FrameError::Form(3)),
        (with(48, &1001u64.to_le_bytes()), FrameError::TooLarge { bytes: 1001, max: 1000 }),
        (with(48, &u64::MAX.to_le_bytes()), FrameError::TooLarge { bytes: u64::MAX, max: 1000 }),
    ];
    for (bytes, expected) in cases {
        let mut router = told(1000, vec![bytes]);
        match router.receive(&mut FrameBody::default(), soon()) {
            Err(ChannelError::Frame(error)) => assert_eq!(error, expected),
            other => panic!("{expected}: {other:?}"),
        }
        assert!(matches!(send(&mut router, FrameKind::Reply, 1, 10), Err(ChannelError::Closed)));
    }
    // A body that does not come. Where its header is not there in time either, a frame may still come.
    let closed = [50, 500, 5_000, 50_000].into_iter().any(|wait| {
        let mut router = told(1000, vec![good.to_vec()]);
        let wait = Duration::from_millis(wait);
        let outcome = router.receive(&mut FrameBody::default(), Instant::now() + wait);
        assert!(matches!(outcome, Err(ChannelError::Deadline)), "{outcome:?}");
        match router.receive(&mut FrameBody::default(), Instant::now() + wait) {
            Err(ChannelError::Closed) => true,
            Err(ChannelError::Deadline) => false,
            other => panic!("{other:?}"),
        }
    });
    assert!(closed, "a frame without its end is waited for again");
    // A message beyond the limit of messages.
    let mut router = told(10 << 20, vec![vec![0; stream::MESSAGE_BYTES_MAX + 1]]);
    let outcome = router.receive(&mut FrameBody::default(), soon());
    assert!(matches!(outcome, Err(ChannelError::Closed)), "{outcome:?}");
}
