//! `--log json`: whatever a server has to say on standard error, a program can read.

use serde_json::{Value, json};

use crate::cluster::{Signal, pids, signal, wait_for_others, wait_for_workers};
use crate::server::Server;

#[test]
fn every_line_is_an_object() {
    let flags = ["--log", "json", "--workers", "2", "--cluster-listen", "127.0.0.1:0", "--parallel", "ep"];
    let mut server = Server::start(&flags);
    let ask = |server: &Server| server.post("/v1/completions", &json!({"prompt": [5, 6], "max_tokens": 3}));
    let victim = pids(&wait_for_workers(&server, 2))[0];
    assert_eq!(ask(&server).status, 200);
    signal(victim, Signal::KILL);
    wait_for_others(&server, 2, &[victim]);
    assert_eq!(ask(&server).status, 200);
    server.post("/v1/completions", &json!({"prompt": "a\nb", "max_tokens": -1}));
    server.line_with(&["is gone"]);
    server.signal("TERM");
    assert!(server.wait().success());
    let log = server.start.clone() + &server.rest_of_log();
    let mut events: Vec<String> = Vec::new();
    for line in log.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let event = object["event"].as_str().unwrap_or_else(|| panic!("no event: {line}"));
        assert!(event == "request" || object["message"].is_string(), "{line}");
        events.push(event.to_owned());
    }
    let said = |words: &[&str]| {
        let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.unwrap_or_else(|| panic!("nothing of {words:?} in:\n{log}"));
    };
    // What each of those has to say who may speak: the start, a worker, its supervisor, control, the end.
    said(&["\"note\"", "curl", " tokens, "]);
    said(&["\"note\"", "worker-0: ", "joined"]);
    said(&["\"note\"", "epoch"]);
    said(&["\"note\"", "is gone"]);
    said(&["\"note\"", "stopping"]);
    assert!(events.iter().filter(|event| *event == "request").count() >= 3, "{log}");
}
