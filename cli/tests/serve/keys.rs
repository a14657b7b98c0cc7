//! Keys: made, shown once, limited, revoked; one door in front of everything.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Answer, PATIENCE, Server, gaterail, unread};

const ROUTES: [(&str, &str); 14] = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/demo"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/health"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/cluster"),
    ("POST", "/cluster/rebalance"),
    ("GET", "/no/such/route"),
];

pub fn add(folder: &tempfile::TempDir, flags: &[&str]) -> String {
    let output = gaterail(folder, &["keys", "add"]).args(flags).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_string()
}

fn ask(server: &Server, key: &str, body: &serde_json::Value) -> Answer {
    let bearer = format!("Bearer {key}");
    server.request("POST", "/v1/completions", &[("authorization", &bearer)], body.to_string().as_bytes())
}

#[test]
fn only_operators_spread_experts_and_see_where_rows_went() {
    let folder = tempfile::tempdir().unwrap();
    let (other, operator) = (add(&folder, &["alice"]), add(&folder, &["bob", "--operator"]));
    let listed = gaterail(&folder, &["keys", "list"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("active, operator"));
    let fixed = "a-key-of-the-command-line";
    let server = Server::start_in(folder, &["--workers", "0", "--api-key", fixed]);
    let ask = |key: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        server.request("POST", "/cluster/rebalance", &headers, br#"{"parallel": "tp"}"#)
    };
    let answer = ask(&other);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (403, Some("forbidden")));
    // Whoever may ask is told that there are no workers.
    assert_eq!((ask(&operator).status, ask(fixed).status), (400, 400));
    // Where rows went tells of others' texts; who computes does not.
    let look = |path: &str, key: &str| {
        let bearer = format!("Bearer {key}");
        server.request("GET", path, &[("authorization", bearer.as_str())], b"").status
    };
    assert_eq!((look("/cluster", &other), look("/cluster?experts", &other)), (200, 403));
    assert_eq!((look("/cluster?experts", &operator), look("/cluster?experts", fixed)), (200, 200));
}

#[test]
fn nobody_comes_in_without_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = add(&folder, &["alice"]);
    let server = Server::start_in(folder, &[]);
    for (method, path) in ROUTES {
        for headers in [
            &[][..],
            &[("authorization", "Bearer wrong")],
            &[("authorization", "Basic YTpi")],
            &[("authorization", "")],
        ] {
            let answer = server.request(method, path, headers, b"");
            assert_eq!(answer.status, 401, "{method} {path} {headers:?}");
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        }
        let bearer = format!("Bearer {key}");
        let answer = server.request(method, path, &[("authorization", &bearer)], b"");
        assert_ne!(answer.status, 401, "{method} {path}");
    }
}

#[test]
fn a_key_works_until_it_is_revoked_and_is_nowhere_to_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (key, other) = (add(&folder, &["alice"]), add(&folder, &["bob"]));
    assert!(key.starts_with("gr-") && key.len() == 3 + 8 + 1 + 64, "{key}");
    let file = folder.path().join("gaterail/keys.json");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let secret = key.rsplit('-').next().unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains(secret));
    let listed = gaterail(&folder, &["keys", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("alice") && listed.contains("bob") && !listed.contains(secret), "{listed}");

    let mut server = Server::start_in(folder, &[]);
    let body = json!({"prompt": "once", "max_tokens": 1});
    assert_eq!(ask(&server, &key, &body).status, 200);
    let line = server.line_with(&["tenant=alice"]);
    assert!(!line.contains(secret), "{line}");

    let id = key.split('-').nth(1).unwrap();
    assert!(gaterail(&server.folder, &["keys", "revoke", id]).output().unwrap().status.success());
    let until = Instant::now() + PATIENCE;
    while ask(&server, &key, &body).status != 401 {
        assert!(Instant::now() < until, "the key still works");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ask(&server, &other, &body).status, 200);
    let third = add(&server.folder, &["carol"]);
    while ask(&server, &third, &body).status != 200 {
        assert!(Instant::now() < until, "a new key does not work");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The last key does not leave the door open behind it.
    for key in [&other, &third] {
        assert!(gaterail(&server.folder, &["keys", "revoke", key]).output().unwrap().status.success());
    }
    while ask(&server, &third, &body).status != 401 {
        assert!(Instant::now() < until, "the door is open");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.get("/health").status, 401);
}

#[test]
fn limits_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let few: Vec<String> =
        ["few", "slow", "slower"].map(|name| add(&folder, &[name, "--requests-per-minute", "3"])).to_vec();
    let small = add(&folder, &["small", "--tokens-per-minute", "100"]);
    let one = add(&folder, &["one", "--streams", "1"]);
    let server = Server::start_in(folder, &["--stall-seconds", "600"]);
    let body = json!({"prompt": [5, 6], "max_tokens": 1});
    // One of three comes back every twenty seconds: it has to be asked faster than that, at least once.
    let in_time = few.iter().any(|few| {
        let began = Instant::now();
        let answers: Vec<Answer> = (0..5).map(|_| ask(&server, few, &body)).collect();
        if began.elapsed() > Duration::from_secs(15) {
            return false;
        }
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 200, 429, 429]);
        assert_eq!(answers[4].json()["error"]["code"], "rate_limit_exceeded");
        let wait: u64 = answers[4].header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        true
    });
    assert!(in_time, "five short answers never came within 15 s");

    // 92 of 100 tokens are reserved and 4 used: the rest comes back.
    let much = json!({"prompt": [5, 6], "max_tokens": 90, "stop_token_ids": (3..1024).take(128).collect::<Vec<u32>>(), "min_tokens": 2});
    let answer = ask(&server, &small, &much);
    assert_eq!(answer.status, 200);
    let used = answer.json()["usage"]["total_tokens"].as_u64().unwrap();
    let next = ask(&server, &small, &json!({"prompt": [5, 6], "max_tokens": 90 - used, "ignore_eos": true}));
    assert_eq!(next.status, 200, "{}", next.text());
    assert_eq!(ask(&server, &small, &much).status, 429);

    let held = unread(&server, &[("authorization", &format!("Bearer {one}"))]);
    assert_eq!(ask(&server, &one, &body).status, 429);
    drop(held);
    let until = Instant::now() + PATIENCE;
    while ask(&server, &one, &body).status != 200 {
        assert!(Instant::now() < until, "a stream that was left still counts");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_public_address_wants_keys() {
    let folder = tempfile::tempdir().unwrap();
    let output = gaterail(&folder, &["serve", "demo", "--listen", "0.0.0.0:0"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("gaterail keys add") && error.contains("--insecure"),
        "{error}"
    );
}
