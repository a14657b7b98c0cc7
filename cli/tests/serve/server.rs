//! A server of our own for one test: the real program on a port that was free, ended when the test ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub grpc: Option<SocketAddr>,
    pub folder: tempfile::TempDir,
    /// Lines of standard error.
    lines: Receiver<String>,
    pub log: Vec<String>,
    /// All that was said until it was ready.
    #[allow(dead_code)] // Not every test that has this file asks.
    pub start: String,
}

/// An answer as it came.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Server {
    /// The demo model with these flags beside it.
    pub fn start(flags: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().expect("a folder"), flags)
    }

    pub fn start_in(folder: tempfile::TempDir, flags: &[&str]) -> Server {
        let mut command = gaterail(&folder, &["serve", "demo", "--listen", "127.0.0.1:0", "--threads", "1"]);
        command.args(flags);
        Server::run(folder, command)
    }

    /// The server that a command starts.
    pub fn run(folder: tempfile::TempDir, mut command: Command) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let (address, log, start) = (([127, 0, 0, 1], 0).into(), Vec::new(), String::new());
        let mut server = Server { child, address, grpc: None, folder, lines, log, start };
        server.read_banner();
        server
    }

    /// One whose first line somebody reads, as `head -1` does, and then goes away: both its outputs are closed.
    #[allow(dead_code)] // Not every test that has this file asks.
    pub fn start_unread(flags: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let port = OwnPort::new();
        let address = port.address;
        let mut child =
            gaterail(&folder, &["serve", "demo", "--listen", &address.to_string(), "--threads", "1"])
                .args(flags)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary runs");
        drop(child.stdout.take());
        let mut first = String::new();
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        stderr.read_line(&mut first).expect("a line");
        drop(stderr);
        let (lines, log) = (channel().1, Vec::new());
        let server = Server { child, address, grpc: None, folder, lines, log, start: first };
        server.wait_until_ready();
        drop(port);
        let until = Instant::now() + PATIENCE;
        while server.get("/readyz").status != 200 {
            assert!(Instant::now() < until, "not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn read_banner(&mut self) {
        let mut seen = String::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            seen += &line;
            seen.push('\n');
            if spoken(&line).lines().any(|line| self.read_banner_line(line)) {
                self.start = seen;
                return self.wait_until_ready();
            }
        }
        panic!("the server did not start:\n{seen}");
    }

    /// Whether it is the last one.
    fn read_banner_line(&mut self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("HTTP"), Some(url)) => {
                let address = url.split_once("://").expect("a URL").1.trim_end_matches("/v1");
                self.address = address.parse().expect("an address");
            }
            (Some("gRPC"), Some(address)) => {
                self.grpc = Some(address.trim_start_matches("https://").parse().expect("an address"));
            }
            (Some("curl"), _) => return true,
            _ => {}
        }
        false
    }

    /// The port answers as soon as it is bound; the layers behind it a moment later.
    fn wait_until_ready(&self) {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < until, "nobody listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        stream
    }

    /// Sends bytes as they are and reads one answer.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server may refuse before it has read all.
        let _ = stream.write_all(bytes);
        read_answer(&mut stream)
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.raw(&request_bytes(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// A line of the log that says all of `words`; waits for it.
    pub fn line_with(&mut self, words: &[&str]) -> String {
        let fits = |line: &str| words.iter().all(|word| line.contains(word));
        if let Some(line) = self.log.iter().find(|line| fits(line)) {
            return line.clone();
        }
        let until = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.log.push(line.clone());
            if fits(&line) {
                return line;
            }
        }
        panic!("no line with {words:?} in:\n{}", self.log.join("\n"));
    }

    /// All that was said, once it has ended.
    #[allow(dead_code)] // Not every test that has this file asks.
    pub fn rest_of_log(&mut self) -> String {
        self.log.extend(self.lines.iter());
        self.log.join("\n")
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// The exit status, once it has ended.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < until, "it did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until so many requests run, where a key is needed to see it.
    #[allow(dead_code)] // Not every test that has this file asks.
    pub fn wait_for_requests(&self, key: &str, running: f64) {
        let key = format!("Bearer {key}");
        let until = Instant::now() + PATIENCE;
        loop {
            let page = self.request("GET", "/metrics", &[("authorization", &key)], b"").text();
            let now = metric(&page, "gaterail_sequences_running").expect("a gauge");
            if now == running {
                return;
            }
            assert!(Instant::now() < until, "{now} run");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until `holds` says yes to `/metrics`' value of `name`.
    pub fn wait_for_metric(&self, name: &str, holds: impl Fn(f64) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let value = metric(&self.get("/metrics").text(), name);
            if value.is_some_and(&holds) {
                return;
            }
            assert!(Instant::now() < until, "{name} stays {value:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A port that is this test's while this lives, whether or not somebody listens there: it is bound, so that no other socket is
/// given its number, and a program that is told the number may still listen on it.
pub struct OwnPort {
    pub address: SocketAddr,
    _socket: tokio::net::TcpSocket,
}

impl OwnPort {
    pub fn new() -> OwnPort {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        OwnPort { address: socket.local_addr().expect("its number"), _socket: socket }
    }
}

/// A long answer that nobody reads to its end: a token is so large, and so little is kept on its way, that the server has to
/// wait for its reader, however long that one takes. The server has to bear it (`--stall-seconds`).
#[allow(dead_code)] // Not every test that has this file asks.
pub fn unread(server: &Server, headers: &[(&str, &str)]) -> TcpStream {
    let mut stream = server.connect();
    // What the two systems would keep for it is more than the whole answer.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).expect("an option");
    let body = serde_json::json!({
        "prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": true, "stream": true, "logprobs": 20,
    });
    let body = body.to_string();
    stream
        .write_all(&request_bytes("POST", "/v1/completions", headers, body.as_bytes()))
        .expect("it listens");
    stream.read_exact(&mut [0; 64]).expect("the beginning of an answer");
    stream
}

/// What a line says: with `--log json` it is a part of an object.
fn spoken(line: &str) -> String {
    let object: Option<Value> = serde_json::from_str(line).ok();
    let message = object.and_then(|object| Some(object.get("message")?.as_str()?.to_owned()));
    message.unwrap_or_else(|| line.to_owned())
}

/// What a test could not look at, and why: on standard error itself, for what a test prints is shown only if it fails.
#[allow(dead_code)] // Not every test that has this file asks.
pub fn skipped(why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes());
}

/// The first sample of a name.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let line =
        page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))?;
    line.rsplit(' ').next()?.parse().ok()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, with nothing of the person who runs the tests.
pub fn gaterail(folder: &tempfile::TempDir, args: &[&str]) -> Command {
    gaterail_at(Path::new(env!("CARGO_BIN_EXE_gaterail")), folder, args)
}

/// The same under another name of its file.
pub fn gaterail_at(program: &Path, folder: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("XDG_CONFIG_HOME", folder.path())
        .env("XDG_CACHE_HOME", cache())
        .env("HF_HUB_CACHE", "/nonexistent");
    command
}

/// The demo model is unpacked once for all tests.
fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("serve-cache")
}

pub fn request_bytes(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head += &format!("content-length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Reads to the end of the connection.
pub fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A reset after the answer is an end, too.
    let _ = stream.read_to_end(&mut bytes);
    parse_answer(&bytes)
}

pub fn parse_answer(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = match end {
        Some(end) => (&bytes[..end], &bytes[end + 4..]),
        None => (bytes, &[][..]),
    };
    let head = String::from_utf8_lossy(head).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Answer { status, body: if chunked { unchunked(body) } else { body.to_vec() }, head }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size =
            std::str::from_utf8(&bytes[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size.filter(|size| *size > 0 && end + 2 + size <= bytes.len()) else { break };
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[(end + 4 + size).min(bytes.len())..];
    }
    body
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (own, value) = line.split_once(": ")?;
            own.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The `data:` events of a stream.
    pub fn events(&self) -> Vec<String> {
        self.text()
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }
}
