//! Workers end with their server, and are started again when they end before it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::cluster::{
    Signal, Stream, pids, request, signal, wait_for_others, wait_for_workers, wait_until_gone,
};
use crate::server::{Server, gaterail, gaterail_at, unread};

#[test]
fn a_worker_that_ends_is_started_again() {
    let mut server = Server::start(&["--workers", "2"]);
    let before = pids(&wait_for_workers(&server, 2));
    signal(before[0], Signal::KILL);
    server.line_with(&["ended", "signal: 9", "started again"]);
    wait_until_gone(before[0]);
    let after = pids(&wait_for_others(&server, 2, &before[..1]));
    assert_eq!(after.iter().filter(|pid| before.contains(pid)).count(), 1, "{before:?} {after:?}");
}

/// Who installs a new version replaces the program's file while a server runs, whose workers have to be of its own version.
#[test]
fn a_worker_is_of_its_servers_version_whatever_was_installed_since() {
    let folder = tempfile::tempdir().unwrap();
    // `gaterail` in there is the folder of its configuration.
    let program = folder.path().join("program");
    let built = env!("CARGO_BIN_EXE_gaterail");
    std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).expect("there");
    let flags = ["serve", "demo", "--listen", "127.0.0.1:0", "--threads", "1", "--workers", "2"];
    let command = gaterail_at(&program, &folder, &flags);
    let mut server = Server::run(folder, command);
    let before = pids(&wait_for_workers(&server, 2));
    let newer = program.with_extension("new");
    std::fs::write(&newer, "#!/bin/sh\nexit 1\n").expect("written");
    std::fs::set_permissions(&newer, std::fs::Permissions::from_mode(0o755)).expect("changed");
    std::fs::rename(&newer, &program).expect("installed");
    signal(before[0], Signal::KILL);
    server.line_with(&["ended", "signal: 9", "started again"]);
    wait_for_others(&server, 2, &before[..1]);
}

#[test]
fn a_server_that_is_killed_leaves_no_worker() {
    let mut server = Server::start(&["--workers", "2"]);
    let workers = pids(&wait_for_workers(&server, 2));
    // Even one that could not hear of it.
    signal(workers[1], Signal::STOP);
    server.signal("KILL");
    server.wait();
    workers.into_iter().for_each(wait_until_gone);
}

#[test]
fn an_interrupt_lets_answers_finish_and_ends_the_workers() {
    let mut server = Server::start(&["--workers", "2", "--drain-seconds", "600"]);
    let workers = pids(&wait_for_workers(&server, 2));
    let mut stream = Stream::open(&server, &request(0, 600));
    stream.read_events(2);
    server.signal("INT");
    let (text, _) = stream.finish();
    assert!(!text.is_empty());
    assert!(server.wait().success());
    let log = server.rest_of_log();
    assert!(log.contains("stopping") && !log.contains("somebody is gone"), "an end is no death: {log}");
    assert!(!log.contains("tried again"), "and nothing is tried again: {log}");
    workers.into_iter().for_each(wait_until_gone);
}

#[test]
fn a_second_interrupt_ends_the_workers_too() {
    let flags = ["--workers", "2", "--drain-seconds", "600", "--stall-seconds", "600"];
    let mut server = Server::start(&flags);
    let workers = pids(&wait_for_workers(&server, 2));
    // Answers that are not over before the second one comes, whenever that is.
    let _streams: Vec<_> = (0..8).map(|_| unread(&server, &[])).collect();
    server.signal("INT");
    server.line_with(&["stopping"]);
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(130));
    workers.into_iter().for_each(wait_until_gone);
}

#[test]
fn the_demo_model_has_two_workers() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = gaterail(&folder, &["serve", "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut seen = String::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok) {
        seen += &format!("{line}\n");
        if line.contains("curl") {
            break;
        }
    }
    for part in ["workers     2, ep", "worker-0: ", "  worker-1", "experts"] {
        assert!(seen.contains(part), "{part:?} is not in:\n{seen}");
    }
    assert_eq!(seen.matches(" 16 experts").count(), 2, "two that are alike hold as much: {seen}");
    let status = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(status.expect("kill runs").success());
    assert!(child.wait().expect("a child").success());
}

#[test]
fn secrets_are_on_no_command_line() {
    let server = Server::start(&["--workers", "1"]);
    let worker = pids(&wait_for_workers(&server, 1))[0];
    let line = std::fs::read(format!("/proc/{worker}/cmdline")).expect("a command line");
    let variables = std::fs::read(format!("/proc/{worker}/environ")).expect("its variables");
    let token =
        variables.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"GATERAIL_TOKEN="));
    let token = token.expect("a token");
    assert!(token.len() >= 32 && !line.windows(token.len()).any(|window| window == token));
    let answer = server.post("/v1/completions", &json!({"prompt": [5, 6], "max_tokens": 3}));
    assert_eq!(answer.status, 200);
}

/// `gaterail serve 2>&1 | head -1`: it serves on, and so do its workers and whoever takes a dead one's place.
#[test]
fn nobody_has_to_read_what_it_says() {
    for log in ["text", "json"] {
        let mut server = Server::start_unread(&["--workers", "2", "--log", log]);
        assert!(!server.start.is_empty());
        let ask = || {
            let body = json!({"prompt": [5, 6], "max_tokens": 3, "ignore_eos": true});
            let answer = server.post("/v1/completions", &body);
            assert_eq!((answer.status, &answer.json()["usage"]["completion_tokens"]), (200, &json!(3)));
        };
        let victim = pids(&wait_for_workers(&server, 2))[0];
        (0..20).for_each(|_| ask());
        signal(victim, Signal::KILL);
        wait_for_others(&server, 2, &[victim]);
        (0..20).for_each(|_| ask());
        server.signal("TERM");
        assert!(server.wait().success(), "--log {log}");
    }
}
