//! Which worker gets which card, on a machine whose driver stands in for one with two cards: all of it but what cards compute.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cluster::{Signal, WorkerProcess, page, pids, signal, wait_for_others, wait_for_workers};
use crate::server::{OwnPort, Server, gaterail};

/// Compiles the stand-in, which is found before any driver of this machine.
fn stand_in(folder: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/workers/stand_in.c");
    for library in ["libcuda.so", "libnvrtc.so"] {
        let compiled = Command::new("cc")
            .args(["-O1", "-fPIC", "-shared", "-o"])
            .arg(folder.join(library))
            .arg(source)
            .status();
        assert!(compiled.expect("a C compiler, which the build needs anyway").success());
    }
}

/// `serve` on the machine with two cards.
fn on_cards(folder: &tempfile::TempDir, args: &[&str]) -> Command {
    stand_in(folder.path());
    let mut command = gaterail(folder, &["serve", "demo", "--listen", "127.0.0.1:0", "--threads", "1"]);
    let seed = folder.path().file_name().expect("a name").to_string_lossy().replace(".tmp", "");
    // What it compiles is for nobody else.
    command.args(args).env("LD_LIBRARY_PATH", folder.path()).env("STAND_IN", seed);
    command.env("XDG_CACHE_HOME", folder.path().join("cache"));
    command
}

/// Where a worker of this process id computes, as the server says and as its command line does.
fn place(page: &Value, pid: u32) -> (String, String) {
    let workers = page["cluster"]["workers"].as_array().expect("a list");
    let worker = workers.iter().find(|at| at["pid"] == pid).expect("a worker");
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("a command line");
    let line = String::from_utf8_lossy(&line).into_owned();
    let device = line.split('\0').skip_while(|word| *word != "--device").nth(1);
    (worker["device"].as_str().expect("text").to_string(), device.unwrap_or_default().to_string())
}

fn places(page: &Value) -> Vec<(String, String)> {
    let mut places: Vec<_> = pids(page).into_iter().map(|pid| place(page, pid)).collect();
    places.sort();
    places
}

#[test]
fn every_worker_has_its_card_and_keeps_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["--workers", "3", "--worker-devices", "auto", "--weights", "int4"];
    let command = on_cards(&folder, &flags);
    let mut server = Server::run(folder, command);
    let before = wait_for_workers(&server, 3);
    let expected = |at: &[(String, String)]| {
        assert!(at[0].0.starts_with("CPU (1 threads") && at[0].1 == "cpu", "{at:?}");
        assert_eq!(at[1], ("cuda:0 Stand-in (sm_90)".to_string(), "cuda:0".to_string()));
        assert_eq!(at[2], ("cuda:1 Stand-in (sm_90)".to_string(), "cuda:1".to_string()));
    };
    expected(&places(&before));
    for said in [
        "worker-0 computes on cuda:0, the first card that is free",
        "worker-1 computes on cuda:1, the first card that is free (cuda:0 is worker-0's)",
        "worker-2 computes on the CPU: cuda:0 is worker-0's; cuda:1 is worker-1's",
    ] {
        assert!(server.start.contains(said), "{said} is not in:\n{}", server.start);
    }
    // A table for people shows them, too.
    let url = format!("http://{}", server.address);
    let shown = gaterail(&server.folder, &["status", &url]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("cuda:1 Stand-in (sm_90)"), "{shown:?}");
    // Another server's worker gets none of them while they are taken.
    let other = tempfile::tempdir().expect("a folder");
    let seed = server.folder.path().file_name().expect("a name").to_string_lossy().replace(".tmp", "");
    let refused = on_cards(&other, &["--workers", "1", "--worker-devices", "cuda:1", "--weights", "int4"])
        .env("STAND_IN", seed)
        .output()
        .expect("it runs");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("cuda:1 is another worker's"), "{why}");
    // It may have been ending.
    assert!(
        why.contains("another worker has cuda:1, and may be ending: that is waited for, up to 10 s"),
        "{why}"
    );
    // Whoever takes a dead worker's place has its card.
    let page_before = page(&server);
    let on_card = |pid: &u32| place(&page_before, *pid).1 == "cuda:1";
    let victim = pids(&page_before).into_iter().find(on_card).expect("a worker on cuda:1");
    signal(victim, Signal::KILL);
    server.line_with(&["ended", "signal: 9"]);
    expected(&places(&wait_for_others(&server, 3, &[victim])));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_loaded() {
    let cases: [(&[&str], &str); 6] = [
        (&["--workers", "2", "--worker-devices", "cuda:0,cuda:5"], "cuda:5 asked for, 2 devices found"),
        (&["--workers", "2", "--worker-devices", "cuda:1"], "cuda:1 is asked for by worker-0 and worker-1"),
        (&["--workers", "2", "--worker-devices", "cpu,cpu,cpu"], "names 3, and --workers starts 2"),
        (&["--workers", "1", "--worker-devices", "gpu"], "expected auto, cpu, cuda or cuda:N"),
        (
            &["--workers", "1", "--worker-devices", "cuda", "--weights", "bf16"],
            "no form for experts in bf16; --weights int4 has one, and workers on the CPU compute all",
        ),
        (&["--workers", "9", "--worker-devices", "cuda:0,"], "--worker-devices is \"\""),
    ];
    for (flags, part) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let ended = on_cards(&folder, flags).output().expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && said.contains(part), "{flags:?}: {said}");
        assert!(!said.contains("joined"), "{flags:?}: {said}");
    }
}

#[test]
fn who_comes_while_a_cards_worker_ends_waits_for_the_card() {
    let port = OwnPort::new();
    let address = port.address.to_string();
    let folder = tempfile::tempdir().expect("a folder");
    stand_in(folder.path());
    let path = folder.path().to_str().expect("text");
    let seed = folder.path().file_name().expect("a name").to_string_lossy().replace(".tmp", "");
    let variables = [("LD_LIBRARY_PATH", path), ("STAND_IN", seed.as_str()), ("XDG_CACHE_HOME", path)];
    let start = || WorkerProcess::start(&folder, &["--join", &address, "--device", "cuda:1"], &variables);
    let mut first = start();
    first.line_with(&["on cuda:1", "joining"]);
    let mut second = start();
    second.line_with(&["another worker has cuda:1", "waited for"]);
    signal(first.pid(), Signal::KILL);
    second.line_with(&["on cuda:1", "joining"]);
    // Not the first that is free: it is asked for by its number.
    let mut third = start();
    third.line_with(&["another worker has cuda:1", "waited for"]);
    assert!(!third.wait().success(), "it has no card");
    third.line_with(&["cuda:1 is another worker's, and a card belongs to one worker"]);
}

#[test]
fn a_worker_on_a_card_does_not_join_who_serves_experts_that_cards_do_not_compute() {
    let port = OwnPort::new();
    let address = port.address.to_string();
    let flags = ["--workers", "1", "--weights", "bf16", "--cluster-listen", &address];
    let server = Server::start(&flags);
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = gaterail(&folder, &["worker", "--join", &address, "--device", "cuda"]);
    stand_in(folder.path());
    let seed = folder.path().file_name().expect("a name").to_string_lossy().replace(".tmp", "");
    command.env("LD_LIBRARY_PATH", folder.path()).env("STAND_IN", seed);
    command.env("XDG_CACHE_HOME", folder.path().join("cache"));
    let ended = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for part in ["no form for experts in bf16", "--weights int4", "--device cpu"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    // Nobody has planned with it.
    let page = page(&server);
    assert_eq!((pids(&page).len(), &page["cluster"]["epoch"]), (1, &Value::from(1)), "{page}");
}

#[test]
fn without_a_card_auto_is_the_cpu_and_a_card_is_refused() {
    if std::fs::exists("/dev/nvidiactl").unwrap_or(false) {
        eprintln!("this machine has cards");
        return;
    }
    let server = Server::start(&["--workers", "1", "--worker-devices", "auto", "--weights", "int4"]);
    assert!(server.start.contains("worker-0 computes on the CPU: no NVIDIA driver"), "{}", server.start);
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["serve", "--listen", "127.0.0.1:0", "--worker-devices", "cuda:0,cuda:1"];
    let ended = gaterail(&folder, &flags).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("no NVIDIA driver on this machine"), "{said}");
}

/// A flag, a variable, a key of a file: each says where it came from.
#[test]
fn the_setting_has_three_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("serve.toml");
    std::fs::write(&file, "worker_devices = [\"cpu\", \"auto\"]\n").expect("a file");
    let shown = |command: &mut Command| {
        let shown = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        text.lines().find(|line| line.starts_with("worker_devices")).expect("the setting").to_string()
    };
    let print = || {
        let mut command = gaterail(&folder, &["serve", "--print-config", "--config"]);
        command.arg(&file);
        command
    };
    assert!(shown(&mut print()).contains("cpu, auto") && shown(&mut print()).contains("file "));
    let variable = shown(print().env("GATERAIL_WORKER_DEVICES", "cuda:0,cuda:1"));
    assert!(variable.contains("cuda:0, cuda:1") && variable.contains("GATERAIL_WORKER_DEVICES"));
    let flag = shown(print().args(["--worker-devices", "cuda:1"]).env("GATERAIL_WORKER_DEVICES", "cpu"));
    assert!(flag.contains("cuda:1") && flag.contains("command line"), "{flag}");
}
