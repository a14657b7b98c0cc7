//! Workers die in the middle of answers, and nobody notices.

use std::time::{Duration, Instant};

use crate::cluster::{
    Said, Signal, Stream, let_go_on, page, pids, request, signal, wait_for_others, wait_for_workers,
};
use crate::server::{PATIENCE, Server, metric};

/// Long enough that a signal hits an answer and not its end.
const TOKENS: usize = 150;

/// Where a signal that comes too late costs much.
const LONG: usize = 4 * TOKENS;

/// How often a signal may come after the answers.
const ATTEMPTS: usize = 5;

/// Workers that are killed break their connections; who is only held up is none of them.
const PATIENT: [&str; 2] = ["--worker-silence-seconds", "60"];

fn open(server: &Server, streams: usize, tokens: usize) -> Vec<Stream> {
    (0..streams).map(|number| Stream::open(server, &request(number, tokens))).collect()
}

fn answers(server: &Server, streams: usize, tokens: usize) -> Vec<Said> {
    open(server, streams, tokens).into_iter().map(Stream::finish).collect()
}

/// The same answers while a worker gets a signal after so many tokens of the first; and how many tokens were still to come.
fn answers_with(
    server: &Server,
    streams: usize,
    tokens: usize,
    after: usize,
    what: Signal,
) -> (Vec<Said>, f64) {
    let victim = pids(&wait_for_workers(server, 2))[0];
    let mut open = open(server, streams, tokens);
    open[0].read_events(after);
    signal(victim, what);
    let before = generated(server);
    let said = open.into_iter().map(Stream::finish).collect();
    let without = generated(server) - before;
    if what == Signal::STOP {
        // It may hear that it is let go, and joins anew.
        let_go_on(victim);
    } else {
        wait_for_others(server, 2, &[victim]);
    }
    (said, without)
}

fn generated(server: &Server) -> f64 {
    figure(server, "gaterail_generated_tokens_total")
}

/// Layers that were computed again.
fn stalls(server: &Server) -> f64 {
    figure(server, "gaterail_step_stalls_total")
}

fn figure(server: &Server, name: &str) -> f64 {
    let page = server.get("/metrics");
    metric(&page.text(), name).unwrap_or_else(|| panic!("no {name}: {} {}", page.head, page.text()))
}

fn check(mode: &str, streams: usize) {
    check_with(mode, streams, "off");
}

fn check_with(mode: &str, streams: usize, overlap: &str) {
    let flags = ["--workers", "2", "--parallel", mode, "--no-prefix-cache", "--overlap-rows", overlap];
    let mut server = Server::start(&flags);
    let expected = answers(&server, streams, TOKENS);
    assert!(expected.iter().all(|(text, logprobs)| !text.is_empty() && logprobs.len() >= TOKENS / 2));
    for (after, what) in [
        (1, Signal::KILL),
        (TOKENS / 2, Signal::KILL),
        (TOKENS - 1, Signal::KILL),
        (TOKENS / 3, Signal::STOP),
    ] {
        // Where this process gets no processor for a while, the answers end first.
        let hit = (0..ATTEMPTS).any(|_| {
            let (found, without) = answers_with(&server, streams, TOKENS, after, what);
            assert!(
                found == expected,
                "{mode}, {streams} streams, {what:?} after {after} tokens: another answer"
            );
            without > 0.0
        });
        // The last token may be out before anybody is missed.
        assert!(hit || after == TOKENS - 1, "{what:?} after {after} tokens missed the answers");
    }
    server.line_with(&["is gone", "nothing heard"]);
    server.line_with(&["computed again", "stood still for"]);
    let page = wait_for_workers(&server, 2);
    let overlapped = page["step"]["overlapped"].as_u64().expect("a count");
    assert_eq!(overlapped > 0, overlap != "off", "--overlap-rows {overlap}: {overlapped} steps");
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

/// Rows of two micro-batches are with the worker that dies.
#[test]
fn two_micro_batches_in_flight() {
    check_with("tp", 16, "2");
}

#[test]
fn with_a_second_copy_nothing_is_loaded_for_a_death() {
    // Only the first death makes the second epoch: each attempt has a server of its own.
    assert!((0..ATTEMPTS).any(|_| a_second_copy_is_enough()), "the signal missed the answer each time");
}

fn a_second_copy_is_enough() -> bool {
    let flags = ["--workers", "2", "--expert-copies", "2", "--no-prefix-cache"];
    let mut server = Server::start(&[&flags[..], &PATIENT].concat());
    let expected = answers(&server, 1, LONG);
    let (found, without) = answers_with(&server, 1, LONG, TOKENS / 2, Signal::KILL);
    assert!(found == expected, "another answer");
    if without == 0.0 {
        return false;
    }
    server.line_with(&["epoch 2 on 1 workers", "copies are left"]);
    eprintln!("{}", server.line_with(&["computed again", "stood still for"]));
    true
}

#[test]
fn all_workers_gone_and_back() {
    let server = Server::start(&[&["--workers", "2", "--no-prefix-cache"][..], &PATIENT].concat());
    let expected = answers(&server, 4, LONG);
    let hit = (0..ATTEMPTS).any(|_| {
        let all = pids(&wait_for_workers(&server, 2));
        let (mut open, before) = (open(&server, 4, LONG), stalls(&server));
        open[0].read_events(TOKENS / 4);
        // Both at once: there is nobody left, and the answers wait for who is started next.
        all.iter().for_each(|pid| signal(*pid, Signal::STOP));
        all.iter().for_each(|pid| signal(*pid, Signal::KILL));
        let found: Vec<Said> = open.into_iter().map(Stream::finish).collect();
        assert!(found == expected, "another answer");
        wait_for_others(&server, 2, &all);
        stalls(&server) > before
    });
    assert!(hit, "the signals missed the answers each time");
}

#[test]
fn nobody_waits_for_workers_for_ever() {
    assert!((0..ATTEMPTS).any(|_| an_answer_breaks_off()), "the answers were over each time");
}

/// `false` where the answer was over before its worker was stopped.
fn an_answer_breaks_off() -> bool {
    let flags = ["--cluster-listen", "127.0.0.1:0", "--workers", "1", "--workers-gone-seconds", "1"];
    let mut server = Server::start(&flags);
    let only = pids(&wait_for_workers(&server, 1))[0];
    let mut stream = Stream::open(&server, &request(0, 3000));
    stream.read_events(3);
    // Stopped, it is dismissed, and its supervisor sees nothing to start again.
    signal(only, Signal::STOP);
    let started = Instant::now();
    let until = started + PATIENCE;
    while page(&server)["status"] == "ready" && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.get("/readyz").status, 503);
    let answer = server.post("/v1/completions", &serde_json::json!({"prompt": [5, 6], "max_tokens": 3}));
    assert!(answer.status >= 500, "{} {}", answer.status, answer.text());
    // Nor does an answer that had begun: it says that it broke off, and the log says why.
    let broken = stream.read_to_end();
    if broken.ends_with("data: [DONE]\n\n") && !broken.contains("\"error\"") {
        return false;
    }
    assert!(broken.contains("\"error\"") && broken.contains("its log says why"), "{broken}");
    server.line_with(&["no workers that hold all of them"]);
    assert!(started.elapsed() < PATIENCE);
    let_go_on(only);
    wait_for_workers(&server, 1);
    let answer = server.post("/v1/completions", &serde_json::json!({"prompt": [5, 6], "max_tokens": 3}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    true
}
