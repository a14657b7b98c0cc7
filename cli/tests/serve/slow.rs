//! Clients that are slow, half there, or gone: nobody else notices, and nothing is kept for them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{PATIENCE, Server, read_answer, request_bytes};

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
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
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
    slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    let mut half = server.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"prompt\"").unwrap();
    let answer = read_answer(&mut half);
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
    closed
        .write_all(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"prompt\"",
        )
        .unwrap();
    closed.shutdown(Shutdown::Write).unwrap();
    let _ = read_answer(&mut closed);
    answers(&server);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = Server::start(&["--max-connections", "8"]);
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
    let mut held: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for (before, stream) in held.iter_mut().enumerate() {
        stream.write_all(&endless(true)).unwrap();
        // The first runs; it lasts for a second or two, so that nothing else may take long.
        match before {
            0 => server.wait_for_metric("gaterail_sequences_running", |running| running == 1.0),
            queued => server.wait_for_metric("gaterail_requests_queued", |all| all == queued as f64),
        }
    }
    let asked = Instant::now();
    let answer = server.post("/v1/completions", &json!({"prompt": [5], "max_tokens": 2}));
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "overloaded");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    println!("refused in {:?}", asked.elapsed());
    drop(held);
    server.wait_for_metric(PAGES, |pages| pages == 0.0);
    answers(&server);
}
