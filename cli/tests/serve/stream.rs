//! A stream, byte for byte.

use serde_json::{Value, json};

use crate::server::{Server, request_bytes};

fn events(server: &Server, path: &str, body: Value) -> Vec<Value> {
    let answer = server.post(path, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let mut events = answer.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

#[test]
fn a_stream_says_everything_once_and_in_order() {
    let server = Server::start(&[]);
    let ask = json!({
        "messages": [{"role": "user", "content": "What is 27 + 58?"}], "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true}, "n": 2,
    });
    let chunks = events(&server, "/v1/chat/completions", ask);
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 8);
    for index in 0..2 {
        let own: Vec<&Value> = rest.iter().filter(|chunk| chunk["choices"][0]["index"] == index).collect();
        assert_eq!(own[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let (end, middle) = own[1..].split_last().unwrap();
        let text: String =
            middle.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
        assert_eq!(text.trim(), "85");
        for chunk in middle {
            assert!(chunk["choices"][0]["delta"].get("role").is_none(), "{chunk}");
            assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
        }
        assert_eq!(end["choices"][0]["delta"], json!({}));
        assert_eq!(end["choices"][0]["finish_reason"], "stop");
    }
    for chunk in &chunks {
        assert_eq!(
            (&chunk["id"], &chunk["created"], &chunk["model"]),
            (&last["id"], &last["created"], &last["model"])
        );
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    assert!(rest.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
}

#[test]
fn the_stream_is_the_whole_whatever_is_held_back() {
    let server = Server::start(&[]);
    // Sampling at a high temperature brings broken characters and any bytes.
    for seed in 0..12 {
        let mut ask = json!({
            "prompt": "é🦀", "max_tokens": 40, "temperature": 2, "seed": seed, "ignore_eos": true,
            "stop": ["zzzz", "the e"], "logprobs": 1,
        });
        let whole = server.post("/v1/completions", &ask).json();
        ask["stream"] = json!(true);
        let chunks = events(&server, "/v1/completions", ask);
        let choice = |chunk: &Value| chunk["choices"][0].clone();
        let text: String =
            chunks.iter().map(|chunk| choice(chunk)["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(json!(text), whole["choices"][0]["text"], "seed {seed}");
        let list = |name: &str| -> Vec<Value> {
            let of = |chunk: &Value| choice(chunk)["logprobs"][name].as_array().cloned().unwrap_or_default();
            chunks.iter().flat_map(of).collect()
        };
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(json!(list(name)), whole["choices"][0]["logprobs"][name], "{name}, seed {seed}");
        }
    }
}

#[test]
fn unknown_fields_are_ignored_and_null_is_absent() {
    let server = Server::start(&[]);
    let plain = json!({"prompt": "once upon", "max_tokens": 4, "temperature": 0});
    let mut odd = plain.clone();
    for (name, value) in
        [("frobnicate", json!({"a": [1]})), ("user", json!("me")), ("n", Value::Null), ("stop", Value::Null)]
    {
        odd[name] = value;
    }
    odd["tools"] = json!([]);
    odd["tool_choice"] = json!("none");
    odd["response_format"] = json!({"type": "text"});
    odd["best_of"] = json!(1);
    let text = |body: &Value| server.post("/v1/completions", body).json()["choices"][0]["text"].clone();
    assert!(text(&plain).is_string());
    assert_eq!(text(&plain), text(&odd));
}

#[test]
fn tokens_there_and_back() {
    let server = Server::start(&[]);
    let there =
        server.post("/tokenize", &json!({"prompt": "Hello wörld 🦀", "return_token_strs": true})).json();
    assert_eq!(there["count"], there["tokens"].as_array().unwrap().len());
    assert_eq!(there["max_model_len"], 4096);
    let back = server.post("/detokenize", &json!({"tokens": there["tokens"]})).json();
    assert_eq!(back["prompt"], "Hello wörld 🦀");
    let chat = server.post("/tokenize", &json!({"messages": [{"role": "user", "content": "Hi"}]})).json();
    assert!(chat["count"].as_u64().unwrap() > 4, "{chat}");
}

#[test]
fn requests_have_names() {
    let mut server = Server::start(&["--log", "json"]);
    let body = json!({"prompt": "a secret prompt", "max_tokens": 2}).to_string();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("x-request-id", "own-7"), ("traceparent", trace)];
    let answer = server.request("POST", "/v1/completions", &headers, body.as_bytes());
    assert_eq!(answer.header("x-request-id"), Some("own-7"));
    let line = server.line_with(&["own-7"]);
    let line: Value = serde_json::from_str(&line).expect("a line of JSON");
    assert_eq!((&line["traceparent"], &line["outcome"]), (&json!(trace), &json!("length")));
    assert_eq!(line["generated_tokens"], 2);
    // Not a name that could stand in a log.
    let answer = server.request("GET", "/version", &[("x-request-id", &"x".repeat(200))], b"");
    assert!(answer.header("x-request-id").unwrap().starts_with("req-"));
    assert!(server.log.iter().all(|line| !line.contains("secret")), "a prompt in the log");
}

/// Who waits for a place hears that the connection lives, as proxies want it.
#[test]
fn a_stream_that_waits_is_kept_alive() {
    use std::io::{Read, Write};
    let server = Server::start(&["--max-batch", "1", "--no-prefix-cache"]);
    let long = json!({"prompt": [5, 6], "max_tokens": 4000, "ignore_eos": true, "stream": true}).to_string();
    // One after the other, for longer than it takes, however fast this machine is; who does not read gives up its place.
    let waits_behind = |others: usize| {
        for _ in 0..others {
            let mut stream = server.connect();
            stream.write_all(&request_bytes("POST", "/v1/completions", &[], long.as_bytes())).expect("sent");
            std::thread::spawn(move || stream.read_to_end(&mut Vec::new()));
        }
        let mut waiting = server.connect();
        waiting.write_all(&request_bytes("POST", "/v1/completions", &[], long.as_bytes())).expect("sent");
        let (mut bytes, mut byte) = (Vec::new(), [0]);
        while !bytes.ends_with(b"data: ") && !bytes.ends_with(b": ping\n\n") {
            waiting.read_exact(&mut byte).expect("more of it");
            bytes.extend_from_slice(&byte);
        }
        bytes.ends_with(b": ping\n\n")
    };
    assert!([60, 240, 480].into_iter().any(waits_behind), "no comment before its first event");
}

/// Fields that change an answer, each by what it changes.
#[test]
fn fields_do_what_they_say() {
    let server = Server::start(&[]);
    let ask = |more: Value| {
        let mut body = json!({"prompt": "12 + 13 = 25. 27 + 58 =", "max_tokens": 4, "ignore_eos": true, "temperature": 0});
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let tokens = |answer: &Value| answer["choices"][0]["logprobs"]["tokens"].clone();
    let forced = ask(json!({"logit_bias": {"7": 100}, "logprobs": 0, "return_tokens_as_token_ids": true}));
    assert_eq!(tokens(&forced), json!(["token_id:7", "token_id:7", "token_id:7", "token_id:7"]));
    let words = ask(json!({"logit_bias": {"7": 100}, "logprobs": 0}));
    assert!(tokens(&words)[0].as_str().is_some_and(|token| !token.starts_with("token_id:")), "{words}");
    // The likeliest tokens are those of the model's own distribution, whatever is drawn.
    let top = ask(json!({"logprobs": 3}));
    let first = top["choices"][0]["logprobs"]["top_logprobs"][0].as_object().expect("a map").clone();
    assert!(first.len() == 3 || first.len() == 4, "{top}");
    assert!(first.contains_key(tokens(&top)[0].as_str().expect("a token")), "{top}");
    let plain = ask(json!({}))["choices"][0]["text"].as_str().expect("text").to_owned();
    let stopped = ask(json!({"stop": [plain[plain.len() - 1..].to_owned()]}));
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop", "{stopped}");
    assert!(plain.starts_with(stopped["choices"][0]["text"].as_str().expect("text")));
    let drawn = |seed: u64| ask(json!({"temperature": 2, "seed": seed, "n": 3, "max_tokens": 24}));
    let (one, again, other) = (drawn(7), drawn(7), drawn(8));
    let texts = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().expect("a list").iter().map(|choice| choice["text"].clone()).collect()
    };
    assert_eq!((texts(&one).len(), texts(&one)), (3, texts(&again)));
    assert!(texts(&one) != texts(&other) && texts(&one)[0] != texts(&one)[1], "{one} {other}");
    assert_eq!(one["usage"]["completion_tokens"], 72);
    let chat = |more: u64| {
        let body = json!({"messages": [{"role": "user", "content": "What is 27 + 58?"}], "temperature": 0, "min_tokens": more});
        server.post("/v1/chat/completions", &body).json()["usage"]["completion_tokens"].as_u64()
    };
    assert!(chat(0) < Some(12) && chat(12) >= Some(12), "{:?} {:?}", chat(0), chat(12));
    let penalised = ask(json!({"max_tokens": 40, "frequency_penalty": 2, "presence_penalty": 2}));
    assert_ne!(penalised["choices"][0]["text"], ask(json!({"max_tokens": 40}))["choices"][0]["text"]);
    for (field, value) in [("top_k", json!(1)), ("top_p", json!(1e-6)), ("min_p", json!(1.0))] {
        let only_one = ask(json!({"temperature": 1, "seed": 3, field: value}));
        assert_eq!(only_one["choices"][0]["text"], json!(plain), "{field}");
    }
}
