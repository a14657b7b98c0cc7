//! Connections: how many at once, how slow they may be, and how they end.
//!
//! A client that closes its sending half is taken for one that went away, as hyper does it: the two look alike.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::encryption::{Opened, Teller, Tls};
use super::idle::Open;
use super::socket::{Gone, Patient};
use crate::metrics::Metrics;
use crate::openai::{ApiError, ErrorKind};

/// Who comes in clear where TLS is spoken is told so in this time.
const CLEAR_TIME_MAX: Duration = Duration::from_secs(5);

/// Limits on what a socket may do.
#[derive(Clone, Debug)]
pub struct ListenLimits {
    pub connections_max: usize,
    /// All headers of a request have to arrive in this time; a connection may also be idle so long, pings or none.
    pub header_time_max: Duration,
    pub headers_max: usize,
    /// What hyper reads ahead: no header block can be larger.
    pub read_buffer_bytes: usize,
    /// A client has to take `write_bytes_min` in this time, or all that there is.
    pub write_stall_max: Duration,
    pub write_bytes_min: usize,
    /// What the system keeps for a client that does not read.
    pub send_buffer_bytes: usize,
    /// HTTP/2: what a client may send ahead, of a request and of all of a connection.
    pub window_bytes: u32,
    /// HTTP/2: requests at once on a connection.
    pub streams_max: u32,
    /// HTTP/2: a connection is asked for a sign of life this often, and has as long to give it.
    pub ping_every: Duration,
}

impl Default for ListenLimits {
    fn default() -> ListenLimits {
        ListenLimits {
            connections_max: 4096,
            header_time_max: Duration::from_secs(30),
            headers_max: 100,
            read_buffer_bytes: 64 << 10,
            write_stall_max: Duration::from_secs(30),
            write_bytes_min: 16 << 10,
            send_buffer_bytes: 128 << 10,
            window_bytes: 256 << 10,
            streams_max: 256,
            ping_every: Duration::from_secs(10),
        }
    }
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// HTTP/2 by prior knowledge, as gRPC uses it.
    Http2,
}

/// Who is at the other end of the connection that a request came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// What is served on a port.
#[derive(Clone)]
pub struct Port {
    pub app: Router,
    pub protocol: Protocol,
    pub metrics: Arc<Metrics>,
    pub limits: Arc<ListenLimits>,
    /// In clear where there is none.
    pub tls: Option<Tls>,
    /// Who is told of clients that do not get in; nobody where the world is full of them.
    pub teller: Option<Arc<Teller>>,
}

impl Port {
    fn tell(&self, line: String) {
        if let Some(teller) = &self.teller {
            teller.tell(line);
        }
    }
}

/// A port that is served.
pub struct Listening {
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Listening {
    /// Serves `port` on `listener` until `stop`.
    pub fn start(listener: TcpListener, port: Port) -> io::Result<Listening> {
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, port, stopped));
        Ok(Listening { address, stop, accepting })
    }

    /// Takes no more connections; those that are open finish what they are at, but not beyond `patience`.
    pub async fn stop(self, patience: Duration) {
        let _ = self.stop.send(true);
        let mut accepting = self.accepting;
        if tokio::time::timeout(patience, &mut accepting).await.is_err() {
            accepting.abort();
        }
    }
}

async fn accept(listener: TcpListener, port: Port, mut stopped: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(port.limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => match room.clone().try_acquire_owned() {
                Ok(permit) => {
                    let peer = Peer(peer.ip());
                    connections.spawn(connection(stream, peer, port.clone(), stopped.clone(), permit));
                }
                Err(_) => {
                    port.metrics.connections_refused.fetch_add(1, Relaxed);
                    let (peer, most) = (peer.ip().to_canonical(), port.limits.connections_max);
                    port.tell(format!(
                        "{peer} is turned away: {most} connections are open, and no more are taken"
                    ));
                    connections.spawn(turn_away(stream, port.clone()));
                }
            },
            // Out of descriptors, mostly: others have to end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    port: Port,
    stopped: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    // Tokens are small; none waits for the next.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, port.limits.send_buffer_bytes);
    port.metrics.connections.fetch_add(1, Relaxed);
    let limits = port.limits.clone();
    let patient = |stream| Patient::new(stream, limits.write_stall_max, limits.write_bytes_min);
    match &port.tls {
        None => {
            let (stream, gone) = patient(stream);
            serve(stream, gone, peer, &port.app, &port, stopped).await;
        }
        // A handshake takes its time here, where nobody else waits for it.
        Some(tls) => {
            let opened = tokio::select! {
                opened = tls.open(stream, peer, limits.header_time_max, |line| port.tell(line), patient) => opened,
                () = is_stopped(stopped.clone()) => None,
            };
            match opened {
                Some((Opened::Secret(stream), gone)) => {
                    serve(stream, gone, peer, &port.app, &port, stopped).await;
                }
                Some((Opened::Clear(stream), gone)) => {
                    let told = serve(stream, gone, peer, &tls.in_clear, &port, stopped);
                    let _ = tokio::time::timeout(CLEAR_TIME_MAX.min(limits.header_time_max), told).await;
                }
                None => {}
            }
        }
    }
    port.metrics.connections.fetch_sub(1, Relaxed);
    drop(permit);
}

/// Answers what comes on a connection, until either side ends it.
async fn serve<S>(
    stream: S,
    gone: Gone,
    peer: Peer,
    app: &Router,
    port: &Port,
    stopped: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &port.limits;
    let io = TokioIo::new(stream);
    let routes = TowerToHyperService::new(app.clone());
    let open = Open::none();
    let entered = open.clone();
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        let ticket = entered.enter();
        let answer = routes.call(request);
        async move { answer.await.map(|answer| ticket.around(answer)) }
    });
    // How a connection ends, well or badly, is its client's business.
    match port.protocol {
        Protocol::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits.header_time_max)
                .max_headers(limits.headers_max)
                .max_buf_size(limits.read_buffer_bytes);
            let connection = builder.serve_connection(io, service);
            tokio::pin!(connection);
            let gone = gone.noticed();
            tokio::pin!(gone);
            let ended = tokio::select! {
                _ = connection.as_mut() => true,
                () = gone.as_mut() => true,
                () = is_stopped(stopped) => false,
            };
            if !ended {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    _ = connection => {}
                    () = gone => {}
                }
            }
        }
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(32 << 10)
                .max_concurrent_streams(limits.streams_max)
                .initial_connection_window_size(limits.window_bytes)
                .initial_stream_window_size(limits.window_bytes)
                .keep_alive_interval(limits.ping_every)
                .keep_alive_timeout(limits.ping_every);
            let connection = builder.serve_connection(io, service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                _ = connection.as_mut() => true,
                () = is_stopped(stopped) => false,
                () = open.idle_for(limits.header_time_max) => false,
            };
            if !ended {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    _ = connection => {}
                    () = open.idle_for(limits.header_time_max) => {}
                }
            }
        }
    }
}

async fn is_stopped(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone has stopped, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// One connection too many is told so.
async fn turn_away(mut stream: TcpStream, port: Port) {
    // Who expects frames, or a handshake, would not understand it.
    if port.protocol == Protocol::Http2 || port.tls.is_some() {
        return;
    }
    let error = ApiError::new(ErrorKind::Overloaded, "too many connections are open");
    let body = error.object().to_string();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let write = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), write).await;
}
