//! What a request meets before the engine.

use axum::http::header;

use super::house::{House, ask, post, silent};
use super::*;
use crate::auth::{Gate, KeyFile, KeyLimits, NewKey};

/// A house with one key, and the key.
async fn limited(folder: &tempfile::TempDir, limits: KeyLimits) -> (House, String) {
    let file = KeyFile::new(folder.path().join("keys.json"));
    let key = NewKey::make("alice", limits, 1).expect("random numbers");
    file.update(|keys| keys.push(key.record)).expect("written");
    let gate = Gate::new(Some(file), &[]).expect("a file that can be read");
    (House::new(gate, ServerOptions::default()).await, key.text)
}

const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];
const CALLS: [&str; 2] = ["/gaterail.v1.Inference/Generate", "/gaterail.v1.Inference/Tokenize"];

#[tokio::test]
async fn a_limit_of_requests_is_kept_before_the_body_comes() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = KeyLimits { requests_per_minute: Some(1), ..KeyLimits::default() };
    let (house, key) = limited(&folder, limits).await;
    let body = serde_json::json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(house.post("/v1/completions", Some(&key), body).await.0, 200);
    for path in PATHS {
        let answer = ask(&house.http, post(path, Some(&key), silent())).await;
        assert_eq!(answer.status(), 429, "{path}");
    }
    for path in CALLS {
        let answer = ask(&house.grpc, call(path, &key)).await;
        // RESOURCE_EXHAUSTED
        assert_eq!(answer.headers()["grpc-status"], "8", "{path}");
    }
}

#[tokio::test]
async fn a_limit_of_streams_is_kept_before_the_body_comes() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = KeyLimits { streams: Some(1), ..KeyLimits::default() };
    let (house, key) = limited(&folder, limits).await;
    let (routes, first) = (house.http.clone(), post(PATHS[0], Some(&key), silent()));
    let held = tokio::spawn(async move { ask(&routes, first).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    for path in &PATHS[..2] {
        assert_eq!(ask(&house.http, post(path, Some(&key), silent())).await.status(), 429, "{path}");
    }
    assert_eq!(ask(&house.grpc, call(CALLS[0], &key)).await.headers()["grpc-status"], "8");
    // Whoever goes away while it sends has its place again.
    held.abort();
    let _ = held.await;
    let body = serde_json::json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(house.post("/v1/completions", Some(&key), body).await.0, 200);
}

fn call(path: &str, key: &str) -> axum::extract::Request {
    let mut call = post(path, Some(key), silent());
    call.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().expect("a header"));
    call
}
