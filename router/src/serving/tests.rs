//! What a request meets before the engine.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header;
use serde_json::{Value, json};

use super::house::{self, House, ask, post, silent};
use super::*;
use crate::api::LoadSnapshot;
use crate::auth::{Gate, KeyFile, KeyLimits, NewKey};
use crate::http::{Hosts, ListenLimits, Listening, Port, Protocol};
use crate::metrics::About;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let body = json!({"prompt": "a", "max_tokens": 1});
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
    let hold = || {
        let (routes, first) = (house.http.clone(), post(PATHS[0], Some(&key), silent()));
        tokio::spawn(async move { ask(&routes, first).await })
    };
    // Whoever looks whether it has its place may take that from it for as long.
    let (mut held, until) = (hold(), Instant::now() + PATIENCE);
    let small = || json!({"prompt": "a", "max_tokens": 1});
    tokio::time::sleep(Duration::from_millis(20)).await;
    while held.is_finished() || house.post(PATHS[1], Some(&key), small()).await.0 != 429 {
        assert!(Instant::now() < until, "no limit of streams");
        if held.is_finished() {
            held = hold();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for path in &PATHS[..2] {
        assert_eq!(ask(&house.http, post(path, Some(&key), silent())).await.status(), 429, "{path}");
    }
    assert_eq!(ask(&house.grpc, call(CALLS[0], &key)).await.headers()["grpc-status"], "8");
    // Whoever goes away while it sends has its place again.
    held.abort();
    let _ = held.await;
    let body = json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(house.post("/v1/completions", Some(&key), body).await.0, 200);
}

/// Its last words are sent before whoever sends them looks whether there is more: a client that has them may ask again.
#[tokio::test]
async fn a_stream_that_has_said_its_end_counts_no_more() {
    use http_body_util::BodyExt;
    let folder = tempfile::tempdir().expect("a folder");
    let limits = KeyLimits { streams: Some(1), ..KeyLimits::default() };
    let (house, key) = limited(&folder, limits).await;
    for path in &PATHS[..2] {
        let body = json!({
            "prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "stream": true,
        });
        let body = Body::from(body.to_string());
        let mut answer = ask(&house.http, post(path, Some(&key), body)).await.into_body();
        let mut said = Vec::new();
        while !said.ends_with(b"data: [DONE]\n\n") {
            let frame = answer.frame().await.expect("no end without its words").expect("bytes");
            said.extend(frame.into_data().expect("bytes"));
        }
        let next = house.post(PATHS[1], Some(&key), json!({"prompt": "a", "max_tokens": 1})).await;
        assert_eq!(next.0, 200, "{path}: {}", next.1);
        drop(answer);
    }
}

fn call(path: &str, key: &str) -> axum::extract::Request {
    call_with(path, Some(key), silent())
}

fn call_with(path: &str, key: Option<&str>, body: Body) -> axum::extract::Request {
    let mut call = post(path, key, body);
    call.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().expect("a header"));
    call
}

/// Waits until most are refused for want of room: those that are left have it, until they have been waited for.
async fn only_some_have_room<T>(asked: &[tokio::task::JoinHandle<T>]) {
    let until = Instant::now() + PATIENCE;
    while asked.iter().filter(|one| one.is_finished()).count() < asked.len() - 4 {
        assert!(Instant::now() < until, "they all have room");
        tokio::task::yield_now().await;
    }
}

/// Small bodies that have to keep coming.
fn small_room() -> ServerOptions {
    let mut options = ServerOptions {
        bodies_bytes_max: 8 << 20,
        body_stall_max: Duration::from_secs(1),
        ..ServerOptions::default()
    };
    options.requests.body_bytes_max = 1 << 20;
    options
}

fn ordinary() -> Body {
    Body::from(r#"{"prompt": "a", "max_tokens": 1}"#)
}

#[tokio::test]
async fn bodies_that_stop_halfway_keep_nobody_out() {
    let house = House::new(Gate::new(None, &[]).expect("a door"), small_room()).await;
    let routes = house.http.clone();
    let slow = move || {
        let request = post(PATHS[1], None, house::stuck((1 << 20) - 1));
        let routes = routes.clone();
        tokio::spawn(async move { ask(&routes, house::from("10.0.0.1", request)).await.status().as_u16() })
    };
    let held: Vec<_> = (0..16).map(|_| slow()).collect();
    only_some_have_room(&held).await;
    // A large one of somebody else, and a small one of whoever has all those.
    let spaces = [vec![b' '; 900 << 10], br#"{"prompt": "a", "max_tokens": 1}"#.to_vec()].concat();
    for (address, body) in [("10.0.0.2", Body::from(spaces)), ("10.0.0.1", ordinary())] {
        let request = house::from(address, post(PATHS[1], None, body));
        assert_eq!(ask(&house.http, request).await.status(), 200, "{address}");
    }
    // None of them stays: too many are refused, and the others come too slowly.
    let mut statuses = Vec::new();
    for slow in held {
        statuses.push(slow.await.expect("an answer"));
    }
    statuses.sort_unstable();
    let waited = statuses.iter().filter(|status| **status == 408).count();
    assert!((3..=4).contains(&waited), "{statuses:?}");
    assert!(statuses[waited..].iter().all(|status| *status == 503), "{statuses:?}");
}

#[tokio::test]
async fn messages_take_the_room_of_bodies() {
    let house = House::new(Gate::new(None, &[]).expect("a door"), small_room()).await;
    let routes = house.grpc.clone();
    let slow = move || {
        let request = call_with(CALLS[0], None, house::stuck((1 << 20) - 1));
        let routes = routes.clone();
        tokio::spawn(async move { ask(&routes, house::from("10.0.0.1", request)).await })
    };
    let held: Vec<_> = (0..16).map(|_| slow()).collect();
    only_some_have_room(&held).await;
    let large = |address| house::from(address, post(PATHS[1], None, house::stuck(900 << 10)));
    let status = ask(&house.http, large("10.0.0.1")).await.status();
    assert_eq!(status, 503, "what its calls hold is not there for its bodies");
    let mut answers = Vec::new();
    for slow in held {
        let answer = slow.await.expect("an answer");
        answers.push(answer.headers()["grpc-status"].to_str().expect("a number").to_owned());
    }
    answers.sort_unstable();
    // DEADLINE_EXCEEDED, and RESOURCE_EXHAUSTED for those who found no room.
    let waited = answers.iter().filter(|code| *code == "4").count();
    assert!((3..=4).contains(&waited), "{answers:?}");
    assert!(answers[waited..].iter().all(|code| code == "8"), "{answers:?}");
}

#[tokio::test]
async fn a_call_is_answered() {
    use gaterail_proto::grpc::v1::generate_request::Prompt;
    use gaterail_proto::grpc::v1::{GenerateRequest, TokenIds};
    use http_body_util::BodyExt;
    let house = House::open().await;
    let tokens = TokenIds { ids: vec![1, 2] };
    let message =
        GenerateRequest { prompt: Some(Prompt::Tokens(tokens)), max_tokens: Some(2), ..Default::default() };
    let message = prost::Message::encode_to_vec(&message);
    let frame = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let answer = ask(&house.grpc, call_with(CALLS[0], None, Body::from(frame))).await;
    let body = answer.into_body().collect().await.expect("a stream");
    assert_eq!(body.trailers().expect("an end")["grpc-status"], "0");
    // What is no message is refused, and is not taken for a client that went away.
    let answer = ask(&house.grpc, call_with(CALLS[0], None, Body::from(vec![0, 0, 0, 0, 1, 255]))).await;
    assert_ne!(answer.headers()["grpc-status"], "0");
    let outcomes = house.server.entrance.metrics.page(
        &house.server.served.engine.load(),
        &About {
            model: "flat",
            version: "0",
            page_positions: 64,
            ready: true,
            aliases: false,
            steps: Default::default(),
            stalls: Default::default(),
            cluster: None,
        },
    );
    assert!(outcomes.contains("outcome=\"abort\"} 0"), "{outcomes}");
    assert!(outcomes.contains("outcome=\"refused\"} 1"), "{outcomes}");
}

#[tokio::test]
async fn a_body_that_trickles_is_not_waited_for() {
    let house = House::new(Gate::new(None, &[]).expect("a door"), small_room()).await;
    let began = tokio::time::Instant::now();
    let body = house::trickling(Duration::from_millis(50));
    assert_eq!(ask(&house.http, post(PATHS[1], None, body)).await.status(), 408);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn log_probabilities_of_an_answer_are_bounded() {
    let mut options = ServerOptions::default();
    options.requests.logprobs_max = 600;
    let house = House::new(Gate::new(None, &[]).expect("a door"), options).await;
    let chat = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "logprobs": true});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        (PATHS[0], body)
    };
    let text = |body: Value| (PATHS[1], body);
    let cases = [
        (chat(json!({"n": 2, "max_tokens": 50, "top_logprobs": 5})), 200, ""),
        (chat(json!({"n": 2, "max_tokens": 51, "top_logprobs": 5})), 400, "612"),
        (chat(json!({"n": 2, "max_tokens": 51, "top_logprobs": 5, "stream": true})), 200, ""),
        (chat(json!({"max_tokens": 600})), 200, ""),
        (chat(json!({"max_tokens": 601})), 400, "601"),
        (chat(json!({})), 400, "max_tokens, which is not set,"),
        (text(json!({"prompt": ["a", "b", "c"], "max_tokens": 100, "logprobs": 1})), 200, ""),
        (text(json!({"prompt": ["a", "b", "c"], "max_tokens": 101, "logprobs": 1})), 400, "606"),
        (text(json!({"prompt": "a", "max_tokens": 4000})), 200, ""),
    ];
    for ((path, body), expected, says) in cases {
        let answer = ask(&house.http, post(path, None, Body::from(body.to_string()))).await;
        assert_eq!(answer.status(), expected, "{body}");
        if expected == 400 {
            let error = house.post(path, None, body).await.1["error"].take();
            assert_eq!(error["param"], "max_tokens", "{error}");
            assert!(error["message"].as_str().expect("words").contains(says), "{error}");
        }
    }
    let answer = house.post(PATHS[0], None, chat(json!({"max_tokens": 3, "top_logprobs": 2})).1).await.1;
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    assert_eq!(entries.len(), 3);
    assert_eq!((&entries[0]["token"], &entries[0]["bytes"]), (&json!("A"), &json!([65])));
    assert_eq!(entries[0]["top_logprobs"].as_array().expect("a list").len(), 2);
}

#[tokio::test]
async fn all_that_a_message_says_is_measured_before_it_is_tokenized() {
    let house = House::open().await;
    let long = "x".repeat(3 * house::CONTEXT);
    // Before they are counted: no token has more than the three of `<s>`.
    let said = "12288 bytes, which are at least 4096 tokens";
    for (message, param, says) in [
        (json!({"role": "user", "content": long}), "messages", said),
        (json!({"role": "assistant", "reasoning_content": long}), "messages", said),
        (json!({"role": "user", "content": "a", "name": long}), "messages[0].name", "more than 512"),
    ] {
        let (status, answer) = house.post(PATHS[0], None, json!({"messages": [message]})).await;
        let error = &answer["error"];
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().expect("words").contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_no_way_in() {
    let local = || ServerOptions { hosts: Some(Hosts::default()), ..ServerOptions::default() };
    let status = async |house: &House, host: Option<&str>, key: Option<&str>| {
        let mut request = post("/v1/completions", key, ordinary());
        if let Some(host) = host {
            request.headers_mut().insert(header::HOST, host.parse().expect("a header"));
        }
        ask(&house.http, request).await.status().as_u16()
    };
    let open = House::new(Gate::new(None, &[]).expect("a door"), local()).await;
    for (host, expected) in [
        (Some("localhost:8000"), 200),
        (Some("127.0.0.1:8000"), 200),
        (Some("[::1]:8000"), 200),
        (None, 200),
        (Some("evil.example:8000"), 403),
        (Some("evil.example@localhost"), 403),
        (Some(""), 403),
    ] {
        assert_eq!(status(&open, host, None).await, expected, "{host:?}");
    }
    // A page has no key: who has one may call it what they like.
    let locked = House::new(Gate::new(None, &["sk-one".into()]).expect("a door"), local()).await;
    assert_eq!(status(&locked, Some("gpu.example"), Some("sk-one")).await, 200);
    assert_eq!(status(&locked, Some("gpu.example"), None).await, 401);
    let anywhere = House::open().await;
    assert_eq!(status(&anywhere, Some("gpu.example"), None).await, 200);
}

#[tokio::test]
async fn a_client_that_goes_is_noticed_whatever_it_has_sent() {
    use tokio::io::AsyncWriteExt;
    let house = House::slow().await;
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let metrics = house.server.entrance.metrics.clone();
    let (app, limits) = (house.http.clone(), ListenLimits::default().into());
    let port = Port { app, protocol: Protocol::Http1, metrics, limits, tls: None, teller: None };
    let port = Listening::start(socket, port).expect("a port");
    let engine = &house.server.served.engine;
    let until = async |holds: &dyn Fn(LoadSnapshot) -> bool| {
        let began = tokio::time::Instant::now();
        while !holds(engine.load()) {
            assert!(began.elapsed() < PATIENCE, "{:?}", engine.load());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // At 5 ms a token this takes 20 seconds.
    let body = r#"{"prompt": "a", "max_tokens": 4000}"#;
    let head = format!("POST /v1/completions HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    for (gone, behind) in ["", "x", "GET /livez HTTP/1.1\r\n\r\n", "POST /"].into_iter().enumerate() {
        let mut client = tokio::net::TcpStream::connect(port.address).await.expect("a connection");
        client.write_all(format!("{head}{body}{behind}").as_bytes()).await.expect("it listens");
        until(&|load| load.running == 1).await;
        drop(client);
        until(&|load| load.running == 0 && load.cancelled == gone as u64 + 1).await;
    }
    // Whoever stays is answered, and what came behind the request, too.
    let mut client = tokio::net::TcpStream::connect(port.address).await.expect("a connection");
    let body = r#"{"prompt": "a", "max_tokens": 20}"#;
    let head = format!("POST /v1/completions HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    let next = "GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n";
    client.write_all(format!("{head}{body}{next}").as_bytes()).await.expect("it listens");
    let mut answers = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client, &mut answers).await.expect("text");
    assert!(
        answers.contains("AAAAAAAAAAAAAAAAAAAA") && answers.ends_with(r#"{"status":"alive"}"#),
        "{answers}"
    );
}

#[tokio::test]
async fn offsets_are_places_in_the_text() {
    let house = House::open().await;
    let bos = house::BOS;
    for (prompt, text, offsets) in [
        // `<s>` is put in front and is no part of the text, unless the client writes it.
        (json!("ab"), "abAA", json!([0, 0, 1, 2, 3])),
        (json!("a<s>b"), "a<s>bAA", json!([0, 0, 1, 4, 5, 6])),
        (json!([bos, 65, 66]), "abAA", json!([0, 0, 1, 2, 3])),
        (json!([65, bos, 66]), "abAA", json!([0, 1, 1, 2, 3])),
        (json!(""), "AA", json!([0, 0, 1])),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": 2, "echo": true, "logprobs": 0});
        let (status, answer) = house.post(PATHS[1], None, body).await;
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["text"], &choice["logprobs"]["text_offset"]),
            (&json!(text), &offsets),
            "{prompt}"
        );
    }
    let body = json!({"prompt": [bos, 65], "max_tokens": 1, "echo": true, "logprobs": 0,
        "skip_special_tokens": false});
    let answer = house.post(PATHS[1], None, body).await.1;
    assert_eq!(answer["choices"][0]["text"], "<s>aA");
    assert_eq!(answer["choices"][0]["logprobs"]["text_offset"], json!([0, 3, 4]));
}
