//! Ten times as many clients as the server has places for: those who are in are served as fast as before, and the others
//! are told at once.
//!
//! Both loads are measured in turn in one run, so that a machine that others use, too, slows both alike.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Answer, PATIENCE, Server, read_answer, request_bytes};

/// Those who run and those who wait.
const BATCH: usize = 2;
const QUEUE: usize = 2;
const PLACES: usize = BATCH + QUEUE;
const CLIENTS: usize = 10 * PLACES;
/// A client that was refused comes again after this time, sooner than it is told to.
const COMES_AGAIN: Duration = Duration::from_millis(250);
const WINDOW: Duration = Duration::from_millis(1500);
/// From one load to the other.
const SETTLE: Duration = Duration::from_millis(500);
const PAIRS_MIN: usize = 7;
const PAIRS_MAX: usize = 21;
const GOODPUT_SHARE: f64 = 0.9;
const REFUSED_WITHIN: Duration = Duration::from_millis(50);

/// What all clients saw.
#[derive(Default)]
struct Seen {
    whole: Vec<Instant>,
    refused: Vec<Duration>,
    wrong: Vec<String>,
}

struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    overload: AtomicBool,
    over: AtomicBool,
    seen: Mutex<Seen>,
}

#[test]
fn ten_times_the_load_takes_nothing_from_those_who_are_served() {
    let flags = ["--max-batch", &BATCH.to_string(), "--max-queue", &QUEUE.to_string(), "--log", "off"];
    let prompt = "Once upon a time there was a small town by the sea. ".repeat(20);
    let body = json!({"prompt": prompt, "max_tokens": 16, "ignore_eos": true, "temperature": 0}).to_string();
    let server = Server::start(&flags);
    let load = Arc::new(Load {
        address: server.address,
        request: request_bytes("POST", "/v1/completions", &[], body.as_bytes()),
        overload: AtomicBool::new(false),
        over: AtomicBool::new(false),
        seen: Mutex::default(),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|at| {
            let load = load.clone();
            std::thread::spawn(move || load.client(at >= PLACES))
        })
        .collect();
    std::thread::sleep(SETTLE);
    let mut shares = Vec::new();
    while shares.len() < PAIRS_MIN || (median(&shares) < GOODPUT_SHARE && shares.len() < PAIRS_MAX) {
        // Every other pair begins with the overload: what the machine does beside falls on both.
        let first = load.rate(shares.len() % 2 == 1);
        let second = load.rate(shares.len() % 2 == 0);
        let (plain, overload) = if shares.len() % 2 == 0 { (first, second) } else { (second, first) };
        println!("{plain:.1} answers a second without overload, {overload:.1} with");
        // A window in which the machine stood still says nothing.
        if plain > 0.0 {
            shares.push(overload / plain);
        }
    }
    load.over.store(true, Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("a client"));
    let seen = load.seen.lock().expect("whole");
    assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    let mut waits = seen.refused.clone();
    waits.sort();
    assert!(waits.len() > CLIENTS, "only {} were refused", waits.len());
    let (half, most) = (waits[waits.len() / 2], waits[waits.len() * 9 / 10]);
    println!("{} refused: half within {half:?}, nine of ten within {most:?}", waits.len());
    println!("with overload {:.2} of the answers without", median(&shares));
    assert!(half <= REFUSED_WITHIN, "half of the refusals took longer than {half:?}");
    assert!(median(&shares) >= GOODPUT_SHARE, "{shares:?}");
    server.wait_for_metric("gaterail_kv_pages_used", |pages| pages == 0.0);
}

impl Load {
    /// Asks, and asks again; one that is `extra` only while there is overload.
    fn client(&self, extra: bool) {
        while !self.over.load(Relaxed) {
            if extra && !self.overload.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let asked = Instant::now();
            let answer = self.ask();
            let took = asked.elapsed();
            let come_again = answer.header("retry-after").and_then(|wait| wait.parse::<u64>().ok());
            let mut seen = self.seen.lock().expect("whole");
            match (answer.status, come_again) {
                (200, _) => seen.whole.push(Instant::now()),
                (429 | 503, Some(1..)) => {
                    seen.refused.push(took);
                    drop(seen);
                    std::thread::sleep(COMES_AGAIN);
                }
                _ => seen.wrong.push(format!("{} {}", answer.head, answer.text())),
            }
        }
    }

    fn ask(&self) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // A server may refuse before it has read all.
        let _ = stream.write_all(&self.request);
        read_answer(&mut stream)
    }

    /// Whole answers a second.
    fn rate(&self, overload: bool) -> f64 {
        self.overload.store(overload, Relaxed);
        std::thread::sleep(SETTLE);
        let began = Instant::now();
        std::thread::sleep(WINDOW);
        let ended = Instant::now();
        let seen = self.seen.lock().expect("whole");
        let within = seen.whole.iter().filter(|at| (began..ended).contains(at)).count();
        within as f64 / (ended - began).as_secs_f64()
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
