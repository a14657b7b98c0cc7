//! What no client should send, as a table (`tests/data/bad_requests.json`), over a real socket: each is refused with its
//! status and its words, and the server is as well as before.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{Server, request_bytes};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    path: String,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    /// The body, in one of four ways.
    body: Option<Value>,
    text: Option<String>,
    hex: Option<String>,
    parts: Option<Vec<Part>>,
    /// Or all bytes of the request; its characters are bytes.
    raw: Option<Vec<Part>>,
    status: u16,
    /// A part of the message; empty where hyper answers before us.
    says: String,
    param: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Text(String),
    Repeat { repeat: String, times: usize },
}

impl Part {
    fn text(&self) -> String {
        match self {
            Part::Text(text) => text.clone(),
            Part::Repeat { repeat, times } => repeat.repeat(*times),
        }
    }
}

impl Case {
    fn body(&self) -> Vec<u8> {
        if let Some(body) = &self.body {
            return body.to_string().into_bytes();
        }
        if let Some(hex) = &self.hex {
            let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
            return (0..hex.len()).step_by(2).map(digits).collect();
        }
        let parts = self.parts.iter().flatten().map(Part::text).collect::<String>();
        self.text.clone().unwrap_or(parts).into_bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            let text: String = raw.iter().map(Part::text).collect();
            return text.chars().map(|c| u8::try_from(c).expect("a byte")).collect();
        }
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        request_bytes(self.method.as_deref().unwrap_or("POST"), &self.path, &headers, &self.body())
    }

    /// What is wrong with the answer.
    fn objection(&self, server: &Server) -> Option<String> {
        let answer = server.raw(&self.bytes());
        let seen = String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
        let object = |what: &str| Some(format!("{}: {what}; {} {seen}", self.name, answer.status));
        if answer.status != self.status {
            return object(&format!("not {}", self.status));
        }
        if self.says.is_empty() {
            return None;
        }
        let error = &answer.json()["error"];
        match error["message"].as_str() {
            Some(message) if message.contains(&self.says) => {}
            _ => return object(&format!("does not say {:?}", self.says)),
        }
        if self.param.is_some() && error["param"] != json!(self.param) {
            return object(&format!("does not name {:?}", self.param));
        }
        if self.code.is_some() && error["code"] != json!(self.code) {
            return object(&format!("has not the code {:?}", self.code));
        }
        (!error["type"].is_string()).then(|| format!("{}: no type", self.name))
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/data/bad_requests.json")).expect("a table")
}

#[test]
fn what_no_client_should_send_is_refused_in_words() {
    let cases = cases();
    assert!(cases.len() >= 200, "only {} cases", cases.len());
    let server = Server::start(&[]);
    let objections: Vec<String> = cases.iter().filter_map(|case| case.objection(&server)).collect();
    assert!(objections.is_empty(), "{} of {}:\n{}", objections.len(), cases.len(), objections.join("\n"));
    let answer = server.post("/v1/completions", &json!({"prompt": "once", "max_tokens": 2}));
    assert_eq!(answer.status, 200, "it answers still");
    server.wait_for_metric("gaterail_kv_pages_used", |pages| pages == 0.0);
}
