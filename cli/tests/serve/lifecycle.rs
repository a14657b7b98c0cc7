//! From the first setting to the last connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{PATIENCE, Server, gaterail, parse_answer, read_answer, request_bytes, unread};

fn ends(args: &[&str]) -> Output {
    gaterail(&tempfile::tempdir().unwrap(), args).output().expect("it runs")
}

#[track_caller]
fn fails(args: &[&str], parts: &[&str]) {
    let output = ends(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{args:?} succeeded");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn settings_come_from_four_places() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    std::fs::write(&file, "max_batch = 3\nmax_queue = 7\nlog = \"json\"\ncors_origin = [\"a\", \"b\"]\nno_prefix_cache = true\n").unwrap();
    let output = gaterail(
        &folder,
        &["serve", "--print-config", "--max-num-seqs", "5", "--config", file.to_str().unwrap()],
    )
    .env("GATERAIL_MAX_QUEUE", "9")
    .env("GATERAIL_API_KEY", "hidden")
    .output()
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |key: &str| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(key));
        line.unwrap_or_else(|| panic!("no {key} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("max_batch"), "max_batch 5 command line");
    assert_eq!(line("max_queue"), "max_queue 9 variable GATERAIL_MAX_QUEUE");
    assert_eq!(line("log"), format!("log json file {}", file.display()));
    assert_eq!(line("cors_origin"), format!("cors_origin a, b file {}", file.display()));
    assert_eq!(line("no_prefix_cache"), format!("no_prefix_cache true file {}", file.display()));
    assert_eq!(line("listen"), "listen 127.0.0.1:8000 default");
    assert!(!text.contains("hidden"), "{text}");
}

#[test]
fn wrong_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    let path = file.to_str().unwrap();
    for (text, part) in [
        ("max_bach = 3\n", "did you mean max_batch?"),
        ("max_batch = [1]\n", "max_batch has to be one value"),
        ("insecure = \"yes\"\n", "insecure has to be true or false"),
        ("max_batch = \n", "own.toml"),
        ("max_batch = 0\n", "it has to be a whole number from 1"),
    ] {
        std::fs::write(&file, text).unwrap();
        fails(&["serve", "--config", path], &[part]);
    }
    fails(&["serve", "--listen", "nonsense"], &["--listen", "HOST:PORT"]);
    fails(&["serve", "--max-batch", "-3"], &["--max-batch"]);
    fails(&["serve", "--max-batch", "600"], &["--step-tokens 512 is less than --max-batch 600"]);
    fails(&["serve", "--weights", "int3"], &["--weights"]);
    fails(&["serve", "--kv-memory", "lots"], &["--kv-memory", "4GiB"]);
    fails(&["serve", "--max-bach", "3"], &["--max-batch"]);
    fails(
        &["serve", "demo", "--listen", "127.0.0.1:0", "--max-context", "5000"],
        &["more than the model's context of 4096"],
    );
    fails(
        &["serve", "demo", "--listen", "127.0.0.1:0", "--kv-memory", "900TB"],
        &["does not fit in memory", "weights", "--kv-memory"],
    );
    fails(&["serve", "/no/such/model", "--listen", "127.0.0.1:0"], &["no folder"]);
}

#[test]
fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fails(&["serve", "demo", "--listen", &address], &[&address, "taken by another program", "--listen"]);
}

#[test]
fn a_signal_drains_and_ends() {
    // Whoever looks too late finds nobody there any more, and gives the next one more time.
    let drained = [2, 20, 100].into_iter().any(a_signal_drains_and_ends_within);
    assert!(drained, "its port is closed before the grace is over");
}

/// Whether it was there to say so; how it ends is the same in any case.
fn a_signal_drains_and_ends_within(grace: u64) -> bool {
    let mut server = Server::start(&["--drain-grace-seconds", &grace.to_string(), "--drain-seconds", "600"]);
    let body = json!({"prompt": [5, 6], "max_tokens": 600, "ignore_eos": true, "stream": true}).to_string();
    let mut stream = server.connect();
    stream.write_all(&request_bytes("POST", "/v1/completions", &[], body.as_bytes())).unwrap();
    let mut bytes = vec![0; 64];
    stream.read_exact(&mut bytes).unwrap();
    server.signal("TERM");
    // Not ready at once, and still serving.
    let until = Instant::now() + PATIENCE;
    let get = |path: &str| {
        let mut stream = TcpStream::connect(server.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&request_bytes("GET", path, &[], b"")).ok()?;
        Some(read_answer(&mut stream)).filter(|answer| answer.status != 0)
    };
    let mut not_ready = get("/readyz");
    while not_ready.as_ref().is_some_and(|answer| answer.status == 200) {
        assert!(Instant::now() < until, "it says that it is ready");
        not_ready = get("/readyz");
    }
    let alive = get("/livez");
    if let Some(not_ready) = &not_ready {
        assert_eq!((not_ready.status, &not_ready.json()["status"]), (503, &json!("draining")));
    }
    if let Some(alive) = &alive {
        assert_eq!(alive.status, 200);
    }
    stream.read_to_end(&mut bytes).unwrap();
    let answer = parse_answer(&bytes);
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"), "the answer that ran is whole");
    assert!(server.wait().success());
    server.line_with(&["stopping"]);
    not_ready.is_some() && alive.is_some()
}

#[test]
fn a_second_signal_ends_at_once() {
    // Answers that are not over before the second one comes, whenever that is.
    let mut server = Server::start(&["--drain-seconds", "600", "--stall-seconds", "600"]);
    let streams: Vec<_> = (0..16).map(|_| unread(&server, &[])).collect();
    server.signal("INT");
    server.line_with(&["stopping"]);
    std::thread::sleep(Duration::from_millis(200));
    server.signal("INT");
    // Long before the drain would have ended.
    assert_eq!(server.wait().code(), Some(130));
    drop(streams);
}

#[test]
fn chat_talks_and_starts_a_server_of_its_own() {
    let server = Server::start(&[]);
    let url = format!("http://{}/v1", server.address);
    for args in [&["chat", "--url", &url, "--temperature", "0"][..], &["chat", "demo", "--temperature", "0"]]
    {
        let mut child = gaterail(&server.folder, args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(b"What is 27 + 58?\n\n/reset\nWhat is 12 + 13?\n/quit\n")
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{error}");
        assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["85", "25"], "{out} {error}");
        assert!(error.contains("tokens/s]") && error.contains("after"), "{error}");
    }
    let refused = ends(&["chat", "--url", "http://127.0.0.1:1/v1"]);
    assert!(!refused.status.success());
}
