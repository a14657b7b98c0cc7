//! Workers and routers over TLS: the same bytes, nothing of them in clear, and who is not let in, with what either side says.

use std::sync::{Arc, Mutex};

use gaterail_cluster::tls::{ClientTls, Identity, Members, ServerTls, WORKER_NAME};
use gaterail_kernels::Isa;
use gaterail_model::weights::Precision;
use gaterail_router::cluster::ClusterOptions;
use gaterail_tests::certs::{Ca, Days, NOW, Purpose};
use gaterail_tests::control::{PATIENCE, Router, RunningWorker, loopback, worker_options};
use gaterail_tests::{bits, device, fixtures_folder, load_as, logits_in_chunks, some_text};
use gaterail_worker::WorkerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, HandshakeKind};

const ENDED: Days = (-9, -1);
const TO_COME: Days = (2, 9);
/// What a worker says of itself in its first message.
const NAME: &str = "a-name-that-nobody-else-has";

fn options() -> ClusterOptions {
    let mut options = ClusterOptions::default();
    options.policy.expected = 1;
    // Whoever is only held up is not dead.
    options.policy.silence_max = PATIENCE;
    options
}

/// Hands bytes through to a router, and keeps them.
async fn overhear(router: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(loopback()).await.expect("a port");
    let (address, heard) = (listener.local_addr().expect("its number"), Arc::new(Mutex::new(Vec::new())));
    let kept = heard.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(router).await.expect("the router");
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let kept = kept.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut bytes).await {
                        kept.lock().expect("bytes").extend_from_slice(&bytes[..count]);
                        if to.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (address, heard)
}

/// Everything travels over the one connection: control, rows, and weights out of the router.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_and_none_of_them_in_clear() {
    let folder = fixtures_folder().join("olmoe_a");
    let mut whole = load_as(&folder, &device(Isa::detect()), Vec::new(), Precision::Int4);
    let alone = bits(&logits_in_chunks(&mut whole, &some_text(&folder), [5usize, 1, 20].into_iter().cycle()));
    let ca = Ca::new("the CA");
    for tls in [false, true] {
        let (router, mut runner) = match tls {
            true => Router::start_tls(&folder, Precision::Int4, options(), ca.server()).await,
            false => Router::start(&folder, Precision::Int4, options(), None, loopback()).await,
        };
        let (address, heard) = overhear(router.address).await;
        let worker = RunningWorker::start(WorkerOptions {
            tls: tls.then(|| ca.client()),
            shared_memory: false,
            read_checkpoints: false,
            ..worker_options(&[address], NAME)
        });
        let status = router.serving(1).await;
        assert_eq!(status.workers[0].exchange, "gRPC");
        let text = some_text(&folder);
        let split = tokio::task::spawn_blocking(move || {
            bits(&logits_in_chunks(&mut runner, &text, [5usize, 1, 20].into_iter().cycle()))
        });
        assert!(split.await.expect("a step") == alone, "tls: {tls}");
        let heard = heard.lock().expect("bytes").clone();
        assert!(heard.len() > 10_000, "weights and rows: {} bytes", heard.len());
        let is_there = |what: &[u8]| heard.windows(what.len()).any(|window| window == what);
        // A name of a message, a frame of rows.
        assert_eq!((is_there(NAME.as_bytes()), is_there(b"GRX2")), (!tls, !tls), "tls: {tls}");
        worker.kill().await;
        router.stop().await;
    }
}

/// What a worker says that tries to join.
async fn says(tls: Option<ClientTls>, router: &Router) -> String {
    let (line, lines) = std::sync::mpsc::channel();
    let line = Mutex::new(line);
    let mut options = worker_options(&[router.address], NAME);
    options.tls = tls;
    options.note = Arc::new(move |text| {
        let _ = line.lock().expect("lines").send(text.to_string());
    });
    let worker = RunningWorker::start(options);
    let said = tokio::task::spawn_blocking(move || lines.recv_timeout(PATIENCE)).await.expect("a thread");
    match said {
        Ok(said) => {
            worker.kill().await;
            said
        }
        Err(_) => format!("{:?}", worker.ended().await),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_let_in_is_told_what_to_do() {
    let folder = fixtures_folder().join("olmoe_a");
    let (ca, other) = (Ca::new("one"), Ca::new("another"));
    let client = |of: &Ca, identity: Option<Identity>| {
        Some(ClientTls::new(&of.authority(), identity).expect("a client's side"))
    };
    let worker = |of: &Ca, holds| Some(of.sign(Purpose::ClientAuth, &[WORKER_NAME], holds));
    let server = |purpose, names: &[&str], holds: Days| {
        let members = Members::workers(ca.authority());
        ServerTls::new(ca.sign(purpose, names, holds), Some(&members), b"h2").expect("a server's side")
    };
    let good = || server(Purpose::ServerAuth, &["127.0.0.1"], NOW);
    let from_router = "a worker at 127.0.0.1 ";
    for (server, client, says_worker, says_router) in [
        (good(), client(&other, worker(&other, NOW)), "not of the CA in", "does not accept this certificate"),
        (
            good(),
            client(&ca, worker(&other, NOW)),
            "it is of another CA",
            "its certificate is not of the CA in",
        ),
        (good(), client(&ca, None), "with a certificate only: give --certs", "it showed no certificate"),
        (
            good(),
            client(&ca, worker(&ca, ENDED)),
            "it has ended, or not begun",
            "its certificate ended on 20",
        ),
        (
            good(),
            client(&ca, worker(&ca, TO_COME)),
            "it has ended, or not begun",
            "its certificate begins on 20",
        ),
        (
            good(),
            client(&ca, Some(ca.sign(Purpose::ServerAuth, &[], NOW))),
            "it is for another purpose",
            "its certificate is no client's",
        ),
        (
            good(),
            client(&ca, Some(ca.sign(Purpose::ServerAuth, &[WORKER_NAME], NOW))),
            "it is for another purpose",
            "its certificate is no client's",
        ),
        // What says nothing of its purpose is for none.
        (
            good(),
            client(&ca, Some(ca.sign(None::<Purpose>, &[WORKER_NAME], NOW))),
            "it is for another purpose",
            "its certificate is no client's",
        ),
        // Somebody else's whom the same CA knows.
        (
            good(),
            client(&ca, Some(ca.sign(Purpose::ClientAuth, &["printer.example"], NOW))),
            "it has not the name that the router asks of workers",
            "is for printer.example and not for worker.gaterail.internal",
        ),
        (
            good(),
            client(&ca, Some(ca.sign(Purpose::ClientAuth, &[], NOW))),
            "it has not the name",
            "is for no name at all and not for worker.gaterail.internal",
        ),
        (good(), None, "over TLS only: join with --certs", "came in clear"),
        (
            server(Purpose::ServerAuth, &["router.example", "10.1.2.3"], NOW),
            client(&ca, worker(&ca, NOW)),
            "is for router.example, 10.1.2.3 and not for 127.0.0.1",
            "does not accept this certificate",
        ),
        (
            server(Purpose::ServerAuth, &["127.0.0.1"], ENDED),
            client(&ca, worker(&ca, NOW)),
            "its certificate ended on 20",
            "it has ended, or not begun",
        ),
        (
            server(Purpose::ClientAuth, &["127.0.0.1"], NOW),
            client(&ca, worker(&ca, NOW)),
            "its certificate is no server's",
            "does not accept this certificate",
        ),
    ] {
        let (router, _runner) = Router::start_tls(&folder, Precision::Int4, options(), server).await;
        let said = says(client, &router).await;
        assert!(said.contains(says_worker), "{says_worker:?} is not in: {said}");
        let told = |line: &String| line.starts_with(from_router) && line.contains(says_router);
        let until = tokio::time::Instant::now() + PATIENCE;
        while !router.notes.lock().expect("notes").iter().any(told) {
            let notes = router.notes.lock().expect("notes").clone();
            assert!(tokio::time::Instant::now() < until, "{says_router:?} is not in: {notes:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(router.cluster.status().expect("control").workers.is_empty(), "{said}");
        router.stop().await;
    }
    // TLS to a port in clear.
    let (router, _runner) = Router::start(&folder, Precision::Int4, options(), None, loopback()).await;
    let said = says(Some(ca.client()), &router).await;
    assert!(said.contains("does not speak TLS: start the router with --cluster-certs"), "{said}");
    router.stop().await;
}

/// Another library's sessions: no handshake is shortened, so that a certificate is looked at each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_goes_on_without_a_certificate() {
    let ca = Ca::new("one");
    let (cert, key) = ca.files(Purpose::ClientAuth, &[WORKER_NAME], NOW);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // Sessions are kept by default.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca.file()).expect("a CA")).expect("a CA");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&cert).expect("a certificate")],
                PrivateKeyDer::from_pem_file(&key).expect("a key"),
            )
            .expect("a client");
        let (config, server) = (Arc::new(config), ca.server());
        for _ in 0..2 {
            let (near, far) = tokio::io::duplex(1 << 16);
            let served = async {
                let mut stream = server.accept(far).await.expect("let in");
                stream.write_all(b"x").await.expect("sent");
                stream
            };
            let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
            let called = async {
                let mut stream =
                    TlsConnector::from(config.clone()).connect(name, near).await.expect("a handshake");
                stream.read_exact(&mut [0]).await.expect("received");
                stream.get_ref().1.handshake_kind()
            };
            let (_, kind) = tokio::join!(served, called);
            assert_eq!(kind, Some(HandshakeKind::Full), "{version:?}");
        }
    }
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let ca = Ca::new("one");
    let (cert, key) = ca.files(Purpose::ServerAuth, &["localhost"], NOW);
    let (_, other) = ca.files(Purpose::ServerAuth, &["localhost"], NOW);
    let error = |cert: &std::path::Path, key: &std::path::Path| match Identity::read(cert, key) {
        Ok(_) => panic!("{} with {}", cert.display(), key.display()),
        Err(error) => error.to_string(),
    };
    assert!(Identity::read(&cert, &key).is_ok());
    assert!(error(&cert, &other).contains("is not the key of the certificate in"));
    assert!(error(&cert, &cert).contains("holds no private key"));
    assert!(error(&key, &key).contains("holds no certificate"));
    assert!(error(&ca.folder().join("none.pem"), &key).contains("none.pem"));
    let empty = ca.folder().join("empty.pem");
    std::fs::write(&empty, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(!error(&empty, &key).is_empty());
}
