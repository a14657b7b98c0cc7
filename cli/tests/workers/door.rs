//! Who may join, and what is refused before anything is loaded.

use serde_json::json;

use crate::cluster::{Signal, Stream, WorkerProcess, request, signal, wait_for_workers};
use crate::server::{OwnPort, Server, gaterail};

const TOKEN: &str = "a-token-that-nobody-guesses";

#[track_caller]
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let output = gaterail(&tempfile::tempdir().unwrap(), args).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn wrong_command_lines_are_named() {
    fails(&["worker"], 2, &["--join"]);
    fails(&["worker", "--join", "nowhere"], 2, &["HOST:PORT"]);
    fails(&["worker", "--join", "h:1", "--memory", "much"], 2, &["--memory", "4GiB"]);
    fails(&["worker", "--join", "h:1", "--cores", "3-1"], 2, &["--cores"]);
    fails(&["worker", "--join", "h:1", "--cores", "1023"], 2, &["--cores 1023", "this process may use"]);
    fails(&["worker", "--join", "h:1", "--token", "a", "--token-file", "b"], 2, &["--token-file"]);
    fails(&["worker", "--join", "h:1", "--token-file", "/no/such"], 1, &["/no/such"]);
    fails(&["worker", "--join", "h:1", "--device", "cuda:7"], 1, &["gaterail: "]);
    let serve = |flags: &[&'static str]| [&["serve", "demo", "--listen", "127.0.0.1:0"], flags].concat();
    fails(&serve(&["--workers", "many"]), 2, &["--workers", "whole number"]);
    fails(&serve(&["--parallel", "tp"]), 2, &["--parallel tp", "--workers N"]);
    fails(&serve(&["--workers", "2", "--parallel", "pp"]), 2, &["ep, tp, ep:N,tp:M or auto"]);
    fails(&serve(&["--workers", "3", "--parallel", "ep:2,tp:2"]), 2, &["--workers 4"]);
    fails(
        &serve(&["--cluster-listen", "0.0.0.0:0"]),
        1,
        &["others can reach", "--join-token-file", "gaterail worker --join"],
    );
    fails(&serve(&["--cluster-listen", "127.0.0.1:0", "--join-token", "short"]), 1, &["can be guessed"]);
    fails(&serve(&["--workers", "2", "--kv-memory", "900TB"]), 1, &["does not fit", "in 2 workers"]);
    fails(&["status", "127.0.0.1:1"], 1, &[]);
}

#[test]
fn copies_without_room_for_them_are_refused_before_anything_is_loaded() {
    fails(
        &["serve", "demo", "--listen", "127.0.0.1:0", "--workers", "2", "--expert-copies", "3"],
        1,
        &["do not fit", "--expert-copies 2"],
    );
}

#[test]
fn workers_come_by_themselves_and_bring_the_token() {
    let port = OwnPort::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("join.token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let (address, file) = (port.address.to_string(), file.to_str().unwrap().to_string());
    // Before there is a router, and after.
    let join = ["--join", &address, "--name", "early"];
    let mut early = WorkerProcess::start(&folder, &join, &[("GATERAIL_TOKEN", TOKEN)]);
    early.line_with(&[&address, "tried again"]);
    let mut wrong = WorkerProcess::start(
        &folder,
        &["--join", &address],
        &[("GATERAIL_TOKEN", "another-token-of-some-length")],
    );
    let server = Server::start(&["--cluster-listen", &address, "--join-token-file", &file]);
    wrong.line_with(&["token"]);
    early.line_with(&["joined"]);
    wait_for_workers(&server, 1);
    let mut late =
        WorkerProcess::start(&folder, &["--join", &address, "--name", "late", "--token-file", &file], &[]);
    let page = wait_for_workers(&server, 2);
    assert_eq!(page["cluster"]["workers"][1]["name"], "late", "{page:#}");
    late.line_with(&["ready"]);
    // One drains while it is needed: the answer goes on without it.
    let mut stream = Stream::open(&server, &request(0, 800));
    stream.read_events(5);
    signal(early.pid(), Signal::TERM);
    early.line_with(&["draining"]);
    assert!(early.wait().success());
    let (text, _) = stream.finish();
    assert!(!text.is_empty());
    wait_for_workers(&server, 1);
    let answer = server.post("/v1/completions", &json!({"prompt": [5, 6], "max_tokens": 3}));
    assert_eq!(answer.status, 200);
}

#[test]
fn a_worker_without_the_file_gets_its_weights_from_the_router() {
    let own = OwnPort::new();
    let port = own.address.to_string();
    let folder = tempfile::tempdir().unwrap();
    let _worker =
        WorkerProcess::start(&folder, &["--join", &port, "--weights-from-router", "--no-shared-memory"], &[]);
    let server = Server::start(&["--cluster-listen", &port]);
    let page = wait_for_workers(&server, 1);
    assert_eq!(page["cluster"]["workers"][0]["exchange"], "gRPC", "{page:#}");
    let body =
        json!({"prompt": [9, 8, 7], "max_tokens": 24, "ignore_eos": true, "logprobs": 3, "temperature": 0.0});
    let ours = server.post("/v1/completions", &body).json()["choices"].clone();
    let theirs = Server::start(&[]).post("/v1/completions", &body).json()["choices"].clone();
    assert_eq!(ours, theirs);
}
