//! What is not a whole answer is counted by its kind, and is in no time.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fake::{Fake, Reply, Step, good, text};
use crate::run::{bench, command};

fn error(message: &str) -> Value {
    json!({"error": {"message": message, "type": "t", "param": null, "code": null}})
}

#[test]
fn failures_are_counted_by_kind_and_never_averaged_in() {
    // Whoever stands still for as long as a request may take meets that limit where the script does not, and gets a longer one.
    let mut found = Value::Null;
    let as_scripted = [2, 10, 60].into_iter().any(|timeout| {
        found = failures(timeout);
        found["timeout"] == 1
    });
    assert!(as_scripted, "{found}");
}

/// A full disk shows in writing; here a limit on files does.
#[test]
fn a_result_that_cannot_be_written_takes_none_along() {
    let fake = Fake::start(|_, _| Reply::Stream(good(0, 0, 2, 2)));
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("results.json");
    std::fs::write(&json, "of an earlier run").expect("written");
    let command = command(&fake, &["--requests", "1", "--warmup", "0", "--output-len", "2"]);
    let mut full = Command::new("sh");
    full.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]).arg(command.get_program());
    let output = full.args(command.get_args()).arg("--json").arg(&json).stdin(Stdio::null()).output();
    let output = output.expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("results.json"), "{said}");
    assert_eq!(std::fs::read_to_string(&json).expect("there"), "of an earlier run");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "a part was left");
}

/// What was counted, where nothing but the script was slow, or else what was.
fn failures(timeout: u64) -> Value {
    let began = || vec![Step::Event(text("a", None))];
    let then = move |steps: &[Step]| Reply::Stream([began(), steps.to_vec()].concat());
    let fake = Fake::start(move |number, _| match number {
        0 => Reply::Refuse(429, error("too many")),
        1 => Reply::Refuse(503, error("draining")),
        2 => Reply::Refuse(503, error("draining")),
        // A stream that ends in an error, without [DONE]; and one that says [DONE] behind it.
        3 => then(&[Step::Event(error("broken")), Step::End]),
        4 => then(&[Step::Event(error("broken")), Step::Done]),
        5 => then(&[Step::End]),
        6 => then(&[Step::Drop]),
        7 => then(&[Step::Done]),
        8 => Reply::Stream(vec![Step::Done]),
        9 => then(&[Step::Line("data: {no".to_string()), Step::Done]),
        10 => then(&[Step::Wait(2500 * timeout), Step::Done]),
        11 => Reply::Hang,
        _ => Reply::Stream(good(20, 1, 10, 3)),
    });
    let limit = timeout.to_string();
    let flags =
        ["--requests", "15", "--warmup", "0", "--input-len", "4", "--timeout", &limit, "--output-len", "3"];
    let ran = bench(&fake, &flags);
    let found = ran.result()["failures"].clone();
    if found["timeout"] != 1 {
        return found;
    }
    let expected = json!({"connection": 1, "cut": 4, "error_in_stream": 2, "http_429": 1, "http_503": 2,
        "not_openai": 1, "timeout": 1});
    assert_eq!(found, expected, "{}", ran.err);
    assert_eq!((ran.number("completed"), ran.number("failed")), (3.0, 12.0));
    assert_eq!(ran.number("total_output_tokens"), 9.0);
    assert_eq!(ran.numbers("output_lens"), [[0.0; 12].as_slice(), &[3.0; 3]].concat());
    assert!(ran.number("mean_ttft_ms") >= 19.5, "only whole answers have times: {}", ran.out);
    assert!(ran.number("p99_e2el_ms") < 1000.0 * timeout as f64, "the timeout is in no time");
    assert!(ran.err.contains("2 failed: http_503 (HTTP 503: draining)"), "{}", ran.err);
    found
}

/// As llama.cpp's server does it: no header says that the connection is not kept.
#[test]
fn connections_that_were_closed_behind_an_answer_fail_nobody() {
    let fake = Fake::start(|_, _| {
        let mut steps = good(5, 1, 1, 3);
        steps.pop();
        Reply::Stream([steps, vec![Step::Close]].concat())
    });
    let ran = bench(&fake, &["--requests", "40", "--warmup", "2", "--input-len", "4", "--output-len", "3"]);
    assert_eq!((ran.number("completed"), ran.number("failed")), (40.0, 0.0), "{}", ran.err);
    assert_eq!(fake.asked().len(), 42, "each came once");
}

#[test]
fn a_server_that_answers_nothing_is_an_error() {
    let fake = Fake::start(|_, _| Reply::Refuse(500, error("on fire")));
    let ran = bench(&fake, &["--requests", "2", "--warmup", "0", "--input-len", "4"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.result()["mean_ttft_ms"].is_null() && ran.err.contains("no request was completed"),
        "{}",
        ran.err
    );
    let warmed = bench(&fake, &["--requests", "2", "--input-len", "4"]);
    assert!(warmed.err.contains("all of the warm-up failed: HTTP 500: on fire"), "{}", warmed.err);
}

/// A field that a server refuses is left away, and only that one.
#[test]
fn extensions_that_are_refused_are_left_away() {
    for (refused, left) in [("ignore_eos", "stream_options"), ("stream_options", "ignore_eos")] {
        let fake = Fake::start(move |_, body| match body.get(refused) {
            Some(_) => Reply::Refuse(400, error("unknown field")),
            None => Reply::Stream(good(0, 1, 0, 3)),
        });
        let ran = bench(&fake, &["--requests", "2", "--input-len", "4"]);
        assert_eq!(ran.number("completed"), 2.0, "{}", ran.err);
        assert!(fake.asked().iter().all(|body| body.get(refused).is_none() && body.get(left).is_some()));
        assert_eq!(ran.err.contains("takes no ignore_eos"), refused == "ignore_eos", "{}", ran.err);
    }
    let fake = Fake::start(|_, _| Reply::Refuse(400, error("no model here")));
    let ran = bench(&fake, &["--requests", "2"]);
    assert!(ran.code == Some(1) && ran.err.contains("no model here"), "{}", ran.err);
}

#[test]
fn nobody_there_is_said() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gaterail"))
        .args(["bench", "--url", "http://127.0.0.1:1"])
        .output()
        .expect("the binary runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("http://127.0.0.1:1/v1"), "{err}");
}

/// Ctrl-C shows what there is.
#[test]
fn an_interrupted_run_shows_what_it_has() {
    let fake = Fake::start(|_, _| Reply::Stream(good(20, 1, 10, 3)));
    let mut child = command(&fake, &["--requests", "10000", "--input-len", "4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let deadline = Instant::now() + Duration::from_secs(120);
    while fake.asked().len() < 10 {
        assert!(Instant::now() < deadline, "the bench does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("UTF-8");
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("UTF-8");
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{err}");
    let completed: Vec<&str> = out
        .lines()
        .find(|line| line.starts_with("requests completed"))
        .expect("a table")
        .split_whitespace()
        .collect();
    let completed: usize = completed[2].parse().expect("a number");
    assert!((5..9999).contains(&completed), "{completed}");
    assert!(err.contains("interrupted"), "{err}");
}
