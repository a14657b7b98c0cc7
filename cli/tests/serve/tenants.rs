//! A noisy neighbour: whoever asks for little gets its share beside one whose long prompts fill the batch and the queue. In
//! tokens, not in seconds.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::json;

use crate::keys::add;
use crate::server::{Server, metric, read_answer, request_bytes};

/// What a token of a prompt and of an answer count.
const WEIGHTS: (u64, u64) = (1, 2);
/// Tokens of a prompt and of its answer, and how many there are.
const QUIET: (u64, u64, u64) = (20, 30, 120);
const NOISY: (u64, u64, u64) = (1000, 150, 40);
/// What the noisy one may have had for each token of the quiet one: as much, give or take one that runs and is not stopped.
const FAIR: std::ops::Range<f64> = 0.6..1.6;
/// What the noisy one has between the looks at the counters and the quiet one's time counts, too. On a machine that stands
/// still there it is much, so that one fair round is asked for; a server that is not fair has none.
const ROUNDS: usize = 5;

fn weighed((prompt, answer, count): (u64, u64, u64)) -> u64 {
    (prompt * WEIGHTS.0 + answer * WEIGHTS.1) * count
}

/// Prompts of their own, in one body: they are there at once.
fn body((prompt, answer, count): (u64, u64, u64), round: usize) -> Vec<u8> {
    let token = |at: u64, i: u64| 300 + (at * 7919 + i * 31 + round as u64 * 101 + prompt) % 600;
    let prompts: Vec<Vec<u64>> =
        (0..count).map(|at| (0..prompt).map(|i| token(at, i * i)).collect()).collect();
    json!({"prompt": prompts, "max_tokens": answer, "ignore_eos": true, "temperature": 0, "stream": true})
        .to_string()
        .into_bytes()
}

struct House {
    server: Server,
    operator: String,
}

impl House {
    fn ask(&self, key: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.server.connect();
        let bearer = format!("Bearer {key}");
        let bytes = request_bytes("POST", "/v1/completions", &[("authorization", &bearer)], body);
        stream.write_all(&bytes).expect("it listens");
        stream
    }

    fn look(&self, names: [&str; 2]) -> [f64; 2] {
        let bearer = format!("Bearer {}", self.operator);
        let page = self.server.request("GET", "/metrics", &[("authorization", &bearer)], b"").text();
        names.map(|name| metric(&page, name).expect(name))
    }

    /// Tokens that were computed and said for all, by their weight.
    fn had(&self) -> u64 {
        let [prompt, answer] = self.look(["gaterail_prompt_tokens_total", "gaterail_generated_tokens_total"]);
        prompt as u64 * WEIGHTS.0 + answer as u64 * WEIGHTS.1
    }

    /// What the noisy one had while the quiet one had work, for each token of the quiet one.
    fn round(&self, (noisy, quiet): (&str, &str), round: usize) -> f64 {
        self.server.wait_for_requests(&self.operator, 0.0);
        let mut noise = self.ask(noisy, &body(NOISY, round));
        // It runs, and has the batch for itself.
        noise.read_exact(&mut [0; 512]).expect("an answer");
        let mut read = noise.try_clone().expect("a second handle");
        let reader = std::thread::spawn(move || std::io::copy(&mut read, &mut std::io::sink()));
        let before = self.had();
        let answer = read_answer(&mut self.ask(quiet, &body(QUIET, round)));
        let all = self.had() - before;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
        noise.shutdown(Shutdown::Both).expect("it was open");
        let _ = reader.join().expect("a reader");
        (all - weighed(QUIET)) as f64 / weighed(QUIET) as f64
    }
}

#[test]
fn who_asks_for_little_gets_its_share_beside_who_asks_for_much() {
    let folder = tempfile::tempdir().expect("a folder");
    let [noisy, quiet, operator] = ["noisy", "quiet", "operator"].map(|name| add(&folder, &[name]));
    let server = Server::start_in(folder, &["--max-batch", "4", "--max-queue", "1000"]);
    let house = House { server, operator };
    let mut shares = Vec::new();
    while shares.len() < ROUNDS && !shares.last().is_some_and(|share| FAIR.contains(share)) {
        shares.push(house.round((&noisy, &quiet), shares.len()));
    }
    println!("for each token of the quiet tenant the noisy one had {shares:?}");
    assert!(shares.last().is_some_and(|share| FAIR.contains(share)), "{shares:?}");
}
