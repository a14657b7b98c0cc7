//! Contract 3 as clients see it: an answer has the same bytes alone, among others, with a cached prefix, in any chunks, and
//! when its pages were taken away in the middle.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::server::{Server, metric, read_answer, request_bytes};

/// 16 pages of the demo model's KV.
const FEW_PAGES: &str = "2MiB";
const PROMPTS: usize = 8;
/// With its prompt each needs six pages or more: no three of them fit beside each other to their ends.
const ANSWER: usize = 300;

fn prompt(at: usize) -> Vec<usize> {
    let own = [1, 28, 29, 64, 100, 92, 7, 155][at % 8];
    let token = |seed: usize| 300 + seed.wrapping_mul(2_654_435_761) % 600;
    (0..100).map(token).chain((0..own).map(|i| token(1000 * (at + 1) + i))).collect()
}

/// What is asked of all prompts, greedy and drawn.
fn asked(prompt: Value, temperature: f64) -> Value {
    json!({
        "prompt": prompt, "max_tokens": ANSWER, "ignore_eos": true, "temperature": temperature, "seed": 11,
        "top_p": 0.95, "frequency_penalty": 0.2, "logprobs": 3, "return_tokens_as_token_ids": true,
    })
}

fn answer(server: &Server, body: &Value) -> Value {
    let answer = server.post("/v1/completions", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// An answer's choices without their places.
fn choices(answer: &Value) -> Vec<Value> {
    let mut choices = answer["choices"].as_array().expect("choices").clone();
    choices.iter_mut().for_each(|choice| choice["index"] = Value::Null);
    choices
}

/// The choices that a stream told piece by piece.
fn streamed(server: &Server, mut body: Value) -> Vec<Value> {
    let one = body["prompt"].as_array().expect("prompts").len();
    body["stream"] = json!(true);
    let answer = server.post("/v1/completions", &body);
    let mut events = answer.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", answer.text());
    let mut choices = vec![json!({"text": "", "logprobs": {}}); one];
    for event in events {
        let event: Value = serde_json::from_str(&event).expect("JSON");
        let piece = &event["choices"][0];
        let choice = &mut choices[piece["index"].as_u64().expect("a place") as usize];
        choice["text"] =
            json!([choice["text"].as_str(), piece["text"].as_str()].map(Option::unwrap).concat());
        for (name, more) in piece["logprobs"].as_object().into_iter().flatten() {
            let known = choice["logprobs"][name].as_array().cloned().unwrap_or_default();
            choice["logprobs"][name] = json!([&known[..], more.as_array().expect("a list")].concat());
        }
    }
    choices
}

fn preemptions(server: &Server) -> f64 {
    metric(&server.get("/metrics").text(), "gaterail_preemptions_total").expect("a counter")
}

/// Text and log-probabilities of every choice.
fn said(choices: &[Value]) -> Vec<[Value; 2]> {
    choices.iter().map(|choice| [choice["text"].clone(), choice["logprobs"].clone()]).collect()
}

#[test]
fn who_loses_its_pages_says_what_it_says_alone() {
    let alone = Server::start(&[]);
    let prompts: Vec<Vec<usize>> = (0..PROMPTS).map(prompt).collect();
    let mut few = Server::start(&["--kv-memory", FEW_PAGES, "--step-tokens", "48"]);
    for temperature in [0.0, 0.9] {
        let expected: Vec<Value> = prompts
            .iter()
            .flat_map(|own| choices(&answer(&alone, &asked(json!(own), temperature))))
            .collect();
        // Alone with its prompt in the cache.
        for (own, expected) in prompts.iter().zip(&expected) {
            let again = answer(&alone, &asked(json!(own), temperature));
            assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() >= Some(64), "{again}");
            assert_eq!(choices(&again), std::slice::from_ref(expected));
        }
        // One body, so that all are there at once, however slow this machine is: they cannot all keep their pages.
        let before = preemptions(&few);
        let crowd = answer(&few, &asked(json!(prompts), temperature));
        assert_eq!(choices(&crowd), expected, "temperature {temperature}");
        let between = preemptions(&few);
        assert!(between > before, "nobody was preempted");
        // The same as streams.
        assert_eq!(said(&streamed(&few, asked(json!(prompts), temperature))), said(&expected));
        assert!(preemptions(&few) > between, "no stream was preempted");
    }
    let line = few.line_with(&["route=/v1/completions", " preemptions="]);
    let said = line.split(" preemptions=").nth(1).and_then(|rest| rest.split_whitespace().next());
    assert!(said.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 0), "{line}");
    few.wait_for_metric("gaterail_kv_pages_used", |pages| pages == 0.0);
}

/// What the prompt costs is counted, whether its choices find a place at once or one after the other.
#[test]
fn four_choices_cost_one_prompt() {
    let mut texts = Vec::new();
    for flags in [&["--max-batch", "16"][..], &["--max-batch", "1"], &["--no-prefix-cache"]] {
        let server = Server::start(flags);
        let (mut body, mut computed) = (asked(json!([]), 0.9), 0);
        body["max_tokens"] = json!(40);
        let ask = |n: usize, length: usize| {
            let mut body = body.clone();
            // Nobody's beginning is another's.
            let own = [&[300 + length], &prompt(2)[1..length]].concat();
            (body["n"], body["prompt"]) = (json!(n), json!(own));
            choices(&answer(&server, &body))
        };
        // A page holds 64: one that is full, one that is not, and both.
        for length in [64, 40, 129] {
            let four = ask(4, length);
            let page = server.get("/metrics").text();
            computed += length;
            assert_eq!(metric(&page, "gaterail_prompt_tokens_total"), Some(computed as f64), "{length}");
            // The first is what one alone is; the others are their own.
            assert_eq!(ask(1, length), four[..1]);
            assert!(four[1..].iter().all(|other| *other != four[0]));
            let page = server.get("/metrics").text();
            computed = metric(&page, "gaterail_prompt_tokens_total").expect("a counter") as usize;
            texts.push(four);
        }
    }
    assert!(texts.chunks(3).all(|other| other == &texts[..3]));
}

#[test]
fn company_and_chunks_change_nothing() {
    let bodies: Vec<Value> = (0..16)
        .map(|at| {
            let mut body = asked(json!(prompt(at)), [0.0, 0.7, 1.2][at % 3]);
            body["seed"] = json!(at);
            body["max_tokens"] = json!(20 + 7 * at);
            body["n"] = json!([1, 1, 3][at % 3]);
            body
        })
        .collect();
    let alone = Server::start(&[]);
    let expected: Vec<Vec<Value>> = bodies.iter().map(|body| choices(&answer(&alone, body))).collect();
    for flags in [&["--step-tokens", "16", "--no-prefix-cache"][..], &["--step-tokens", "23"], &[]] {
        let server = Server::start(flags);
        let mut asked: Vec<TcpStream> = bodies
            .iter()
            .map(|body| {
                let (mut stream, body) = (server.connect(), body.to_string());
                let bytes = request_bytes("POST", "/v1/completions", &[], body.as_bytes());
                stream.write_all(&bytes).expect("it listens");
                stream
            })
            .collect();
        for (at, stream) in asked.iter_mut().enumerate() {
            assert_eq!(choices(&read_answer(stream).json()), expected[at], "{flags:?} {}", bodies[at]);
        }
        server.wait_for_metric("gaterail_kv_pages_used", |pages| pages == 0.0);
    }
}
