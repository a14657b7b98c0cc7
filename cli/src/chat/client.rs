//! One turn over HTTP: a request out, the stream's events in, read on a thread of its own.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde_json::Value;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Of one line of a stream, or of an error.
const BYTES_MAX: u64 = 1 << 20;

/// What a server says while it answers.
pub enum Said {
    Text(String),
    /// How many tokens the answer has.
    Tokens(u64),
    Error(String),
    /// The person wants no more.
    Interrupted,
    /// There is no more.
    End,
}

/// Why there is no server to talk to.
pub struct NoServer {
    pub text: String,
    pub nobody_listens: bool,
}

#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    key: Option<String>,
    name: Option<String>,
}

impl Client {
    pub fn new(base: &str, key: Option<String>, name: Option<String>) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .build();
        Client { agent: config.into(), base: base.trim_end_matches('/').to_string(), key, name }
    }

    pub fn with_name(self, name: String) -> Client {
        Client { name: Some(name), ..self }
    }

    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The model to ask for: the one that was named, else the server's first.
    pub fn model(&self) -> Result<String, NoServer> {
        let url = format!("{}/models", self.base);
        let failed = |text: String| NoServer { text, nobody_listens: false };
        let request = self.agent.get(&url).header("authorization", &self.bearer());
        let mut response = request.call().map_err(|error| NoServer {
            text: format!("{url}: {error}"),
            nobody_listens: matches!(&error, ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
                || matches!(&error, ureq::Error::ConnectionFailed),
        })?;
        let text = response.body_mut().with_config().limit(BYTES_MAX).read_to_string();
        let text = text.map_err(|error| failed(format!("{url}: {error}")))?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        match body["data"][0]["id"].as_str() {
            Some(name) => Ok(name.to_string()),
            None => Err(failed(format!("{url}: {}", message(&body, &text)))),
        }
    }

    /// Asks; events come until the answer ends. Dropping the receiver ends the connection with the next of them.
    pub fn ask(&self, body: Value) -> (Sender<Said>, Receiver<Said>) {
        let (sender, receiver) = channel();
        let (client, events) = (self.clone(), sender.clone());
        std::thread::spawn(move || {
            if let Err(text) = client.read_answer(&body, &events) {
                let _ = events.send(Said::Error(text));
            }
            // The end of the answer, also for whoever holds another sender.
            let _ = events.send(Said::End);
        });
        (sender, receiver)
    }

    fn read_answer(&self, body: &Value, events: &Sender<Said>) -> Result<(), String> {
        let url = format!("{}/chat/completions", self.base);
        let request = self.agent.post(&url).header("authorization", &self.bearer());
        let sent = request.header("content-type", "application/json").send(body.to_string());
        let mut response = sent.map_err(|error| format!("{url}: {error}"))?;
        if !response.status().is_success() {
            let text =
                response.body_mut().with_config().limit(BYTES_MAX).read_to_string().unwrap_or_default();
            let body: Value = serde_json::from_str(&text).unwrap_or_default();
            return Err(message(&body, &text));
        }
        let mut reader = BufReader::new(response.into_body().into_reader());
        loop {
            let mut line = String::new();
            let read = reader.by_ref().take(BYTES_MAX).read_line(&mut line);
            if read.map_err(|error| format!("the answer broke off: {error}"))? == 0 {
                return Err("the answer broke off".to_string());
            }
            // Comments and empty lines say nothing.
            let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                return Ok(());
            }
            let event: Value =
                serde_json::from_str(data).map_err(|error| format!("no JSON in the answer: {error}"))?;
            if !event["error"].is_null() {
                return Err(message(&event, data));
            }
            let text = event["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty());
            let tokens = event["usage"]["completion_tokens"].as_u64();
            let said =
                text.map(|text| Said::Text(text.to_string())).into_iter().chain(tokens.map(Said::Tokens));
            for said in said {
                if events.send(said).is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key.as_deref().unwrap_or("none"))
    }
}

/// OpenAI's `error.message`, or the beginning of whatever came.
fn message(body: &Value, text: &str) -> String {
    match body["error"]["message"].as_str() {
        Some(message) => message.to_string(),
        None => format!("an answer that is not OpenAI's: {}", &text[..text.floor_char_boundary(200)]),
    }
}
