//! Workers die in the middle of answers, and nobody notices.

use std::time::{Duration, Instant};

use crate::cluster::{Said, Stream, page, pids, request, signal, wait_for_workers};
use crate::server::{Server, metric};

/// Long enough that a signal hits an answer and not its end.
const TOKENS: usize = 150;

fn answers(server: &Server, streams: usize) -> Vec<Said> {
    let open: Vec<Stream> =
        (0..streams).map(|number| Stream::open(server, &request(number, TOKENS))).collect();
    open.into_iter().map(Stream::finish).collect()
}

/// The same answers while a worker gets a signal after so many tokens of the first.
fn answers_with(server: &Server, streams: usize, after: usize, name: &str) -> (Vec<Said>, u32) {
    let victim = pids(&wait_for_workers(server, 2))[0];
    let mut open: Vec<Stream> =
        (0..streams).map(|number| Stream::open(server, &request(number, TOKENS))).collect();
    open[0].read_events(after);
    signal(victim, name);
    (open.into_iter().map(Stream::finish).collect(), victim)
}

fn check(mode: &str, streams: usize) {
    let mut server = Server::start(&["--workers", "2", "--parallel", mode, "--no-prefix-cache"]);
    let expected = answers(&server, streams);
    assert!(expected.iter().all(|(text, logprobs)| !text.is_empty() && logprobs.len() >= TOKENS / 2));
    for (after, name) in [(1, "KILL"), (TOKENS / 2, "KILL"), (TOKENS - 1, "KILL"), (TOKENS / 3, "STOP")] {
        let (found, victim) = answers_with(&server, streams, after, name);
        assert!(found == expected, "{mode}, {streams} streams, {name} after {after} tokens: another answer");
        if name == "STOP" {
            // Silent for longer than is allowed, it was replaced; it has to join anew.
            server.line_with(&["is gone", "nothing heard"]);
            signal(victim, "CONT");
        }
    }
    let stalls = metric(&server.get("/metrics").text(), "gaterail_step_stalls_total").expect("a figure");
    // On a busy machine a death may fall between two layers, and is over before the next; silence never is.
    assert!(stalls >= 1.0, "{stalls} stalls: the signals missed the answers");
    server.line_with(&["computed again", "stood still for"]);
    wait_for_workers(&server, 2);
}

#[test]
fn whole_experts_one_stream() {
    check("ep", 1);
}

#[test]
fn whole_experts_many_streams() {
    check("ep", 16);
}

#[test]
fn cut_experts_one_stream() {
    check("tp", 1);
}

#[test]
fn cut_experts_many_streams() {
    check("tp", 16);
}

#[test]
fn with_a_second_copy_nothing_is_loaded_for_a_death() {
    let mut server = Server::start(&["--workers", "2", "--expert-copies", "2", "--no-prefix-cache"]);
    let expected = answers(&server, 1);
    let (found, _) = answers_with(&server, 1, TOKENS / 2, "KILL");
    assert!(found == expected);
    let line = server.line_with(&["computed again", "stood still for"]);
    eprintln!("{line}");
    wait_for_workers(&server, 2);
}

#[test]
fn all_workers_gone_and_back() {
    let server = Server::start(&["--workers", "2", "--no-prefix-cache"]);
    let expected = answers(&server, 4);
    let all = pids(&wait_for_workers(&server, 2));
    let mut open: Vec<Stream> =
        (0..4).map(|number| Stream::open(&server, &request(number, TOKENS))).collect();
    open[0].read_events(TOKENS / 4);
    // Both at once: there is nobody left, and the answers wait for who is started next.
    all.iter().for_each(|pid| signal(*pid, "STOP"));
    all.iter().for_each(|pid| signal(*pid, "KILL"));
    let found: Vec<Said> = open.into_iter().map(Stream::finish).collect();
    assert!(found == expected, "another answer");
    wait_for_workers(&server, 2);
}

#[test]
fn nobody_waits_for_workers_for_ever() {
    let flags = ["--cluster-listen", "127.0.0.1:0", "--workers", "1", "--workers-gone-seconds", "1"];
    let server = Server::start(&flags);
    let only = pids(&wait_for_workers(&server, 1))[0];
    let mut stream = Stream::open(&server, &request(0, 3000));
    stream.read_events(3);
    // Stopped, it is dismissed, and its supervisor sees nothing to start again.
    signal(only, "STOP");
    let started = Instant::now();
    let until = started + Duration::from_secs(30);
    while page(&server)["status"] == "ready" && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.get("/readyz").status, 503);
    let answer = server.post("/v1/completions", &serde_json::json!({"prompt": [5, 6], "max_tokens": 3}));
    assert!(answer.status >= 500, "{} {}", answer.status, answer.text());
    assert!(started.elapsed() < Duration::from_secs(30));
    signal(only, "CONT");
    wait_for_workers(&server, 1);
    let answer = server.post("/v1/completions", &serde_json::json!({"prompt": [5, 6], "max_tokens": 3}));
    assert_eq!(answer.status, 200, "{}", answer.text());
}
