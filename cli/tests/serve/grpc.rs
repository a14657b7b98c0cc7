//! `gaterail.v1.Inference`, health and deadlines over gRPC, with a client in Rust that is always here.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use gaterail_proto::grpc::v1::generate_request::Prompt;
use gaterail_proto::grpc::v1::generate_response::Event;
use gaterail_proto::grpc::v1::inference_client::InferenceClient;
use gaterail_proto::grpc::v1::tokenize_request::Input;
use gaterail_proto::grpc::v1::{
    FinishReason, GenerateRequest, ModelInfoRequest, Sampling, TokenIds, TokenizeRequest,
};
use serde_json::json;
use tokio::runtime::Runtime;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::server::{PATIENCE, Server};

const KEY: &str = "a-key-of-the-command-line";
/// Longer than any answer takes here that is not ended.
const ENDLESS: u32 = 3900;

fn start() -> (Server, Runtime, Channel) {
    // Answers are waited for, however slow this machine is.
    let patient = ["--drain-grace-seconds", "2", "--drain-seconds", "600", "--stall-seconds", "600"];
    let flags = ["--grpc-listen", "127.0.0.1:0", "--api-key", KEY];
    let server = Server::start(&[&flags[..], &patient].concat());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let address = server.grpc.expect("a port for gRPC");
    // Whoever does not read is waited for, as early as that goes.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(1 << 20);
    let channel = runtime.block_on(endpoint.connect()).expect("a connection");
    (server, runtime, channel)
}

/// A message with a key.
fn with<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {key}").parse().expect("a header's value");
    request.metadata_mut().insert("authorization", value);
    request
}

fn tokens(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Tokens(TokenIds { ids: vec![5, 6] })),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        sampling: Some(Sampling { temperature: Some(0.0), ..Sampling::default() }),
        ..GenerateRequest::default()
    }
}

/// Text, tokens as they were counted, and why it ended.
async fn generate(channel: Channel, request: Request<GenerateRequest>) -> Result<(String, u32, i32), Status> {
    let mut answer = InferenceClient::new(channel).generate(request).await?.into_inner();
    let (mut text, mut finished) = (String::new(), None);
    while let Some(event) = answer.message().await? {
        match event.event {
            Some(Event::Token(token)) => text += &token.text,
            Some(Event::Finished(end)) => finished = Some((end.completion_tokens, end.reason)),
            _ => {}
        }
    }
    let (count, reason) = finished.expect("an end");
    Ok((text, count, reason))
}

#[test]
fn it_answers_as_http_does() {
    let (server, runtime, channel) = start();
    let (text, count, reason) =
        runtime.block_on(generate(channel.clone(), with(KEY, tokens(20)))).expect("an answer");
    assert_eq!((count, reason), (20, FinishReason::Length as i32));
    let body = json!({"prompt": [5, 6], "max_tokens": 20, "ignore_eos": true, "temperature": 0}).to_string();
    let key = format!("Bearer {KEY}");
    let headers = [("authorization", key.as_str()), ("content-type", "application/json")];
    let http = server.request("POST", "/v1/completions", &headers, body.as_bytes()).json();
    assert_eq!(http["choices"][0]["text"], json!(text));
    let mut client = InferenceClient::new(channel);
    let info = runtime.block_on(client.model_info(with(KEY, ModelInfoRequest {}))).expect("it").into_inner();
    assert_eq!(info.names, ["demo"]);
    assert!(info.context >= 4096 && info.vocabulary > 0 && info.kv_tokens > 0, "{info:?}");
    let input = Some(Input::Text("once upon a time".into()));
    let request = TokenizeRequest { input, ..TokenizeRequest::default() };
    let ids = runtime.block_on(client.tokenize(with(KEY, request))).expect("tokens").into_inner().ids;
    let body = json!({"prompt": "once upon a time"}).to_string();
    let http = server.request("POST", "/tokenize", &headers, body.as_bytes()).json();
    assert_eq!(http["tokens"], json!(ids));
}

#[test]
fn what_is_wrong_has_its_code() {
    let (_server, runtime, channel) = start();
    let fails = |request: Request<GenerateRequest>, code: Code, part: &str| {
        let status = runtime.block_on(generate(channel.clone(), request)).expect_err(part);
        assert!(status.code() == code && status.message().contains(part), "{part:?}: {status:?}");
    };
    fails(with("wrong", tokens(3)), Code::Unauthenticated, "");
    fails(Request::new(tokens(3)), Code::Unauthenticated, "");
    fails(with(KEY, GenerateRequest::default()), Code::InvalidArgument, "prompt");
    let mut hot = tokens(3);
    hot.sampling = Some(Sampling { temperature: Some(f32::NAN), ..Sampling::default() });
    fails(with(KEY, hot), Code::InvalidArgument, "temperature");
    let mut long = tokens(3);
    long.prompt = Some(Prompt::Tokens(TokenIds { ids: vec![5; 5000] }));
    fails(with(KEY, long), Code::InvalidArgument, "5000");
    let other = GenerateRequest { model: "another".into(), ..tokens(3) };
    fails(with(KEY, other), Code::NotFound, "another");
    // What is no message, and what is no method.
    for (method, bytes, code) in
        [("Generate", &b"\xff\xff\xff\xff\x0f"[..], Code::Internal), ("Nothing", b"", Code::Unimplemented)]
    {
        let path: PathAndQuery = format!("/gaterail.v1.Inference/{method}").parse().expect("a path");
        let mut client = tonic::client::Grpc::new(channel.clone());
        let status = runtime.block_on(async {
            client.ready().await.expect("a connection");
            let answer = client.server_streaming(with(KEY, bytes.to_vec()), path, Raw).await;
            match answer {
                Ok(mut answer) => answer.get_mut().message().await.expect_err("no answer"),
                Err(status) => status,
            }
        });
        assert_eq!(status.code(), code, "{method}: {status:?}");
    }
}

/// The work itself ends with its deadline, and with its client.
#[test]
fn deadlines_end_the_work() {
    let (server, runtime, channel) = start();
    let mut request = with(KEY, tokens(ENDLESS));
    request.set_timeout(Duration::from_millis(300));
    request.get_mut().n = 16;
    request.get_mut().logprobs = Some(20);
    let began = Instant::now();
    let status = runtime.block_on(generate(channel.clone(), request)).expect_err("too short a time");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    runtime.block_on(async {
        let mut answer =
            InferenceClient::new(channel).generate(with(KEY, tokens(ENDLESS))).await.expect("it");
        answer.get_mut().message().await.expect("a first event");
    });
    server.wait_for_requests(KEY, 0.0);
}

#[test]
fn health_is_told_and_changes_before_the_drain() {
    let (mut server, runtime, channel) = start();
    let mut client = HealthClient::new(channel.clone());
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    for service in ["", "gaterail.v1.Inference", "model/demo"] {
        let answer = runtime.block_on(client.check(with(KEY, ask(service)))).expect(service);
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let nobody = runtime.block_on(client.check(with(KEY, ask("nobody")))).expect_err("nobody");
    assert_eq!(nobody.code(), Code::NotFound);
    let shut = runtime.block_on(client.check(Request::new(ask("")))).expect_err("no key");
    assert_eq!(shut.code(), Code::Unauthenticated);
    let mut watch = runtime.block_on(client.watch(with(KEY, ask("")))).expect("a watch").into_inner();
    let mut next = || runtime.block_on(watch.message()).expect("a status").expect("a status").status();
    assert_eq!(next(), ServingStatus::Serving);
    // Too large to be over before it is read.
    let mut large = tokens(ENDLESS);
    large.logprobs = Some(20);
    let mut client = InferenceClient::new(channel);
    let mut running = runtime.block_on(client.generate(with(KEY, large))).expect("it").into_inner();
    let mut event =
        || runtime.block_on(running.message()).expect("an answer").and_then(|answer| answer.event);
    assert!(event().is_some(), "it begins");
    server.signal("TERM");
    assert_eq!(next(), ServingStatus::NotServing);
    // Who was in is answered to the end.
    let finished = std::iter::from_fn(event).find_map(|event| match event {
        Event::Finished(end) => Some(end.completion_tokens),
        _ => None,
    });
    assert_eq!(finished, Some(ENDLESS));
    assert!(server.wait().success());
}

#[test]
fn reflection_says_what_there_is() {
    let (_server, runtime, channel) = start();
    let ask = |what: MessageRequest| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(what) };
        let mut client = ServerReflectionClient::new(channel.clone());
        runtime.block_on(async {
            let requests = tonic::codegen::tokio_stream::iter([request]);
            let mut answers = client.server_reflection_info(with(KEY, requests)).await.expect("answers");
            let answer = answers.get_mut().message().await.expect("an answer").expect("an answer");
            answer.message_response.expect("one of them")
        })
    };
    let MessageResponse::ListServicesResponse(listed) = ask(MessageRequest::ListServices(String::new()))
    else {
        panic!("no list");
    };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    assert!(
        names.contains(&"gaterail.v1.Inference") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    let symbol = MessageRequest::FileContainingSymbol("gaterail.v1.GenerateRequest".into());
    let MessageResponse::FileDescriptorResponse(file) = ask(symbol) else { panic!("no file") };
    let file = String::from_utf8_lossy(&file.file_descriptor_proto[0]).into_owned();
    assert!(file.contains("inference.proto") && file.contains("max_tokens"), "{file}");
}

/// Messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}
