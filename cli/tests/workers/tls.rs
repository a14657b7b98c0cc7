//! `gaterail certs`, and servers and workers with what it makes: real processes.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use crate::cluster::{WorkerProcess, wait_for_workers};
use crate::server::{OwnPort, PATIENCE, Server, gaterail, skipped};

const FILES: [(&str, u32); 6] = [
    ("ca.pem", 0o644),
    ("ca-key.pem", 0o600),
    ("router.pem", 0o644),
    ("router-key.pem", 0o600),
    ("worker.pem", 0o644),
    ("worker-key.pem", 0o600),
];

fn run(folder: &TempDir, args: &[&str]) -> Output {
    gaterail(folder, args).output().expect("it runs")
}

/// Certificates in a folder of `folder`, and its path.
fn certs(folder: &TempDir, name: &str, flags: &[&str]) -> String {
    let dir = folder.path().join(name).to_str().expect("a path").to_string();
    let output = run(folder, &[&["certs", "init", &dir], flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether another program is here; tests say so where they could not ask it.
fn is_here(program: &str) -> bool {
    let here = Command::new(program).arg("--help").output().is_ok();
    if !here {
        skipped(&format!("{program} is not installed, and was not asked"));
    }
    here
}

#[test]
fn certificates_are_made_once_and_keys_are_the_owners() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("deep/certs");
    let path = dir.to_str().unwrap();
    let init = run(&folder, &["certs", "init", path, "--host", "10.7.7.7,router.example", "--days", "40"]);
    assert!(init.status.success(), "{}", text(&init.stderr));
    let said = text(&init.stdout);
    for part in [
        "(40 days)",
        "localhost, 127.0.0.1, ::1, ",
        "10.7.7.7, router.example",
        "--cluster-certs",
        "gaterail worker --join 10.7.7.7:8100 --certs CERTS",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let read = || FILES.map(|(file, _)| std::fs::read_to_string(dir.join(file)).expect(file));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (file, expected) in FILES {
        // What the umask takes away is not missed.
        assert_eq!(mode(&dir.join(file)) & !expected, 0, "{file}");
        assert_eq!(mode(&dir.join(file)) & 0o600, 0o600, "{file}");
    }
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), FILES.len());
    let first = read();
    let again = run(&folder, &["certs", "init", path]);
    assert_eq!(again.status.code(), Some(1));
    let why = text(&again.stderr);
    assert!(why.contains("is there already, and nothing was changed. With --renew"), "{why}");
    assert!(why.contains("With --force all are made anew"), "{why}");
    assert!(read() == first);
    let shown = text(&run(&folder, &["certs", "show", path]).stdout);
    for part in ["days: the CA", "the router, as localhost, 127.0.0.1, ::1", "router.example", "workers"] {
        assert!(shown.contains(part), "{part:?} is not in: {shown}");
    }
    std::fs::set_permissions(dir.join("worker-key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let shown = text(&run(&folder, &["certs", "show", path]).stdout);
    assert!(shown.contains("worker-key.pem  can be read by others (mode 644)"), "{shown}");
    let forced = run(&folder, &["certs", "init", path, "--force"]);
    assert!(forced.status.success(), "{}", text(&forced.stderr));
    assert!(read().iter().zip(&first).all(|(new, old)| new != old), "all are new");
    assert_eq!(mode(&dir.join("worker-key.pem")), 0o600);
    let wrong = run(&folder, &["certs", "init", path, "--host", "no name"]);
    assert_eq!(wrong.status.code(), Some(2));
    let none = run(&folder, &["certs", "show", "/no/such"]);
    assert!(text(&none.stderr).contains("gaterail certs init DIR"), "{}", text(&none.stderr));
}

/// A folder whose certificates end soon gets new ones for its keys: workers with the old ones and with the new ones join.
#[test]
fn certificates_are_renewed_for_the_same_keys() {
    let folder = tempfile::tempdir().unwrap();
    let dir = certs(
        &folder,
        "certs",
        &["--days", "20", "--host", "router.example", "--host", "2001:db8:0:1::5", "--host", "2001:db8:1::"],
    );
    let path = |file: &str| Path::new(&dir).join(file);
    let read = |file: &str| std::fs::read_to_string(path(file)).expect(file);
    let before = FILES.map(|(file, _)| read(file));
    let old = folder.path().join("old");
    std::fs::create_dir(&old).unwrap();
    for file in ["ca.pem", "worker.pem", "worker-key.pem"] {
        std::fs::copy(path(file), old.join(file)).unwrap();
    }
    // What ends soon is said at a start.
    let own = OwnPort::new();
    let port = own.address.to_string();
    let router = ["--cluster-certs", &dir, "--workers", "1", "--wait-for-workers", "1"];
    let server = Server::start(&[&["--cluster-listen", &port][..], &router].concat());
    assert!(server.start.contains("ends on") && server.start.contains("--renew"), "{}", server.start);
    drop(server);
    let renewed = run(&folder, &["certs", "init", &dir, "--renew", "--host", "10.7.7.7"]);
    let (said, error) = (text(&renewed.stdout), text(&renewed.stderr));
    assert!(renewed.status.success(), "{error}");
    for part in [
        "(825 days)",
        "router.example, 2001:db8:0:1::5, 2001:db8:1::, 10.7.7.7",
        "the last one ends on",
        "start the router again",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    for ((file, mode), before) in FILES.iter().zip(&before) {
        assert_eq!(read(file) == *before, file.ends_with("key.pem"), "{file}");
        let now = std::fs::metadata(path(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(now & !mode, 0, "{file}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), FILES.len());
    let shown = text(&run(&folder, &["certs", "show", &dir]).stdout);
    // Whoever looks a moment later sees one that is no more whole.
    let is_whole =
        |shown: &str| ["825 days: workers", "824 days: workers"].iter().any(|days| shown.contains(days));
    assert!(shown.contains("router.example") && is_whole(&shown), "{shown}");
    let own = OwnPort::new();
    let port = own.address.to_string();
    let mut server = Server::start(&[&["--cluster-listen", &port][..], &router].concat());
    assert!(!server.start.contains("--renew"), "{}", server.start);
    for (name, certs) in [("old", old.to_str().unwrap()), ("new", &dir)] {
        let join = ["--join", &port, "--certs", certs, "--name", name];
        let mut worker = WorkerProcess::start(&folder, &join, &[]);
        worker.line_with(&["joined"]);
        wait_for_workers(&server, 2);
        drop(worker);
        server.line_with(&[name, "is gone"]);
    }
    // Nothing of another CA's key, and nothing where there is nothing.
    let other = certs(&folder, "other", &[]);
    std::fs::copy(Path::new(&other).join("ca-key.pem"), path("ca-key.pem")).unwrap();
    let kept = read("router.pem");
    let foreign = run(&folder, &["certs", "init", &dir, "--renew"]);
    assert!(!foreign.status.success() && text(&foreign.stderr).contains("nothing was changed"));
    assert!(read("router.pem") == kept);
    let both = run(&folder, &["certs", "init", &dir, "--renew", "--force"]);
    assert_eq!(both.status.code(), Some(2));
    let none = run(&folder, &["certs", "init", folder.path().join("none").to_str().unwrap(), "--renew"]);
    assert!(!none.status.success(), "{}", text(&none.stdout));
}

#[test]
fn another_library_believes_the_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, other) = (certs(&folder, "certs", &["--host", "10.7.7.7"]), certs(&folder, "other", &[]));
    if !is_here("openssl") {
        return;
    }
    let verified = |ca: &str, more: &[&str], cert: &str| {
        let ca = format!("{ca}/ca.pem");
        let cert = format!("{dir}/{cert}");
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-CAfile", &ca])
            .args(more)
            .arg(&cert)
            .output();
        let output = output.expect("openssl runs");
        (output.status.success(), text(&output.stderr))
    };
    let server = ["-purpose", "sslserver"];
    for more in [
        &["-verify_hostname", "localhost"][..],
        &["-verify_ip", "127.0.0.1"],
        &["-verify_ip", "::1"],
        &["-verify_ip", "10.7.7.7"],
    ] {
        let (ok, why) = verified(&dir, &[&server[..], more].concat(), "router.pem");
        assert!(ok, "{more:?}: {why}");
    }
    assert!(verified(&dir, &["-purpose", "sslclient"], "worker.pem").0);
    assert!(!verified(&dir, &["-purpose", "sslserver"], "worker.pem").0, "a worker is no router");
    assert!(!verified(&dir, &["-purpose", "sslclient"], "router.pem").0, "a router is no worker");
    assert!(!verified(&dir, &["-verify_ip", "10.7.7.8"], "router.pem").0);
    assert!(!verified(&other, &[], "router.pem").0, "of another CA");
}

#[test]
fn workers_join_over_tls_and_no_byte_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, other) = (certs(&folder, "certs", &[]), certs(&folder, "other", &[]));
    let own = OwnPort::new();
    let port = own.address.to_string();
    let secret = format!("https://{port}");
    // Without the file and without shared memory: control, weights and rows come over the network.
    let remote = ["--weights-from-router", "--no-shared-memory", "--name", "far"];
    let mut far =
        WorkerProcess::start(&folder, &[&["--join", &secret, "--certs", &dir], &remote[..]].concat(), &[]);
    // One process of the server's own, which has no certificate.
    let flags =
        ["--cluster-listen", &port, "--cluster-certs", &dir, "--workers", "1", "--wait-for-workers", "2"];
    let mut server = Server::start(&[&flags[..], &["--no-shared-memory"]].concat());
    far.line_with(&["joined"]);
    let page = wait_for_workers(&server, 2);
    let names: Vec<&str> =
        page["cluster"]["workers"].as_array().unwrap().iter().filter_map(|at| at["name"].as_str()).collect();
    assert!(names.contains(&"far") && names.contains(&"worker-0"), "{page:#}");
    let body =
        json!({"prompt": [9, 8, 7], "max_tokens": 24, "ignore_eos": true, "logprobs": 3, "temperature": 0.0});
    let ours = server.post("/v1/completions", &body).json()["choices"].clone();
    let theirs = Server::start(&[]).post("/v1/completions", &body).json()["choices"].clone();
    assert_eq!(ours, theirs);

    // Who is not let in, with what either side says.
    let strangers: [(&[&str], &str, &str); 4] = [
        (&["--certs", &other], "its certificate is not of the CA in", "does not accept this certificate"),
        (&["--tls-ca", &format!("{dir}/ca.pem")], "with a certificate only", "it showed no certificate"),
        (
            &[
                "--tls-ca",
                &format!("{dir}/ca.pem"),
                "--tls-cert",
                &format!("{other}/worker.pem"),
                "--tls-key",
                &format!("{other}/worker-key.pem"),
            ],
            "it is of another CA",
            "its certificate is not of the CA in",
        ),
        (&[], "over TLS only", "came in clear"),
    ];
    for (flags, says_worker, says_router) in strangers {
        let mut stranger = WorkerProcess::start(&folder, &[&["--join", &port], flags].concat(), &[]);
        stranger.line_with(&[says_worker]);
        server.line_with(&["a worker at 127.0.0.1", says_router]);
    }
    independent_client(&dir, &port);
}

/// Where both are asked for both are looked at; a token alone may travel over TLS, too.
#[test]
fn tokens_and_certificates_go_together() {
    const TOKEN: &str = "a-token-that-nobody-guesses";
    let folder = tempfile::tempdir().unwrap();
    let dir = certs(&folder, "certs", &[]);
    let file = |name: &str| format!("{dir}/{name}");
    let (ca, cert, key) = (file("ca.pem"), file("router.pem"), file("router-key.pem"));
    let shown = ["--cluster-tls-cert", &cert, "--cluster-tls-key", &key];
    for (asked, brought) in
        [(&["--cluster-certs", &dir][..], &["--certs", &dir][..]), (&shown, &["--tls-ca", &ca])]
    {
        let own = OwnPort::new();
        let port = own.address.to_string();
        let flags = ["--cluster-listen", &port, "--join-token", TOKEN, "--workers", "1"];
        let server = Server::start(&[&flags[..], asked].concat());
        let join = [&["--join", &port], brought].concat();
        let mut stranger = WorkerProcess::start(&folder, &join, &[]);
        stranger.line_with(&["with a token only"]);
        assert!(!stranger.wait().success());
        let mut friend = WorkerProcess::start(&folder, &join, &[("GATERAIL_TOKEN", TOKEN)]);
        friend.line_with(&["joined"]);
        wait_for_workers(&server, 2);
    }
}

/// Python's TLS, which is OpenSSL's, at the port of the cluster.
fn independent_client(dir: &str, port: &str) {
    if !is_here("python3") {
        return;
    }
    let script = r#"
import socket, ssl, sys
folder, (host, port) = sys.argv[1], sys.argv[2].split(":")
def hello(certificate):
    context = ssl.create_default_context(cafile=folder + "/ca.pem")
    context.set_alpn_protocols(["h2"])
    if certificate:
        context.load_cert_chain(folder + "/worker.pem", folder + "/worker-key.pem")
    with socket.create_connection((host, int(port)), timeout=120) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secret:
            return secret.version(), secret.selected_alpn_protocol(), secret.recv(9)
version, protocol, settings = hello(True)
assert version == "TLSv1.3" and protocol == "h2" and settings[3] == 4, (version, protocol, settings)
try:
    hello(False)
    sys.exit("without a certificate")
except ssl.SSLError as error:
    assert "CERTIFICATE_REQUIRED" in str(error).upper().replace(" ", "_"), error
"#;
    let output = Command::new("python3").args(["-c", script, dir, port]).output().expect("python runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_work_is_said_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let dir = certs(&folder, "certs", &[]);
    let fails = |args: &[&str], code: i32, part: &str| {
        let output = run(&folder, args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(part), "{part:?} is not in: {error}");
    };
    let serve = |flags: &[&'static str]| [&["serve", "demo", "--listen", "127.0.0.1:0"], flags].concat();
    fails(&serve(&["--cluster-certs", "x"]), 2, "--cluster-listen");
    fails(&serve(&["--cluster-listen", "127.0.0.1:0", "--cluster-certs", "/no/such"]), 1, "certs init DIR");
    fails(&serve(&["--cluster-listen", "127.0.0.1:0", "--cluster-tls-cert", "x"]), 2, "--cluster-tls-key");
    fails(&serve(&["--tls-cert", "x"]), 2, "--tls-key");
    fails(&serve(&["--cluster-listen", "0.0.0.0:0"]), 1, "gaterail certs init");
    let worker = |flags: &[&'static str]| [&["worker", "--join"], flags].concat();
    fails(&worker(&["https://h:1"]), 2, "--certs DIR");
    fails(&worker(&["h:1", "--tls-cert", "x"]), 2, "--tls-ca");
    fails(&["worker", "--join", "http://h:1", "--certs", &dir], 2, "leave one of them away");
    fails(&["worker", "--join", "h:1", "--certs", "/no/such"], 1, "/no/such/ca.pem");
    let key = format!("{dir}/worker-key.pem");
    let cert = format!("{dir}/router.pem");
    let ca = format!("{dir}/ca.pem");
    let mixed = ["worker", "--join", "h:1", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    fails(&mixed, 1, "is not the key of the certificate");
    let own = |who: &str, what: &str| format!("{dir}/{who}{what}.pem");
    let (cert, key) = (own("router", ""), own("router", "-key"));
    let swapped = ["worker", "--join", "h:1", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    fails(&swapped, 1, "no client's: a worker shows worker.pem");
    let (cert, key) = (own("worker", ""), own("worker", "-key"));
    let swapped = ["serve", "demo", "--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    fails(&swapped, 1, "no server's: a router shows router.pem");
    let listen = ["serve", "demo", "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0"];
    let unnamed = ["--cluster-certs", &dir, "--cluster-worker-name", "no name"];
    fails(&[&listen[..], &unnamed].concat(), 2, "--cluster-worker-name");
    ended(&folder, Path::new(&dir));
    fails(&["worker", "--join", "h:1", "--certs", &dir], 1, "ended on 2000-01-01: get a new one");
    let router = ["serve", "demo", "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0"];
    fails(&[&router[..], &["--cluster-certs", &dir]].concat(), 1, "ended on 2000-01-01: get a new one");
}

/// The folder's certificates, as they would be if they had ended long ago.
fn ended(_: &TempDir, dir: &Path) {
    for who in ["router", "worker"] {
        let key = std::fs::read_to_string(dir.join(format!("{who}-key.pem"))).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).expect("a key");
        let mut params = rcgen::CertificateParams::new(["localhost".to_string()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1999, 1, 1);
        params.not_after = rcgen::date_time_ymd(2000, 1, 1);
        let cert = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.join(format!("{who}.pem")), cert.pem()).unwrap();
    }
}

/// The port for clients, too; and who is slow there keeps nobody out.
#[test]
fn clients_are_answered_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let dir = certs(&folder, "certs", &[]);
    let (cert, key) = (format!("{dir}/router.pem"), format!("{dir}/router-key.pem"));
    let start =
        |seconds| Server::start(&["--tls-cert", &cert, "--tls-key", &key, "--header-seconds", seconds]);
    // Somebody who never says anything, somebody who stops in the middle, and somebody in clear.
    let slow = |server: &Server| {
        let silent = TcpStream::connect(server.address).unwrap();
        let mut half = TcpStream::connect(server.address).unwrap();
        std::io::Write::write_all(&mut half, &[22, 3, 1, 2, 0, 1, 0]).unwrap();
        [silent, half]
    };
    // Where they may be slow for as long as this takes, and where they may not.
    let (server, hasty) = (start("600"), start("2"));
    let _slow = slow(&server);
    let clear = server.get("/livez");
    assert_eq!(clear.status, 400, "{}", clear.head);
    assert!(clear.text().contains("https://"), "{}", clear.text());
    let status = |ca: &str| {
        let url = format!("https://{}", server.address);
        gaterail(&folder, &["status", &url]).env("SSL_CERT_FILE", ca).output().expect("it runs")
    };
    let answered = status(&format!("{dir}/ca.pem"));
    assert!(
        answered.status.success() && text(&answered.stdout).contains("ready"),
        "{}",
        text(&answered.stderr)
    );
    let other = certs(&folder, "others", &[]);
    let unknown = status(&format!("{other}/ca.pem"));
    let why = text(&unknown.stderr);
    assert!(!unknown.status.success() && why.contains("SSL_CERT_FILE"), "{why}");
    assert!(text(&status(&key).stderr).contains("there is no certificate in"), "a key is none");
    if is_here("python3") {
        let script = r#"
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1] + "/ca.pem")
print(urllib.request.urlopen("https://" + sys.argv[2] + "/v1/models", context=context, timeout=120).read().decode())
"#;
        let address = server.address.to_string();
        let output = Command::new("python3").args(["-c", script, &dir, &address]).output().expect("it runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("\"demo\""), "{}", text(&output.stdout));
    }
    let since = Instant::now();
    for mut slow in slow(&hasty) {
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        // An alert may come first.
        let ended = std::io::Read::read_to_end(&mut slow, &mut Vec::new());
        assert!(ended.is_ok() || since.elapsed() < PATIENCE, "{ended:?}");
    }
    assert!(since.elapsed() < PATIENCE / 2, "given up after {:?}", since.elapsed());
}
