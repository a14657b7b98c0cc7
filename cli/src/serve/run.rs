//! Sockets and signals: from the first connection to the last.
//!
//! The runtime has one thread for events and few for texts: the cores belong to the model.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gaterail_router::Ended;
use gaterail_router::cluster::{self, Cluster, ClusterLimits, Door};
use gaterail_router::grpc;
use gaterail_router::http::{self, Listening, Opening, Port, Protocol, Teller, Tls, opening};
use gaterail_router::serving::{Entrance, Server};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::config::ServeConfig;
use super::load::Loaded;
use super::workers::Workers;
use super::workers::port::Bound;
use crate::error::CliError;
use crate::terminal;
use crate::tls::{self, Shown};

/// What a client is told that comes in clear where TLS is spoken.
const SECRET_ONLY: &str = "this port speaks TLS: call it with https://";
const EVENT_THREADS: usize = 1;
const TEXT_THREADS_MAX: usize = 4;
/// The file of keys is looked at this often.
const KEYS_EVERY: Duration = Duration::from_secs(1);
const STEPS_EVERY: Duration = Duration::from_millis(250);
const ENGINE_EVERY: Duration = Duration::from_millis(20);
/// Connections may take so long to end once nothing is left to answer.
const GOODBYE: Duration = Duration::from_secs(2);
/// Ended by a second signal, as shells have it for an interrupt.
const INTERRUPTED: i32 = 130;

/// Sockets that are bound.
pub struct Ports {
    http_socket: TcpListener,
    grpc_socket: Option<TcpListener>,
    cluster_socket: Option<Bound>,
    /// Of HTTP and of gRPC.
    tls: [Option<Tls>; 2],
    pub addresses: Addresses,
}

/// Where clients find the server.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub http: SocketAddr,
    pub grpc: Option<SocketAddr>,
}

impl Ports {
    pub fn bind(config: &ServeConfig) -> Result<Ports, CliError> {
        let http_socket = bind(config.listen, "--listen")?;
        let grpc_socket = config.grpc_listen.map(|address| bind(address, "--grpc-listen")).transpose()?;
        let own =
            |socket: &TcpListener| socket.local_addr().map_err(CliError::io("asking for a socket's address"));
        let addresses =
            Addresses { http: own(&http_socket)?, grpc: grpc_socket.as_ref().map(own).transpose()? };
        let cluster_socket = Bound::asked(&config.workers)?;
        let secret = |protocol, name: &[u8]| -> Result<Option<Tls>, CliError> {
            let server = config.tls.server("tls", name)?;
            Ok(server.map(|server| Tls::new(server, protocol, SECRET_ONLY)))
        };
        let http_tls = secret(Protocol::Http1, b"http/1.1")?;
        // A port that is not there has nothing to say of its certificate.
        let grpc_tls = grpc_socket.as_ref().and(http_tls.as_ref()).map(|_| secret(Protocol::Http2, b"h2"));
        let tls = [http_tls, grpc_tls.transpose()?.flatten()];
        Ok(Ports { http_socket, grpc_socket, cluster_socket, tls, addresses })
    }
}

pub fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, CliError> {
    let socket = TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => CliError::Refused(format!(
            "{address} is taken by another program; choose another with {flag} HOST:PORT (port 0 is any that is free)"
        )),
        std::io::ErrorKind::AddrNotAvailable => {
            CliError::Refused(format!("{address} is no address of this machine; see {flag}"))
        }
        _ => CliError::Io { what: format!("listening on {address}"), source: error },
    })?;
    socket.set_nonblocking(true).map_err(CliError::io("preparing a socket"))?;
    Ok(socket)
}

/// Ports that say that the model is being loaded.
pub struct Loading {
    runtime: Runtime,
    http: Opening,
    grpc: Option<(Opening, grpc::Health)>,
    listening: Vec<Listening>,
    /// Where workers join, until it is served.
    pub cluster_socket: Option<Bound>,
    /// Certificates that clients and workers see.
    shown: Vec<Shown>,
}

impl Loading {
    pub fn start(ports: Ports, entrance: &Entrance, config: &ServeConfig) -> Result<Loading, CliError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(EVENT_THREADS)
            .max_blocking_threads(TEXT_THREADS_MAX)
            .thread_name("gaterail-front")
            .enable_all()
            .build()
            .map_err(CliError::io("starting the event loop"))?;
        let started = runtime.block_on(async {
            let start = |socket, opening: &Opening, protocol, tls| {
                let socket = tokio::net::TcpListener::from_std(socket)?;
                let (app, metrics, limits) =
                    (opening.routes(), entrance.metrics.clone(), Arc::new(config.sockets.clone()));
                Listening::start(socket, Port { app, protocol, metrics, limits, tls, teller: None })
            };
            let [http_tls, grpc_tls] = ports.tls;
            let http = Opening::new(opening::before(entrance));
            let mut listening = vec![start(ports.http_socket, &http, Protocol::Http1, http_tls)?];
            let mut grpc = None;
            if let Some(socket) = ports.grpc_socket {
                let health = grpc::Health::not_serving().await;
                let opening = Opening::new(grpc::before(entrance, &health));
                listening.push(start(socket, &opening, Protocol::Http2, grpc_tls)?);
                grpc = Some((opening, health));
            }
            Ok((http, grpc, listening))
        });
        let (http, grpc, listening) = started.map_err(CliError::io("listening"))?;
        let shown = [&config.tls, &config.workers.tls].into_iter().filter_map(|files| files.shown("router"));
        let shown = shown.collect();
        Ok(Loading { runtime, http, grpc, listening, cluster_socket: ports.cluster_socket, shown })
    }

    /// Workers may join from now on.
    pub fn take_workers(
        &mut self,
        socket: TcpListener,
        cluster: Arc<Cluster>,
        door: Door,
        tls: Option<Tls>,
        teller: Option<Arc<Teller>>,
    ) -> Result<(), CliError> {
        let _inside = self.runtime.enter();
        let limits = Arc::new(cluster::sockets(&ClusterLimits::default()));
        let start = |socket| {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            let (app, protocol) = (cluster::routes(cluster, door), Protocol::Http2);
            Listening::start(socket, Port { app, protocol, metrics: Arc::default(), limits, tls, teller })
        };
        self.listening.push(start(socket).map_err(CliError::io("listening"))?);
        Ok(())
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// The model is there.
    pub fn serve(self, loaded: Loaded) -> Serving {
        let Loading { runtime, http, grpc, listening, shown, .. } = self;
        let server = loaded.server;
        let inside = runtime.enter();
        http.open(http::routes(server.clone()));
        if let Some((opening, health)) = grpc {
            opening.open(grpc::routes(server.clone(), health));
        }
        runtime.spawn(watch_keys(server.clone()));
        // Who reads standard error may be slow, and the event loop does not wait for it.
        let say =
            |line| drop(tokio::task::spawn_blocking(move || terminal::note(&format!("gaterail: {line}"))));
        runtime.spawn(tls::watch(shown, say));
        runtime.spawn(watch_steps(Arc::downgrade(&server)));
        drop(inside);
        let workers = loaded.workers.map(|(workers, _)| workers);
        Serving { runtime, server, engine: loaded.engine, listening, workers }
    }
}

/// A server that answers.
pub struct Serving {
    runtime: Runtime,
    server: Arc<Server>,
    engine: std::thread::JoinHandle<()>,
    listening: Vec<Listening>,
    workers: Option<Workers>,
}

impl Serving {
    /// Serves until SIGTERM or SIGINT, then drains. A second signal ends at once, and so does an engine that broke: whoever
    /// started the server starts another one.
    ///
    /// `ready` is called when signals are heard: whoever is told that the server is ready may end it.
    pub fn until_signal(self, config: &ServeConfig, ready: impl FnOnce()) -> Result<(), CliError> {
        let broke = self.server.served.engine.ended();
        let signals = self.runtime.block_on(async {
            let (mut end, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            ready();
            tokio::select! {
                _ = end.recv() => {},
                _ = interrupt.recv() => {},
                Ended::Panicked = broke => return Ok(None),
            };
            Ok(Some((end, interrupt)))
        });
        let Some((mut end, mut interrupt)) = signals.map_err(CliError::io("waiting for signals"))? else {
            let why = "the engine broke, and nothing will be answered any more; its message is above";
            return Err(CliError::Refused(why.to_string()));
        };
        let load = self.server.served.engine.load();
        terminal::note(&format!(
            "gaterail: stopping; {} requests are finished first, for at most {} s. Once more to stop at once",
            load.running + load.waiting,
            config.drain.as_secs()
        ));
        self.runtime.spawn(async move {
            tokio::select! { _ = end.recv() => {}, _ = interrupt.recv() => {} };
            std::process::exit(INTERRUPTED);
        });
        self.stop(config.drain_grace, config.drain);
        Ok(())
    }

    /// Not ready first, then no more requests, then no more workers, then no more connections.
    pub fn stop(self, grace: Duration, drain: Duration) {
        let Serving { runtime, server, engine, listening, workers } = self;
        server.retire();
        runtime.block_on(async {
            tokio::time::sleep(grace).await;
            let deadline = Instant::now() + drain;
            if let Some(workers) = &workers {
                workers.hush();
            }
            server.served.engine.drain(deadline);
            while !engine.is_finished() && Instant::now() < deadline + GOODBYE {
                tokio::time::sleep(ENGINE_EVERY).await;
            }
            if let Some(workers) = workers {
                workers.stop().await;
            }
            for port in listening {
                port.stop(GOODBYE).await;
            }
        });
        runtime.shutdown_timeout(GOODBYE);
    }
}

/// Keeps what steps spent their time on, a second at a time.
async fn watch_steps(server: Weak<Server>) {
    loop {
        tokio::time::sleep(STEPS_EVERY).await;
        let Some(server) = server.upgrade() else { return };
        server.rig.steps.sample(Instant::now());
    }
}

/// A key that was added opens, and one that was revoked does not, without a restart.
async fn watch_keys(server: Arc<Server>) {
    let mut last = None;
    loop {
        tokio::time::sleep(KEYS_EVERY).await;
        let (server, before) = (server.clone(), last.take());
        // A file may be slow, and so may be who reads standard error: the event loop waits for neither.
        let reload = move || {
            let outcome = server.entrance.gate.reload().map_err(|error| error.to_string()).err();
            // Once for each new trouble, not every second.
            if let Some(error) = outcome.as_ref().filter(|_| outcome != before) {
                terminal::note(&format!("gaterail: the keys stay as they were: {error}"));
            }
            outcome
        };
        last = tokio::task::spawn_blocking(reload).await.unwrap_or_default();
    }
}
