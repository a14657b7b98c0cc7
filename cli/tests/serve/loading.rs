//! While the model is loaded: who asks is answered at once, and told to come again.
//!
//! The model's chat template is a pipe here, so that loading takes as long as nobody writes into it.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::server::{Answer, OwnPort, PATIENCE, gaterail, read_answer, request_bytes};

const TEMPLATE: &str = "chat_template.jinja";

struct Starting {
    child: Child,
    address: SocketAddr,
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Starting {
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let until = Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect(self.address) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        std::io::Write::write_all(&mut stream, &request_bytes(method, path, headers, body))
            .expect("it reads");
        read_answer(&mut stream)
    }
}

/// The demo model's files, its template a pipe.
fn model_with_a_pipe(folder: &Path) -> Vec<u8> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/demo-model/model");
    for entry in std::fs::read_dir(&demo).expect("the demo model") {
        let name = entry.expect("an entry").file_name();
        if name != TEMPLATE {
            symlink(demo.join(&name), folder.join(&name)).expect("a link");
        }
    }
    let made = std::process::Command::new("mkfifo").arg(folder.join(TEMPLATE)).status();
    assert!(made.expect("mkfifo runs").success());
    std::fs::read(demo.join(TEMPLATE)).expect("the template")
}

#[test]
fn who_comes_before_the_model_is_told_to_come_again() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let template = model_with_a_pipe(model.path());
    let port = OwnPort::new();
    let address = port.address;
    let key = "a-key-of-the-command-line";
    let flags = ["serve", "--threads", "1", "--log", "off", "--api-key", key, "--listen"];
    let child = gaterail(&folder, &flags)
        .args([&address.to_string(), model.path().to_str().expect("a path")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let server = Starting { child: child.expect("the binary runs"), address };
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("x-request-id", "early-1")];
    let ask = |method: &str, path: &str| server.ask(method, path, &headers, b"");

    assert_eq!(ask("GET", "/livez").status, 200);
    for path in ["/readyz", "/health"] {
        let answer = ask("GET", path);
        assert_eq!((answer.status, &answer.json()["status"]), (503, &json!("loading")), "{path}");
    }
    for (method, path) in [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics")] {
        let answer = ask(method, path);
        assert_eq!(answer.status, 503, "{path}");
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("loading"), &json!("service_unavailable_error"))
        );
        assert!(error["message"].is_string() && error["param"].is_null(), "{error}");
        assert_eq!(
            (answer.header("retry-after"), answer.header("x-request-id")),
            (Some("1"), Some("early-1"))
        );
    }
    // The door stands before there is a model.
    for path in ["/livez", "/health", "/v1/models"] {
        assert_eq!(server.ask("GET", path, &[], b"").status, 401, "{path}");
    }

    std::fs::write(model.path().join(TEMPLATE), template).expect("the server reads it");
    let until = Instant::now() + PATIENCE;
    while ask("GET", "/readyz").status != 200 {
        assert!(Instant::now() < until, "it does not become ready");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let body = json!({"messages": [{"role": "user", "content": "What is 27 + 58?"}], "temperature": 0});
    let answer = server.ask("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["choices"][0]["message"]["content"].as_str().map(str::trim), Some("85"));
    let page = ask("GET", "/metrics").text();
    assert!(page.contains("gaterail_connections"), "{page}");
}
