//! Workers do not change an answer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{page, wait_for_workers};
use crate::server::{PATIENCE, Server};

/// Greedy and sampled, with log-probabilities, several choices, and a prompt that says something.
fn questions() -> Vec<(&'static str, Value)> {
    vec![
        (
            "/v1/completions",
            json!({"prompt": [9, 8, 7, 6, 5], "max_tokens": 48, "ignore_eos": true, "logprobs": 5, "temperature": 0.0}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "What is 27 + 58?", "max_tokens": 24, "logprobs": 3, "temperature": 1.3, "seed": 11, "n": 3}),
        ),
        (
            "/v1/completions",
            json!({"prompt": [5, 6, 7], "max_tokens": 4, "echo": true, "logprobs": 1, "temperature": 0.0}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "What is 27 + 58?"}], "logprobs": true, "top_logprobs": 4, "temperature": 0.0}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "Sort: c a b"}], "temperature": 0.8, "top_p": 0.9, "seed": 5, "max_tokens": 40}),
        ),
    ]
}

fn answers(server: &Server) -> Vec<Value> {
    let ask = |(path, body): (&str, Value)| {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["choices"].clone()
    };
    questions().into_iter().map(ask).collect()
}

#[test]
fn answers_are_those_of_one_process() {
    let alone = answers(&Server::start(&[]));
    assert!(
        alone.iter().all(|choices| choices[0]["logprobs"].is_object() || choices[0]["message"].is_object())
    );
    for flags in [
        &["--workers", "2"][..],
        &["--workers", "2", "--parallel", "tp", "--no-shared-memory"],
        &["--workers", "3", "--expert-copies", "2"],
        &["--workers", "1", "--local-experts", "--parallel", "tp"],
        // Two micro-batches in flight wherever two rows are there.
        &["--workers", "2", "--overlap-rows", "2"],
        &["--workers", "2", "--overlap-rows", "2", "--parallel", "tp", "--no-shared-memory"],
    ] {
        let server = Server::start(flags);
        let found = answers(&server);
        for ((asked, ours), theirs) in questions().iter().zip(found).zip(&alone) {
            assert_eq!(&ours, theirs, "{flags:?}: {asked:?}");
        }
        let page = page(&server);
        let split = page["step"]["overlapped"].as_u64().expect("a count");
        assert_eq!(split > 0, flags.contains(&"--overlap-rows"), "{flags:?}: {split} steps");
    }
}

/// Figures are those of the last second, and workers say what they did with their next heartbeat.
fn wait_until_told(server: &Server) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        // Whoever looks late finds a second in which nothing was asked.
        server.post("/v1/completions", &json!({"prompt": [5, 6], "max_tokens": 200, "ignore_eos": true}));
        let page = wait_for_workers(server, 2);
        let workers = page["cluster"]["workers"].as_array().expect("a list");
        let told = workers.iter().all(|at| at["calls"].as_u64() > Some(100));
        if told && page["step"]["shares"]["experts"].as_f64() > Some(0.0) {
            return page;
        }
        assert!(Instant::now() < until, "nobody tells: {page:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_page_shows_who_computes() {
    // Nobody is missed who is only held up: no step stands still.
    let flags = ["--workers", "2", "--parallel", "tp", "--worker-silence-seconds", "60"];
    let mut server = Server::start(&flags);
    let shown = wait_until_told(&server);
    let (cluster, step) = (&shown["cluster"], &shown["step"]);
    assert_eq!((&cluster["mode"], &cluster["copies"]), (&json!("tp"), &json!(1)));
    for worker in cluster["workers"].as_array().expect("a list") {
        assert_eq!(worker["experts"], 32, "each has a part of all 8 experts of 4 layers: {worker:#}");
        assert_eq!(worker["exchange"], "shared memory");
        assert!(worker["held_bytes"].as_u64() > Some(0), "{worker:#}");
    }
    let shares = step["shares"].as_object().expect("parts");
    let sum: f64 = shares.values().map(|share| share.as_f64().expect("a number")).sum();
    assert!((sum - 1.0).abs() < 1e-6 && shares["experts"].as_f64() > Some(0.0), "{step:#}");
    let metrics = server.get("/metrics").text();
    for part in [
        "gaterail_workers 2\n",
        "gaterail_workers_plan_whole 1\n",
        "gaterail_worker_experts{worker=",
        "name=\"worker-1\"} 32\n",
        "gaterail_step_part_seconds_total{model_name=\"demo\",part=\"attention\"}",
        "gaterail_step_stalls_total{model_name=\"demo\"} 0\n",
    ] {
        assert!(metrics.contains(part), "{part:?} is not in:\n{metrics}");
    }
    let url = format!("http://{}", server.address);
    let status = |flags: &[&str]| {
        let output =
            crate::server::gaterail(&server.folder, &["status", &url]).args(flags).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let text = status(&[]);
    for part in [
        "demo: ready",
        "2 workers, tp, epoch",
        "worker-0",
        "worker-1",
        "serving",
        "shared memory",
        "attention",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let json: Value = serde_json::from_str(&status(&["--json"])).expect("JSON");
    assert_eq!(json["cluster"]["workers"].as_array().map(Vec::len), Some(2));
    server.signal("TERM");
    assert!(server.wait().success());
}

#[test]
fn a_server_without_workers_says_so() {
    let server = Server::start(&["--workers", "2", "--parallel", "auto"]);
    assert!(page(&server)["cluster"].is_null());
    server.post("/v1/completions", &json!({"prompt": [5, 6], "max_tokens": 3}));
    assert_eq!(server.get("/cluster").json()["status"], "ready");
}
