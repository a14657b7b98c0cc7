//! A small hub on this machine, for tests: the listing, the redirect to a second port that stands for the
//! host with the bytes, and every fault that a network or a hostile hub may show.
//!
//! It speaks one request per connection. The second port counts every `Authorization` header as a violation,
//! and dropping the hub fails the test if there was one.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONNECTIONS_MAX: usize = 16;
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What the next requests for a file's bytes meet; one is used up per request.
#[derive(Clone, Debug)]
pub enum Act {
    /// As it should be.
    Serve,
    /// The connection ends after this many bytes of the body.
    CutAfter(usize),
    /// Silence after this many bytes.
    StallAfter(usize),
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// Right length, wrong content.
    Damage,
    /// Small pieces with pauses.
    Trickle { piece: usize, pause: Duration },
    /// A body of this length in place of the file's.
    Length(usize),
    /// A status with headers, from the hub itself.
    Status(u16, &'static str),
    /// A status from the second port.
    FarStatus(u16),
    /// A redirect to this address.
    Redirect(String),
    /// Another commit in the headers.
    OtherCommit,
    /// This in the place of the checksum, as a mirror may have it.
    Etag(&'static str),
}

/// One request as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// It came to the second port.
    pub far: bool,
    pub method: String,
    pub path: String,
    /// First byte asked for.
    pub range: Option<u64>,
    pub authorization: Option<String>,
}

pub struct Hub {
    pub endpoint: String,
    pub state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<std::net::SocketAddr>,
}

#[derive(Default)]
pub struct State {
    repo: String,
    near: Mutex<String>,
    far: Mutex<String>,
    files: Mutex<Vec<Served>>,
    acts: Mutex<HashMap<String, VecDeque<Act>>>,
    /// Answers in place of the listing, one per request.
    listing_acts: Mutex<VecDeque<(u16, String, Vec<u8>)>>,
    /// Pause after every byte of the listing.
    listing_pause: Mutex<Option<Duration>>,
    /// Changes the listing that is sent.
    edit: Mutex<Option<fn(&mut Value)>>,
    seen: Mutex<Vec<Seen>>,
    violations: Mutex<Vec<String>>,
    over: AtomicBool,
    connections: AtomicUsize,
}

struct Served {
    name: String,
    bytes: Vec<u8>,
    large: bool,
}

impl Hub {
    /// A hub with one repository. Files of 1,000 bytes and more are "large": they have a SHA-256 and come
    /// from the second port.
    pub fn start(repo: &str, files: &[(&str, Vec<u8>)]) -> Self {
        let served = |(name, bytes): &(&str, Vec<u8>)| Served {
            name: (*name).to_owned(),
            bytes: bytes.clone(),
            large: bytes.len() >= 1000,
        };
        let state = Arc::new(State {
            repo: repo.to_owned(),
            files: Mutex::new(files.iter().map(served).collect()),
            ..State::default()
        });
        let mut threads = Vec::new();
        let mut addresses = Vec::new();
        for far in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("a bound port");
            let base = if far { &state.far } else { &state.near };
            *base.lock().unwrap() = format!("http://{address}");
            addresses.push(address);
            let state = Arc::clone(&state);
            threads.push(thread::spawn(move || accept(&listener, &state, far)));
        }
        let endpoint = state.near.lock().unwrap().clone();
        Self { endpoint, state, threads, addresses }
    }

    /// What the next requests for this file meet.
    pub fn act(&self, file: &str, acts: impl IntoIterator<Item = Act>) {
        self.state.acts.lock().unwrap().entry(file.to_owned()).or_default().extend(acts);
    }

    /// What the next request for the listing meets: status, headers, body.
    pub fn answer_listing(&self, status: u16, headers: &str, body: &[u8]) {
        let answer = (status, headers.to_owned(), body.to_vec());
        self.state.listing_acts.lock().unwrap().push_back(answer);
    }

    /// From now on the listing comes byte by byte.
    pub fn trickle_listing(&self, pause: Duration) {
        *self.state.listing_pause.lock().unwrap() = Some(pause);
    }

    pub fn edit_listing(&self, edit: fn(&mut Value)) {
        *self.state.edit.lock().unwrap() = Some(edit);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The first bytes asked for by the requests for a file, at the hub's own port.
    pub fn ranges(&self, file: &str) -> Vec<Option<u64>> {
        let of_file =
            |seen: &Seen| !seen.far && seen.method == "GET" && seen.path.ends_with(&format!("/{file}"));
        self.seen().into_iter().filter(of_file).map(|seen| seen.range).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.over.store(true, SeqCst);
        for address in &self.addresses {
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let violations = self.state.violations.lock().unwrap().clone();
        if !thread::panicking() {
            assert!(violations.is_empty(), "{violations:?}");
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>, far: bool) {
    for stream in listener.incoming() {
        if state.over.load(SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        while state.connections.load(SeqCst) >= CONNECTIONS_MAX {
            thread::sleep(Duration::from_millis(1));
        }
        state.connections.fetch_add(1, SeqCst);
        let state = Arc::clone(state);
        thread::spawn(move || {
            // A client that goes away in the middle is part of the tests.
            let _ = serve(&stream, &state, far);
            let _ = stream.shutdown(Shutdown::Both);
            state.connections.fetch_sub(1, SeqCst);
        });
    }
}

fn serve(stream: &TcpStream, state: &State, far: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let Some(request) = read_request(stream, far)? else { return Ok(()) };
    state.seen.lock().unwrap().push(request.clone());
    let path = request.path.split('?').next().unwrap_or_default();
    if far {
        if let Some(header) = &request.authorization {
            state.violations.lock().unwrap().push(format!("the second port was sent `{header}`"));
        }
        let name = path.trim_start_matches("/bytes/");
        return send_bytes(stream, state, &request, name, "");
    }
    let repo = &state.repo;
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{repo}/revision/")) {
        return send_listing(stream, state, revision);
    }
    if path.strip_prefix(&format!("/api/models/{repo}/tree/")).is_some() {
        return respond(stream, 200, "", &serde_json::to_vec(&tree(state))?, &request);
    }
    if let Some(rest) = path.strip_prefix(&format!("/{repo}/resolve/")) {
        let name = rest.split_once('/').map_or("", |(_, name)| name);
        return resolve(stream, state, &request, name);
    }
    respond(stream, 404, "X-Error-Code: RepoNotFound\r\n", b"{}", &request)
}

fn read_request(stream: &TcpStream, far: bool) -> io::Result<Option<Seen>> {
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap_or_default().to_owned();
    let mut seen = Seen { far, method: word(), path: word(), range: None, authorization: None };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            return Ok(Some(seen));
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else { continue };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => seen.authorization = Some(value.to_owned()),
            "range" => {
                let first = value.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
                seen.range = first.and_then(|first| first.parse().ok());
            }
            _ => {}
        }
    }
}

fn send_listing(stream: &TcpStream, state: &State, revision: &str) -> io::Result<()> {
    let get =
        Seen { far: false, method: "GET".into(), path: String::new(), range: None, authorization: None };
    let answer = state.listing_acts.lock().unwrap().pop_front();
    if let Some((status, headers, body)) = answer {
        return respond(stream, status, &headers, &body, &get);
    }
    if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
        return respond(stream, 404, "X-Error-Code: RevisionNotFound\r\n", b"{}", &get);
    }
    let mut listing = json!({ "id": state.repo, "sha": COMMIT, "siblings": siblings(state) });
    if let Some(edit) = *state.edit.lock().unwrap() {
        edit(&mut listing);
    }
    let body = serde_json::to_vec(&listing)?;
    let Some(pause) = *state.listing_pause.lock().unwrap() else {
        return respond(stream, 200, "", &body, &get);
    };
    let mut out = stream;
    write!(out, "HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", body.len())?;
    body.iter().try_for_each(|byte| {
        thread::sleep(pause);
        out.write_all(&[*byte])
    })
}

fn siblings(state: &State) -> Vec<Value> {
    let one = |file: &Served| {
        let mut entry =
            json!({ "rfilename": file.name, "size": file.bytes.len(), "blobId": git_sha1(&file.bytes) });
        if file.large {
            entry["blobId"] = json!(git_sha1(b"a pointer"));
            entry["lfs"] =
                json!({ "sha256": sha256(&file.bytes), "size": file.bytes.len(), "pointerSize": 134 });
        }
        entry
    };
    state.files.lock().unwrap().iter().map(one).collect()
}

fn tree(state: &State) -> Vec<Value> {
    let one = |file: &Served| {
        let mut entry = json!({
            "type": "file", "path": file.name, "size": file.bytes.len(), "oid": git_sha1(&file.bytes),
        });
        if file.large {
            entry["lfs"] =
                json!({ "oid": sha256(&file.bytes), "size": file.bytes.len(), "pointerSize": 134 });
        }
        entry
    };
    state.files.lock().unwrap().iter().map(one).collect()
}

/// The hub's own port: small files at once, large ones by a redirect.
fn resolve(stream: &TcpStream, state: &State, request: &Seen, name: &str) -> io::Result<()> {
    let (id, size, large) = {
        let files = state.files.lock().unwrap();
        let Some(file) = files.iter().find(|file| encoded(&file.name) == name) else {
            drop(files);
            return respond(stream, 404, "X-Error-Code: EntryNotFound\r\n", b"", request);
        };
        let id = if file.large { sha256(&file.bytes) } else { git_sha1(&file.bytes) };
        (id, file.bytes.len(), file.large)
    };
    let act = state.acts.lock().unwrap().get(name).and_then(|acts| acts.front().cloned());
    let commit = if matches!(act, Some(Act::OtherCommit)) { "f".repeat(40) } else { COMMIT.to_owned() };
    let mut headers = format!("X-Repo-Commit: {commit}\r\n");
    match &act {
        Some(Act::Status(status, more)) => {
            pop(state, name);
            return respond(stream, *status, more, b"", request);
        }
        Some(Act::Redirect(to)) => {
            pop(state, name);
            return respond(stream, 302, &format!("Location: {to}\r\n"), b"", request);
        }
        _ => {}
    }
    if large {
        let far = state.far.lock().unwrap().clone();
        headers += &format!(
            "X-Linked-Etag: \"{id}\"\r\nX-Linked-Size: {size}\r\nLocation: {far}/bytes/{name}?signature=secret\r\n"
        );
        return respond(stream, 302, &headers, b"", request);
    }
    headers += &match &act {
        Some(Act::Etag(etag)) => format!("ETag: {etag}\r\n"),
        _ => format!("ETag: \"{id}\"\r\n"),
    };
    send_bytes(stream, state, request, name, &headers)
}

fn pop(state: &State, name: &str) -> Option<Act> {
    state.acts.lock().unwrap().get_mut(name).and_then(VecDeque::pop_front)
}

fn send_bytes(
    stream: &TcpStream,
    state: &State,
    request: &Seen,
    name: &str,
    headers: &str,
) -> io::Result<()> {
    let mut bytes = {
        let files = state.files.lock().unwrap();
        let file = files.iter().find(|file| encoded(&file.name) == name);
        file.map(|file| file.bytes.clone()).unwrap_or_default()
    };
    if request.method == "HEAD" {
        return respond(stream, 200, headers, &bytes, request);
    }
    let act = pop(state, name).unwrap_or(Act::Serve);
    if let Act::FarStatus(status) = act {
        return respond(stream, status, headers, b"", request);
    }
    if let Act::Length(length) = act {
        bytes.resize(length, b'x');
    }
    if matches!(act, Act::Damage) {
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    }
    let total = bytes.len();
    let first = request.range.filter(|_| !matches!(act, Act::IgnoreRange)).map(|first| first as usize);
    let (status, range) = match first {
        Some(first) if first >= total => return respond(stream, 416, headers, b"", request),
        Some(first) => (206, format!("Content-Range: bytes {first}-{}/{total}\r\n", total - 1)),
        None => (200, String::new()),
    };
    let body = &bytes[first.unwrap_or(0)..];
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {status} X\r\n{headers}{range}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    match act {
        Act::CutAfter(count) => out.write_all(&body[..count.min(body.len())]),
        Act::StallAfter(count) => {
            out.write_all(&body[..count.min(body.len())])?;
            // Until the client gives up.
            let _ = out.read(&mut [0]);
            Ok(())
        }
        Act::Trickle { piece, pause } => body.chunks(piece).try_for_each(|piece| {
            thread::sleep(pause);
            out.write_all(piece)
        }),
        _ => out.write_all(body),
    }
}

fn respond(stream: &TcpStream, status: u16, headers: &str, body: &[u8], request: &Seen) -> io::Result<()> {
    let mut out = stream;
    let length = body.len();
    write!(out, "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    if request.method == "HEAD" { Ok(()) } else { out.write_all(body) }
}

fn encoded(name: &str) -> String {
    name.replace('%', "%25").replace(' ', "%20")
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn git_sha1(bytes: &[u8]) -> String {
    let sum = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes);
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
