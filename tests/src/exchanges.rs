//! Channels over gRPC streams, in clear and over TLS: the router's port and the worker's connection, without the joining.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use gaterail_cluster::exchange::Channel;
use gaterail_cluster::exchange::stream::{self, StreamEnd};
use gaterail_cluster::tls::ClientTls;
use gaterail_router::cluster::{ClusterLimits, secured, sockets, teller};
use gaterail_router::http::{ListenLimits, Listening, Port, Protocol};
use tokio::runtime::Runtime;

use crate::certs::Ca;
use crate::ends::{SESSION, caller, exchanges};

/// The router's end and the worker's.
pub type Ends = (Box<dyn Channel>, Box<dyn Channel>);

/// A port whose exchanges are handed to a test.
pub struct GrpcExchange {
    runtime: Runtime,
    pub address: SocketAddr,
    /// What its operator was told.
    pub notes: Arc<Mutex<Vec<String>>>,
    tls: Option<(ClientTls, Ca)>,
    /// How large the bodies of the next exchange may be.
    body_max: Arc<AtomicU64>,
    ends: Mutex<Receiver<StreamEnd>>,
    _listening: Listening,
}

impl GrpcExchange {
    pub fn in_clear() -> GrpcExchange {
        GrpcExchange::start(None, sockets(&ClusterLimits::default()))
    }

    /// With certificates on both sides.
    pub fn over_tls() -> GrpcExchange {
        GrpcExchange::start(Some(Ca::new("exchange")), sockets(&ClusterLimits::default()))
    }

    /// With limits of a test's own.
    pub fn start(ca: Option<Ca>, limits: ListenLimits) -> GrpcExchange {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads");
        let body_max = Arc::new(AtomicU64::new(0));
        let (service, ends) = exchanges(body_max.clone());
        let notes: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = notes.clone();
        let port = Port {
            app: tonic::service::Routes::new(service).into_axum_router(),
            protocol: Protocol::Http2,
            metrics: Arc::default(),
            limits: Arc::new(limits),
            tls: ca.as_ref().map(|ca| secured(ca.server())),
            teller: Some(teller(move |line| told.lock().expect("notes").push(line))),
        };
        let inside = runtime.enter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("an option");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a port");
        let listening = Listening::start(listener, port).expect("a listening port");
        drop(inside);
        let (address, tls) = (listening.address, ca.map(|ca| (ca.client(), ca)));
        GrpcExchange { runtime, address, notes, tls, body_max, ends: Mutex::new(ends), _listening: listening }
    }

    /// Whether its port answers what may be a TLS handshake, and is none, with an alert of TLS.
    pub fn speaks_tls(&self) -> bool {
        let mut socket = std::net::TcpStream::connect(self.address).expect("a connection");
        socket.write_all(&[22, 3, 1, 0, 4, 255, 0, 0, 0]).expect("sent");
        let mut first = [0];
        socket.read_exact(&mut first).is_ok_and(|()| first == [21])
    }

    /// The router's end and the worker's.
    pub fn pair(&self, body_max: u64) -> Ends {
        self.try_pair(body_max).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same where the port may hang up on who is slow to call.
    pub fn try_pair(&self, body_max: u64) -> Result<Ends, String> {
        let ends = self.ends.lock().expect("ends");
        self.body_max.store(body_max, Ordering::Relaxed);
        // Of a call whose connection ended before it was answered.
        while ends.try_recv().is_ok() {}
        let worker = self.runtime.block_on(async {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            let endpoint = stream::endpoint(format!("{scheme}://{}", self.address)).expect("an address");
            let connection = match &self.tls {
                Some((tls, _)) => tls.connect(&endpoint).await.map_err(|error| error.to_string()),
                None => endpoint.connect().await.map_err(|error| error.to_string()),
            };
            let mut client = caller(connection.map_err(|why| format!("no connection: {why}"))?);
            let called = stream::call(&mut client, SESSION, body_max).await;
            called.map_err(|error| format!("no exchange: {error}"))
        })?;
        Ok((Box::new(ends.recv().expect("the router's end")), Box::new(worker)))
    }
}
