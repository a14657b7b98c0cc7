//! Clients that are slow, half there, or gone: nobody else notices, and nothing is kept for them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{PATIENCE, Server, metric, read_answer, request_bytes};

const PAGES: &str = "gaterail_kv_pages_used";

fn endless(stream: bool) -> Vec<u8> {
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": true, "temperature": 1, "stream": stream});
    request_bytes("POST", "/v1/completions", &[], body.to_string().as_bytes())
}

/// The same with twenty log-probabilities a token: few tokens fill what is kept for a client that does not read.
fn large() -> Vec<u8> {
    let body =
        json!({"prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": true, "stream": true, "logprobs": 20});
    request_bytes("POST", "/v1/completions", &[], body.to_string().as_bytes())
}

fn answers(server: &Server) {
    let answer = server.post("/v1/completions", &json!({"prompt": [5], "max_tokens": 2}));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_thousand_clients_vanish() {
    let server = Server::start(&["--max-queue", "2000", "--log", "off"]);
    for round in 0..1000 {
        let mut stream = server.connect();
        stream.write_all(&endless(round % 2 == 0)).expect("it listens");
        match round % 4 {
            // In the middle of the answer, at once, or while it is still read.
            0 => drop(stream.read(&mut [0; 200])),
            1 => {}
            2 => drop(stream.shutdown(Shutdown::Both)),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    server.wait_for_metric("gaterail_sequences_running", |running| running == 0.0);
    server.wait_for_metric("gaterail_sequences_waiting", |waiting| waiting == 0.0);
    server.wait_for_metric("gaterail_requests_queued", |queued| queued == 0.0);
    server.wait_for_metric(PAGES, |pages| pages == 0.0);
    server.wait_for_metric("gaterail_connections", |open| open <= 1.0);
    answers(&server);
}

#[test]
fn who_reads_one_byte_at_a_time_holds_up_nobody() {
    let server = Server::start(&["--stall-seconds", "4"]);
    let mut readers: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for stream in &mut readers {
        // What the two systems would keep for it is more than the whole answer.
        rustix::net::sockopt::set_socket_recv_buffer_size(&*stream, 4096).expect("an option");
        stream.write_all(&large()).expect("it listens");
    }
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        for stream in &mut readers {
            let _ = stream.read(&mut [0; 1]);
        }
        let asked = Instant::now();
        answers(&server);
        assert!(asked.elapsed() < PATIENCE / 2, "{:?}", asked.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    // They are still connected, and nothing is kept for them any more.
    server.wait_for_metric("gaterail_sequences_running", |running| running == 0.0);
    server.wait_for_metric(PAGES, |pages| pages == 0.0);
    server.wait_for_metric("gaterail_connections", |open| open <= 1.0);
    // All at once: what is still on its way comes through a window so small that the sender asks for it ever more rarely.
    std::thread::scope(|scope| {
        for stream in &mut readers {
            scope.spawn(move || {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                let whole = b"data: [DONE]\n\n\r\n0\r\n\r\n";
                assert!(!rest.ends_with(whole), "an answer that was cut looks whole");
            });
        }
    });
}

#[test]
fn headers_and_bodies_have_to_arrive() {
    let server = Server::start(&["--header-seconds", "1", "--body-seconds", "1"]);
    let mut silent = server.connect();
    let mut slow = server.connect();
    // Whoever was held up for longer than that is hung up on here already, and in each of these.
    let _ = slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n");
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = server.raw(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"prompt\"");
        if !answer.head.is_empty() {
            break answer;
        }
        assert!(Instant::now() < until, "no answer");
    };
    assert_eq!(answer.status, 408, "{}", answer.head);
    assert_eq!(answer.json()["error"]["code"], "request_timeout");
    for stream in [&mut slow, &mut silent] {
        let began = Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(began.elapsed() < PATIENCE / 2, "the connection stays open");
    }
    // Its sending half closed in the middle of the body: gone.
    let mut closed = server.connect();
    let _ = closed.write_all(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"prompt\"",
    );
    let _ = closed.shutdown(Shutdown::Write);
    let _ = read_answer(&mut closed);
    answers(&server);
}

#[test]
fn one_connection_too_many_is_told_so() {
    // Those who say nothing stay for as long as this takes.
    let server = Server::start(&["--max-connections", "8", "--header-seconds", "600"]);
    let held: Vec<_> = (0..8).map(|_| server.connect()).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = server.get("/health");
        if answer.status == 503 {
            assert_eq!(answer.json()["error"]["code"], "overloaded");
            assert_eq!(answer.header("retry-after"), Some("1"));
            break;
        }
        assert!(Instant::now() < until, "{}", answer.status);
    }
    drop(held);
    while server.get("/health").status != 200 {
        assert!(Instant::now() < until, "the connections are gone");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_queue_refuses_with_a_time_to_come_again() {
    let server = Server::start(&["--max-batch", "1", "--max-queue", "2"]);
    // One that runs lasts for a second or two: where it is over before all have been looked at, there is a next attempt.
    let until = Instant::now() + PATIENCE;
    while !a_full_queue_refuses(&server) {
        assert!(Instant::now() < until, "nobody is refused");
    }
    server.wait_for_metric(PAGES, |pages| pages == 0.0);
    answers(&server);
}

/// One runs, two wait, and the next one is refused; `false` where the first was over before that.
fn a_full_queue_refuses(server: &Server) -> bool {
    let now = |name: &str| metric(&server.get("/metrics").text(), name).expect("a gauge");
    let runs = || now("gaterail_sequences_running") == 1.0;
    let mut held = Vec::new();
    for before in 0..3 {
        let mut stream = server.connect();
        stream.write_all(&endless(true)).expect("it listens");
        held.push(stream);
        let until = Instant::now() + Duration::from_secs(1);
        while !(runs() && now("gaterail_requests_queued") == f64::from(before)) {
            if Instant::now() > until {
                return false;
            }
        }
    }
    let answer = server.post("/v1/completions", &json!({"prompt": [5], "max_tokens": 2}));
    if answer.status == 200 {
        return false;
    }
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "overloaded");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    true
}
