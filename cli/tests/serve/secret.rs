//! The public ports over TLS, both of them, with clients in Rust that are always here: who has the CA is answered, who has
//! another is not.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gaterail_cluster::tls::{Authority, ClientTls};
use gaterail_proto::grpc::v1::generate_request::Prompt;
use gaterail_proto::grpc::v1::generate_response::Event;
use gaterail_proto::grpc::v1::inference_client::InferenceClient;
use gaterail_proto::grpc::v1::{Chat, GenerateRequest, Message, Sampling};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use crate::server::{PATIENCE, Server, gaterail};

const KEY: &str = "a-key-of-the-command-line";
const QUESTION: &str = "What is 27 + 58?";

/// A folder of certificates.
fn certs(folder: &TempDir, name: &str) -> String {
    let dir = folder.path().join(name).to_str().expect("a path").to_string();
    let output = gaterail(folder, &["certs", "init", &dir]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir
}

fn server(dir: &str, flags: &[&str]) -> Server {
    let (cert, key) = (format!("{dir}/router.pem"), format!("{dir}/router-key.pem"));
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--api-key", KEY];
    Server::start(&[&tls[..], flags].concat())
}

/// A client that believes the CA in a folder.
fn agent(dir: &str) -> ureq::Agent {
    let pem = std::fs::read(Path::new(dir).join("ca.pem")).expect("a CA");
    let certificates = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let roots = RootCerts::Specific(Arc::new(certificates.collect()));
    let config = ureq::Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false);
    config.build().new_agent()
}

#[test]
fn http_clients_are_answered_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, other) = (certs(&folder, "certs"), certs(&folder, "other"));
    let server = server(&dir, &[]);
    let base = format!("https://{}/v1", server.address);
    let client = agent(&dir);
    let get = |key: &str| {
        let request = client.get(format!("{base}/models")).header("authorization", format!("Bearer {key}"));
        let mut answer = request.call().expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("text"))
    };
    let (status, models) = get(KEY);
    let models: Value = serde_json::from_str(&models).expect("JSON");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("demo")), "{models}");
    assert_eq!(get("another-key-that-is-none").0, 401);

    // A stream, on the connection that was there.
    let body = json!({"messages": [{"role": "user", "content": QUESTION}], "stream": true, "temperature": 0});
    let request = client.post(format!("{base}/chat/completions"));
    let request = request.header("authorization", format!("Bearer {KEY}"));
    let mut answer = request.content_type("application/json").send(body.to_string()).expect("an answer");
    let mut text = String::new();
    answer.body_mut().as_reader().read_to_string(&mut text).expect("the stream");
    let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{text}");
    let said: String = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(said.trim(), "85", "{text}");

    let stranger = agent(&other).get(format!("{base}/models")).call().expect_err("another CA");
    assert!(stranger.to_string().contains("certificate"), "{stranger}");
}

fn channel(dir: &str, address: &str, runtime: &tokio::runtime::Runtime) -> Result<Channel, String> {
    let ca = Authority::read(&Path::new(dir).join("ca.pem")).expect("a CA");
    let tls = ClientTls::new(&ca, None).expect("a client's side");
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    let endpoint = endpoint.connect_timeout(Duration::from_secs(60));
    runtime.block_on(tls.connect(&endpoint)).map_err(|error| format!("{error:?}"))
}

#[test]
fn grpc_clients_are_answered_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, other) = (certs(&folder, "certs"), certs(&folder, "other"));
    let server = server(&dir, &["--grpc-listen", "127.0.0.1:0"]);
    let address = server.grpc.expect("a port for gRPC").to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let open = channel(&dir, &address, &runtime).expect("a connection");
    let ask = |key: &str| -> Result<String, Status> {
        let message = Message { role: "user".into(), content: QUESTION.into() };
        let mut request = Request::new(GenerateRequest {
            prompt: Some(Prompt::Chat(Chat { messages: vec![message] })),
            sampling: Some(Sampling { temperature: Some(0.0), ..Sampling::default() }),
            ..GenerateRequest::default()
        });
        let value = format!("Bearer {key}").parse().expect("a header's value");
        request.metadata_mut().insert("authorization", value);
        runtime.block_on(async {
            let mut answer = InferenceClient::new(open.clone()).generate(request).await?.into_inner();
            let mut said = String::new();
            let mut ended = false;
            while let Some(event) = answer.message().await? {
                match event.event {
                    Some(Event::Token(token)) => said += &token.text,
                    Some(Event::Finished(_)) => ended = true,
                    _ => {}
                }
            }
            assert!(ended, "{said}");
            Ok(said)
        })
    };
    assert_eq!(ask(KEY).expect("an answer").trim(), "85");
    assert_eq!(ask("another-key-that-is-none").expect_err("no key").code(), Code::Unauthenticated);
    let stranger = channel(&other, &address, &runtime).expect_err("another CA");
    assert!(stranger.contains("is not of the CA") || stranger.contains("UnknownIssuer"), "{stranger}");
}
