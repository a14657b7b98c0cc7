//! What is sent, and when.

use serde_json::{Value, json};

use crate::fake::{Fake, Reply, good};
use crate::run::bench;

fn quick() -> Fake {
    Fake::start(|_, _| Reply::Stream(good(0, 1, 0, 3)))
}

fn prompts(fake: &Fake) -> Vec<String> {
    fake.asked().iter().map(|body| body["prompt"].as_str().expect("a text").to_string()).collect()
}

/// Bodies in their order, the warm-up included: the same from one seed, others from another, exactly as long as was asked.
#[test]
fn a_seed_asks_the_same_again() {
    let asked = |seed: &str| {
        let fake = quick();
        let flags = [
            "--requests",
            "12",
            "--input-len",
            "uniform:3:40",
            "--output-len",
            "normal:20:5",
            "--seed",
            seed,
        ];
        assert_eq!(bench(&fake, &flags).number("completed"), 12.0);
        fake.asked()
    };
    let first = asked("7");
    assert_eq!(first, asked("7"));
    assert_ne!(first, asked("8"));
    let lengths: Vec<usize> =
        first.iter().map(|body| body["prompt"].as_str().expect("a text").split(' ').count()).collect();
    assert!(lengths.iter().all(|length| (3..=40).contains(length)), "{lengths:?}");
    assert!(lengths.iter().any(|length| *length != lengths[0]));
    for body in &first {
        assert_eq!(body["min_tokens"], body["max_tokens"]);
        assert_eq!(
            (&body["ignore_eos"], &body["stream"], &body["temperature"]),
            (&json!(true), &json!(true), &json!(0.0))
        );
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
    }
}

#[test]
fn prefixes_are_shared_by_as_many_as_were_asked_for() {
    let fake = quick();
    let flags = [
        "--requests",
        "40",
        "--warmup",
        "0",
        "--input-len",
        "10",
        "--shared-prefix",
        "50",
        "--prefixes",
        "3",
    ];
    bench(&fake, &flags);
    let prompts = prompts(&fake);
    let part = |prompt: &str, from: usize, to: usize| {
        prompt.split(' ').skip(from).take(to - from).collect::<Vec<_>>().join(" ")
    };
    let distinct = |from: usize, to: usize| {
        prompts.iter().map(|prompt| part(prompt, from, to)).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert!(prompts.iter().all(|prompt| prompt.split(' ').count() == 60));
    assert_eq!((distinct(0, 50), distinct(50, 60)), (3, 40));
}

/// Answers of 400 ms at 50 requests a second: twenty are under way together, whether or not the first have ended.
#[test]
fn an_open_loop_waits_for_nobody() {
    let fake = Fake::start(|_, _| Reply::Stream(good(400, 1, 0, 3)));
    let ran = bench(
        &fake,
        &["--rate", "50", "--requests", "25", "--warmup", "0", "--input-len", "4", "--seed", "3"],
    );
    assert_eq!(ran.number("completed"), 25.0, "{}", ran.err);
    assert_eq!(ran.result()["request_rate"], json!(50.0));
    let starts = ran.numbers("start_times");
    assert!(starts[24] >= 0.5 - 1e-3, "25 at 50 a second end at 0.5 s: {starts:?}");
    // Each is sent by a thread of its own, so that one may overtake another by as much as that one is late.
    let late = ran.number("max_late_ms") / 1e3;
    assert!(starts.windows(2).all(|two| two[0] <= two[1] + late + 1e-3), "{late}: {starts:?}");
    assert!(starts[24] <= 0.5 + late + 1e-3);
    assert!(ran.number("max_concurrent_requests") >= 10.0, "{}", ran.out);
}

#[test]
fn a_trace_is_replayed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.jsonl");
    let lines = [
        json!({"timestamp": 5000, "input_length": 6, "output_length": 2}),
        json!({"timestamp": 5300, "prompt": "as it is", "output_length": 9}),
    ];
    std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).expect("written");
    let fake = quick();
    let ran = bench(&fake, &["--warmup", "0", "--trace", path.to_str().expect("UTF-8")]);
    let mut asked = fake.asked();
    // Each is sent by a thread of its own, and one that is late comes last; when they were sent is looked at below.
    asked.sort_by_key(|body| body["max_tokens"].as_u64());
    let limits: Vec<&Value> = asked.iter().map(|body| &body["max_tokens"]).collect();
    assert_eq!(limits, [&json!(2), &json!(9)]);
    assert_eq!(
        (asked[0]["prompt"].as_str().map(|text| text.split(' ').count()), &asked[1]["prompt"]),
        (Some(6), &json!("as it is"))
    );
    assert!(ran.numbers("start_times")[1] >= 0.3 - 1e-3);
}

/// Time ends a closed loop; several values of a flag are several runs.
#[test]
fn runs_end_in_time_and_stand_side_by_side() {
    // Where the machine stands still for a part of that time there is another run, and a longer one.
    let as_much_as_that = ["0.5", "2", "8", "32"].into_iter().any(ended_in_time);
    assert!(as_much_as_that, "hardly anything was completed in any time");
}

fn ended_in_time(seconds: &str) -> bool {
    let fake = Fake::start(|_, _| Reply::Stream(good(20, 1, 0, 3)));
    let ran = bench(&fake, &["--concurrency", "1,4", "--seconds", seconds, "--input-len", "12"]);
    assert_eq!(ran.results.len(), 2, "{}", ran.err);
    let completed = |index: usize| ran.results[index]["completed"].as_f64().expect("a number");
    // At 20 ms an answer: so many by one at most, and up to four times as many by four.
    let most = seconds.parse::<f64>().expect("a number") / 0.02 + 1.0;
    assert!(completed(0) <= most && completed(1) <= 4.0 * most, "{}", ran.out);
    // A prompt that came twice would be in the server's cache.
    let (prompts, asked) = (prompts(&fake), fake.asked().len());
    assert_eq!(prompts.into_iter().collect::<std::collections::BTreeSet<_>>().len(), asked);
    let heading = ran.out.lines().next().expect("a heading");
    assert!(heading.contains("c=1") && heading.contains("c=4"), "{heading}");
    completed(0) >= 2.0 && completed(1) > completed(0)
}

#[test]
fn what_makes_no_sense_is_refused() {
    let fake = quick();
    for (flags, says) in [
        (["--concurrency", "0"].as_slice(), "--concurrency is 0"),
        (&["--rate", "nan"], "--rate is NaN"),
        (&["--rate", "2", "--concurrency", "3"], "cannot be used with"),
        (&["--input-len", "0"], "is no length"),
        (&["--goodput", "itl:3"], "ttft:MS"),
        (&["--trace", "/nowhere"], "/nowhere"),
        (&["--timeout", "0"], "--timeout"),
    ] {
        let ran = bench(&fake, flags);
        assert!(ran.code.is_some_and(|code| code != 0) && ran.err.contains(says), "{flags:?}: {}", ran.err);
    }
    assert!(fake.asked().is_empty());
}
