//! Clients that nobody here wrote: OpenAI's Python package, Google's gRPC, Prometheus' checker. Where one is not installed
//! the test says so and is skipped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{Server, skipped};

fn python() -> String {
    std::env::var("GATERAIL_TEST_PYTHON").unwrap_or_else(|_| "python3".to_string())
}

/// Whether Python has these modules.
fn has_modules(modules: &str) -> bool {
    let output = Command::new(python()).args(["-c", &format!("import {modules}")]).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let why = error.lines().last().unwrap_or_default();
            let python = python();
            skipped(&format!("{python} cannot import {modules}: {why} (tests/clients/requirements.txt)"));
            false
        }
        Err(error) => {
            skipped(&format!("{} does not run: {error} (GATERAIL_TEST_PYTHON names another)", python()));
            false
        }
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(name)
}

#[track_caller]
fn passes(script: PathBuf, arguments: &[&str]) {
    let output = Command::new(python()).arg(script).args(arguments).output().expect("python runs");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
    println!("{out}");
    assert!(out.trim_end().ends_with("all is well"), "{out}");
}

#[test]
fn openais_package_cannot_tell() {
    if !has_modules("openai") {
        return;
    }
    let server = Server::start(&["--api-key", "a-key-of-the-command-line"]);
    let base = format!("http://{}/v1", server.address);
    passes(script("openai_client.py"), &[&base, "a-key-of-the-command-line"]);
}

#[test]
fn googles_grpc_understands() {
    if !has_modules("grpc, grpc_health, grpc_reflection") {
        return;
    }
    let mut server =
        Server::start(&["--grpc-listen", "127.0.0.1:0", "--api-key", "a-key-of-the-command-line"]);
    let address = server.grpc.expect("a port for gRPC").to_string();
    passes(script("grpc_client.py"), &[&address, "a-key-of-the-command-line"]);
    // The deadline ended the work, whoever saw it first: the server's clock, or its client that left.
    let line = server.line_with(&["route=grpc", "prompt_tokens=2 "]);
    assert!(line.contains("code=timeout") || line.contains("outcome=abort"), "{line}");
}

#[test]
fn prometheus_understands() {
    let check = |page: &str| {
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take().expect("piped").write_all(page.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let server = Server::start(&[]);
    server.post("/v1/completions", &serde_json::json!({"prompt": "once", "max_tokens": 3}));
    server.get("/nothing/here");
    let Some(own) = check(&server.get("/metrics?aliases=off").text()) else {
        skipped("promtool is not installed");
        return;
    };
    assert_eq!(own, "");
    // vLLM's names have a colon, which is all that can be said against them.
    for line in check(&server.get("/metrics").text()).expect("as before").lines() {
        assert!(line.starts_with("vllm:") && line.ends_with("should not contain ':'"), "{line}");
    }
}
