//! `gaterail bench --compare MODES`: real servers and workers, one mode after another.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn command(folder: &tempfile::TempDir, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaterail"));
    command.arg("bench").args(flags).stdin(Stdio::null()).env("XDG_CONFIG_HOME", folder.path());
    command
}

/// Code, output, error.
fn bench(folder: &tempfile::TempDir, flags: &[&str]) -> (Option<i32>, String, String) {
    let output = command(folder, flags).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const SMALL: [&str; 8] =
    ["--streams", "1,3", "--prompt-tokens", "24", "--output-tokens", "6", "--threads", "1"];

#[test]
fn all_modes_give_the_same_texts_and_their_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_string();
    let (json, page) = (at("found.json"), at("found.html"));
    let flags = ["--compare", "ep,tp,local", "--workers", "2", "demo", "--rounds", "2"];
    let (code, out, err) =
        bench(&folder, &[&flags[..], &SMALL, &["--json", &json, "--plot", &page]].concat());
    assert_eq!(code, Some(0), "{out}\n{err}");
    // Two numbers of streams, two rounds, two modes beside the first: (1 + 3) * 2 * 2.
    assert!(out.contains("all 3 modes gave the same texts, byte for byte: 16 answers"), "{out}");
    for says in
        ["prefill, 1 stream", "decode, 3 streams", "TPOT, ms", "told what it touched", "is fastest", "GB/s"]
    {
        assert!(out.contains(says), "{says}: {out}");
    }
    let found: Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("saved")).expect("JSON");
    let cells = found["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 6);
    for cell in cells {
        figures_make_sense(cell);
    }
    let page = std::fs::read_to_string(&page).expect("a page");
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg").count() == 3, "{page}");
}

/// Of the demo model.
const EXPERTS: f64 = 8.0;
const TOP_K: f64 = 2.0;

fn figures_make_sense(cell: &Value) {
    let figure = |side: &str, name: &str| cell[side][name]["measured"]["median"].as_f64();
    let (mode, streams) = (cell["mode"].as_str().unwrap(), cell["streams"].as_u64().unwrap() as f64);
    for side in ["prefill", "decode"] {
        assert!(figure(side, "latency_ms").is_some_and(|ms| ms > 0.0), "{cell:#}");
        // K experts of every row, and no more than there are; whoever computes them is told the same.
        let touched = figure(side, "touched").expect("somebody counts");
        assert!((TOP_K..=EXPERTS).contains(&touched), "{cell:#}");
        assert!(cell[side]["knowing_ms"]["predicted"].as_f64().is_some_and(|ms| ms > 0.0), "{cell:#}");
        assert!(figure(side, "tokens_per_second").is_some_and(|rate| rate > 0.0), "{cell:#}");
    }
    // Five further tokens of every stream in each of two rounds are so many rows, however steps took them together.
    assert_eq!(cell["decode"]["rows"].as_f64(), Some(10.0 * streams), "{cell:#}");
    // The number of steps is the difference of two loads, and in either the prompts may come in one step or in as many as there
    // are streams.
    let steps = cell["decode"]["steps"].as_u64().unwrap() as f64;
    let grouping = 2.0 * (streams - 1.0);
    assert!((10.0 - grouping..=10.0 * streams + grouping).contains(&steps), "{steps} steps: {cell:#}");
    if streams == 1.0 {
        assert_eq!(figure("decode", "touched"), Some(TOP_K), "{cell:#}");
    }
    assert!(cell["read_bytes_per_second"]["median"].as_f64().is_some_and(|rate| rate > 0.0), "{cell:#}");
    let expected = &cell["decode"]["hops_per_token"]["predicted"];
    match mode {
        "local" => {
            assert_eq!(figure("decode", "hops_per_token"), Some(0.0));
            assert!(cell["memory"]["measured"].is_null());
        }
        // Every layer asks every worker, and is answered.
        "tp" => {
            let hops = figure("decode", "hops_per_token").unwrap();
            if streams == 1.0 {
                assert_eq!(Some(hops), expected.as_f64(), "{cell:#}");
            }
            assert!(cell["memory"]["measured"]["median"].as_f64().is_some_and(|bytes| bytes > 0.0));
        }
        _ => assert!(figure("decode", "imbalance").is_some_and(|times| times >= 1.0), "{cell:#}"),
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (flags, says) in [
        (&["--compare", "ep,tp"][..], "--workers N"),
        (&["--compare", "ep:2,tp:2", "--workers", "3"], "--workers 4"),
        (&["--compare", "ep,fast", "--workers", "2"], "none of local"),
        (&["--compare", "ep,ep", "--workers", "2"], "twice"),
        (&["--workers", "2"], "--compare"),
        (&["--compare", "ep", "--workers", "2", "--output-tokens", "1"], "2 or more"),
        (&["--compare", "ep", "--workers", "2", "--expert-copies", "3"], "--expert-copies"),
        (&["--compare", "ep", "--workers", "2", "/no/such/model"], "no folder"),
        (&["demo"], "--compare MODES"),
    ] {
        let (code, out, err) = bench(&folder, flags);
        assert!(code.is_some_and(|code| code != 0), "{flags:?}: {out}");
        assert!(err.contains(says), "{flags:?}: {err}");
    }
}

#[test]
fn an_interrupt_ends_the_servers() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["--compare", "ep,tp", "--workers", "2", "demo", "--rounds", "500"];
    let mut child = command(&folder, &[&flags[..], &SMALL].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let pid = child.id();
    let until = Instant::now() + Duration::from_secs(120);
    while descendants(pid).len() < 3 {
        assert!(Instant::now() < until, "no server with two workers");
        std::thread::sleep(Duration::from_millis(20));
    }
    let all = descendants(pid);
    let sent = Command::new("kill").args(["-s", "INT", &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
    assert_eq!(child.wait().expect("its end").code(), Some(1));
    for pid in all {
        while is_alive(pid) {
            assert!(Instant::now() < until, "{pid} lives on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn children(of: u32) -> Vec<u32> {
    let numbers = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may have anything in it: the state, then the parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        parent == Some(of)
    })
    .collect()
}

fn descendants(of: u32) -> Vec<u32> {
    let own = children(of);
    let deeper: Vec<u32> = own.iter().flat_map(|&child| descendants(child)).collect();
    own.into_iter().chain(deeper).collect()
}

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
