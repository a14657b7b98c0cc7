//! A server with workers, as `/cluster` shows it; workers that a test starts itself; many streams at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};

pub use rustix::process::Signal;

use crate::server::{PATIENCE, Server, gaterail, parse_answer, request_bytes};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What `/cluster` says.
pub fn page(server: &Server) -> Value {
    let answer = server.get("/cluster");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Waits until `workers` workers are in the plan, and no other plan is coming.
pub fn wait_for_workers(server: &Server, workers: usize) -> Value {
    wait_for_others(server, workers, &[])
}

/// The same without those of `gone`: the server may not have noticed yet that they are.
pub fn wait_for_others(server: &Server, workers: usize, gone: &[u32]) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let page = page(server);
        let cluster = &page["cluster"];
        let all = cluster["workers"].as_array().expect("a list");
        let serving = all.iter().filter(|at| at["state"] == "serving").count();
        if cluster["serving"] == true
            && serving == workers
            && all.len() == workers
            && cluster["pending"].is_null()
            && !pids(&page).iter().any(|pid| gone.contains(pid))
        {
            return page;
        }
        assert!(Instant::now() < until, "no {workers} workers: {page:#}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Process ids by the order in which they joined.
pub fn pids(page: &Value) -> Vec<u32> {
    let workers = page["cluster"]["workers"].as_array().expect("a list");
    workers.iter().map(|at| at["pid"].as_u64().expect("a number") as u32).collect()
}

/// At once: no other program is started for it.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("no group");
    kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} to {pid:?}: {error}"));
}

/// A worker that was stopped. Where that is too long ago its server has killed it, and started another.
pub fn let_go_on(pid: u32) {
    let sent = kill_process(Pid::from_raw(pid as i32).expect("no group"), Signal::CONT);
    assert!(sent.is_ok() || !is_alive(pid), "{sent:?} to {pid}");
}

pub fn is_alive(pid: u32) -> bool {
    // A zombie is dead, and only not waited for.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn wait_until_gone(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < until, "{pid} lives on");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// An answer that is being read.
pub struct Stream {
    socket: TcpStream,
    bytes: Vec<u8>,
}

/// What an answer said: its text, and every token's log-probabilities.
pub type Said = (String, Vec<Value>);

impl Stream {
    pub fn open(server: &Server, body: &Value) -> Stream {
        let mut socket = server.connect();
        let body = body.to_string();
        socket.write_all(&request_bytes("POST", "/v1/completions", &[], body.as_bytes())).expect("sent");
        Stream { socket, bytes: Vec::new() }
    }

    /// Reads until so many events have come, or the end.
    pub fn read_events(&mut self, count: usize) {
        let mut chunk = [0; 1024];
        while self.events() < count {
            match read(&mut self.socket, &mut chunk) {
                0 => return,
                read => self.bytes.extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn events(&self) -> usize {
        self.bytes.windows(6).filter(|window| window == b"data: ").count()
    }

    /// All of it, whatever it says.
    pub fn read_to_end(mut self) -> String {
        self.socket.read_to_end(&mut self.bytes).expect("the rest");
        parse_answer(&self.bytes).text()
    }

    /// All of it, with the time of every event.
    pub fn finish_timed(mut self) -> (Said, Vec<Instant>) {
        let (mut times, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let seen = self.bytes.len().saturating_sub(5);
            match read(&mut self.socket, &mut chunk) {
                0 => return (self.finish(), times),
                read => self.bytes.extend_from_slice(&chunk[..read]),
            }
            let now = Instant::now();
            let new = self.bytes[seen..].windows(6).filter(|window| window == b"data: ").count();
            times.extend((0..new).map(|_| now));
        }
    }

    /// All of it; it has to be whole.
    pub fn finish(mut self) -> Said {
        self.socket.read_to_end(&mut self.bytes).expect("the rest");
        let answer = parse_answer(&self.bytes);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut events = answer.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "the answer broke off: {}", answer.text());
        let (mut text, mut logprobs) = (String::new(), Vec::new());
        for event in &events {
            let event: Value = serde_json::from_str(event).expect("JSON");
            assert!(event["error"].is_null(), "{event}");
            let choice = &event["choices"][0];
            text += choice["text"].as_str().unwrap_or_default();
            logprobs.push(choice["logprobs"].clone());
        }
        (text, logprobs)
    }
}

fn read(socket: &mut TcpStream, into: &mut [u8]) -> usize {
    loop {
        match socket.read(into) {
            Ok(read) => return read,
            // Whoever stopped this program lets it go on.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => panic!("more of the answer: {error}"),
        }
    }
}

/// A request that differs from the others by its number.
pub fn request(number: usize, tokens: usize) -> Value {
    let prompt: Vec<usize> = (0..12).map(|at| 5 + (number * 31 + at * 7) % 200).collect();
    json!({
        "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "stream": true, "logprobs": 2,
        "temperature": if number.is_multiple_of(2) { 0.0 } else { 0.9 }, "seed": number,
    })
}

/// A worker that the test starts itself.
pub struct WorkerProcess {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl WorkerProcess {
    pub fn start(folder: &tempfile::TempDir, flags: &[&str], variables: &[(&str, &str)]) -> WorkerProcess {
        let mut child =
            gaterail(folder, &["worker", "--threads", "1", "--memory", "1GiB", "--packed-cache", "off"])
                .args(flags)
                .envs(variables.iter().copied())
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
                    return;
                }
            }
        });
        WorkerProcess { child, lines, seen: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line that says all of `words`; waits for it.
    pub fn line_with(&mut self, words: &[&str]) -> String {
        let until = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.seen.push(line.clone());
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
        panic!("no line with {words:?} in:\n{}", self.seen.join("\n"));
    }

    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < until, "it did not end:\n{}", self.seen.join("\n"));
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
