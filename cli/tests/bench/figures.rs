//! Figures of answers whose times are known. A busy machine only adds time, so the script's times are lower bounds of all
//! answers; that they are the upper ones, too, is asked of the quickest.

use serde_json::{Value, json};

use crate::fake::{Fake, Reply, Step, good, text, usage};
use crate::run::{bench, command, numbers};

/// What a machine may add to the quickest of several answers, in ms.
const SLACK_MS: f64 = 40.0;

/// Runs until the quickest answer took what a machine may add, at most: one that is busy for all of a run gets another.
const RUNS: usize = 10;

/// Whether the quickest of them took hardly more; none took less.
fn near(seconds: &[f64], ms: f64, what: &str) -> bool {
    let least = seconds.iter().copied().fold(f64::INFINITY, f64::min) * 1e3;
    assert!(least >= ms - 0.5, "{what}: {least} ms instead of {ms}");
    eprintln!("{what}: {least} ms instead of {ms}");
    least < ms + SLACK_MS
}

/// 60 ms, then 5 parts every 20 ms, 11 tokens: TTFT 60, ITL 20, end to end 160, TPOT 100 / 10 = 10.
#[test]
fn the_scripts_times_come_back() {
    assert!((0..RUNS).any(|_| the_scripts_times_came_back()), "never the times of the script");
}

fn the_scripts_times_came_back() -> bool {
    let fake = Fake::start(|_, _| Reply::Stream(good(60, 5, 20, 11)));
    let ran =
        bench(&fake, &["--concurrency", "2", "--requests", "8", "--input-len", "10", "--output-len", "11"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!((ran.number("completed"), ran.number("failed")), (8.0, 0.0));
    assert_eq!((ran.number("total_input_tokens"), ran.number("total_output_tokens")), (80.0, 88.0));
    assert_eq!(ran.numbers("input_lens"), [10.0; 8]);
    assert_eq!(ran.numbers("output_lens"), [11.0; 8]);
    let (ttfts, latencies) = (ran.numbers("ttfts"), ran.numbers("latencies"));
    let itls: Vec<Vec<f64>> = ran.result()["itls"].as_array().expect("lists").iter().map(numbers).collect();
    let mut all_near = near(&ttfts, 60.0, "TTFT") && near(&latencies, 160.0, "end to end");
    assert!(itls.iter().all(|itls| itls.len() == 5), "six parts, not eleven tokens: {itls:?}");
    // An event that was read late makes the next distance short; all of them lie between the first and the last, and in an
    // answer that began and ended as the script has it so do their means.
    let mut means = Vec::new();
    for ((itls, ttft), latency) in itls.iter().zip(&ttfts).zip(&latencies) {
        let sum = itls.iter().sum::<f64>();
        assert!(sum <= latency - ttft + 1e-3, "{sum} s between the first and the last of {latency} s");
        if *ttft < (60.0 + SLACK_MS) / 1e3 && *latency < (160.0 + SLACK_MS) / 1e3 {
            means.push(sum / 5.0 * 1e3);
        }
    }
    all_near &= means.iter().all(|mean| *mean > 12.0 - 0.5 && *mean < 20.0 + SLACK_MS) && !means.is_empty();
    // Each figure is that of the lists beside it, by the definitions.
    let tpots: Vec<f64> =
        latencies.iter().zip(&ttfts).map(|(latency, ttft)| (latency - ttft) / 10.0).collect();
    for (name, values) in [("ttft", ttfts), ("tpot", tpots), ("e2el", latencies), ("itl", itls.concat())] {
        let mean = values.iter().sum::<f64>() / values.len() as f64 * 1e3;
        assert!((ran.number(&format!("mean_{name}_ms")) - mean).abs() < 1e-6, "{name}");
        let order = ["median", "p90", "p95", "p99"].map(|part| ran.number(&format!("{part}_{name}_ms")));
        assert!(order.is_sorted(), "{name}: {order:?}");
    }
    let duration = ran.number("duration");
    assert!(duration >= 0.64, "8 answers of 160 ms, two at a time, in {duration} s");
    assert!((ran.number("output_throughput") - 88.0 / duration).abs() < 1e-6);
    assert!((ran.number("total_token_throughput") - 168.0 / duration).abs() < 1e-6);
    assert!((ran.number("request_throughput") - 8.0 / duration).abs() < 1e-6);
    assert_eq!(ran.number("max_concurrent_requests"), 2.0);
    assert!(ran.out.contains("c=2") && ran.out.contains("output tokens/s"), "{}", ran.out);
    all_near
}

/// A role is no part of the answer: TTFT ends 50 ms later. Reasoning is one.
#[test]
fn a_chats_role_is_no_token() {
    let fake = Fake::start(|_, body| {
        assert_eq!(body["messages"][0]["role"], "user");
        let delta = |delta: Value, finish: Option<&str>| {
            Step::Event(json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
        };
        Reply::Stream(vec![
            delta(json!({"role": "assistant", "content": ""}), None),
            Step::Line(": ping".to_string()),
            Step::Wait(50),
            delta(json!({"reasoning_content": "hm"}), None),
            Step::Wait(30),
            delta(json!({"content": "yes"}), None),
            delta(json!({}), Some("stop")),
            Step::Event(usage(10, 3)),
            Step::Done,
        ])
    });
    let times_came_back = |_| {
        let ran = bench(&fake, &["--endpoint", "chat", "--requests", "4", "--input-len", "10"]);
        assert_eq!(ran.number("total_output_tokens"), 12.0);
        assert_eq!(ran.result()["itls"][0].as_array().map(Vec::len), Some(1));
        assert_eq!(ran.result()["endpoint_type"], "openai-chat");
        near(&ran.numbers("ttfts"), 50.0, "TTFT") && near(&ran.numbers("latencies"), 80.0, "end to end")
    };
    assert!((0..RUNS).any(times_came_back), "never the times of the script");
}

/// Every second answer takes 400 ms to its first token: half of the requests keep 300.
#[test]
fn goodput_counts_what_kept_the_promise() {
    let fake = Fake::start(|number, _| Reply::Stream(good(if number % 2 == 0 { 0 } else { 400 }, 1, 0, 3)));
    let flags =
        ["--requests", "8", "--warmup", "0", "--input-len", "5", "--goodput", "ttft:300", "tpot:5000"];
    let half_of_them_kept_it = |_| {
        let ran = bench(&fake, &flags);
        let kept = ran.numbers("ttfts").iter().filter(|ttft| **ttft <= 0.3).count();
        let share = ran.number("request_goodput") / ran.number("request_throughput");
        assert!(
            (share - kept as f64 / 8.0).abs() < 1e-9 && share < 0.5 + 1e-9,
            "{share} of which {kept} kept it"
        );
        // On a machine that stood still for a while fewer than half did.
        kept == 4
    };
    assert!((0..RUNS).any(half_of_them_kept_it), "never half of them");
}

#[test]
fn without_usage_tokens_are_known_only_from_the_limit() {
    let answer = |finish: &'static str| {
        move |_, _: &Value| {
            Reply::Stream(vec![
                Step::Event(text("a", None)),
                Step::Event(text("b c d", Some(finish))),
                Step::Done,
            ])
        }
    };
    let flags = ["--requests", "3", "--input-len", "5", "--output-len", "7"];
    let limit = bench(&Fake::start(answer("length")), &flags);
    assert_eq!(limit.number("total_output_tokens"), 21.0);
    assert!(limit.err.contains("no usage for 3 answers; they ended at their limit"), "{}", limit.err);
    let unknown = bench(&Fake::start(answer("stop")), &flags);
    assert_eq!(unknown.number("completed"), 3.0);
    for field in ["total_output_tokens", "output_throughput", "total_token_throughput", "mean_tpot_ms"] {
        assert!(unknown.result()[field].is_null(), "{field}: chunks are not tokens");
    }
    assert!(unknown.number("mean_ttft_ms") > 0.0);
    assert!(unknown.err.contains("their tokens are not known"), "{}", unknown.err);
}

/// What the bench itself takes, with a server that says all it has at once: 200 events an answer.
#[test]
fn the_benchs_own_work_is_small() {
    let fake = Fake::start(|_, _| Reply::Stream(good(0, 199, 0, 200)));
    let flags = ["--concurrency", "4", "--requests", "100", "--input-len", "5", "--output-len", "200"];
    // Who shares a core's caches takes more of its time, too.
    let is_small = |_| {
        let ran = bench(&fake, &flags);
        assert_eq!(ran.number("completed"), 100.0);
        let cpu = ran.number("client_cpu_us_per_event");
        println!("{cpu:.1} us of CPU time an event; median answer {:.2} ms", ran.number("median_e2el_ms"));
        cpu < 50.0
    };
    assert!((0..RUNS).any(is_small), "more than 50 us of CPU time for an event, each time");
}

#[test]
fn saved_results_stand_side_by_side() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (folder.path().join("ours.json"), folder.path().join("vllm.json"));
    let plot = folder.path().join("plot.html");
    let fake = Fake::start(|_, _| Reply::Stream(good(1, 2, 1, 5)));
    let run = command(&fake, &["--requests", "2", "--input-len", "5", "--label", "mine", "--json"])
        .arg(&ours)
        .output();
    assert!(run.expect("the binary runs").status.success());
    // Fields as `vllm bench serve --save-result` writes them, indented or not.
    let saved = json!({"label": null, "model_id": "m", "request_rate": "inf", "max_concurrency": 16, "completed": 3,
        "failed": 0, "output_throughput": 777.25, "median_ttft_ms": 12.5, "ttfts": [0.01, 0.02], "itls": [[0.1], [0.2]],
        "output_lens": [2, 2]});
    std::fs::write(&theirs, format!("{saved:#}")).expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gaterail"))
        .args(["bench", "--plot"])
        .arg(&plot)
        .arg("--compare")
        .args([&ours, &theirs])
        .output()
        .expect("the binary runs");
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.lines().next().expect("a heading").contains("mine c=1"), "{out}");
    assert!(out.contains("vllm c=16") && out.contains("777.2") && out.contains("12.50"), "{out}");
    let picture = std::fs::read_to_string(plot).expect("a picture");
    assert!(picture.starts_with("<!doctype html>") && picture.contains("vllm c=16"));
    // Five panels' worth of text: title, both names, and the axes' unit under three of them.
    assert_eq!(picture.matches("ms, logarithmic").count(), 3);
}
