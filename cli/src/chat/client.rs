//! One turn with an endpoint: a request out, the stream's events in, read on a thread of its own.

use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;

use crate::endpoint::{Endpoint, Failure, Limits};
use crate::error::CliError;

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
    endpoint: Endpoint,
    name: Option<String>,
}

impl Client {
    pub fn new(base: &str, key: Option<String>, name: Option<String>) -> Result<Client, CliError> {
        let endpoint = Endpoint::new(base, key, Limits { request: None, connections: 1 })?;
        Ok(Client { endpoint, name })
    }

    pub fn with_name(self, name: String) -> Client {
        Client { name: Some(name), ..self }
    }

    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The model to ask for: the one that was named, else the server's first.
    pub fn model(&self) -> Result<String, NoServer> {
        let first = self.endpoint.first_model();
        let failed = |failure: Failure| NoServer {
            text: format!("{}: {failure}", self.endpoint.url("/models")),
            nobody_listens: matches!(failure, Failure::NobodyListens(_)),
        };
        match (&self.name, first) {
            // Whoever names a model needs no list of them, but a server.
            (Some(name), Ok(_) | Err(Failure::Status { .. } | Failure::NotOpenAi(_))) => Ok(name.clone()),
            (_, first) => first.map_err(failed),
        }
    }

    /// Asks; events come until the answer ends. Dropping the receiver ends the connection with the next of them.
    pub fn ask(&self, body: Value) -> (Sender<Said>, Receiver<Said>) {
        let (sender, receiver) = channel();
        let (client, events) = (self.clone(), sender.clone());
        std::thread::spawn(move || {
            if let Err(failure) = client.read_answer(&body, &events) {
                let _ = events.send(Said::Error(told(&failure)));
            }
            // The end of the answer, also for whoever holds another sender.
            let _ = events.send(Said::End);
        });
        (sender, receiver)
    }

    fn read_answer(&self, body: &Value, events: &Sender<Said>) -> Result<(), Failure> {
        let mut stream = self.endpoint.stream(&self.endpoint.url("/chat/completions"), body.to_string())?;
        while let Some(event) = stream.next()? {
            let body = event.body;
            let text = body["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty());
            let tokens = body["usage"]["completion_tokens"].as_u64();
            let said =
                text.map(|text| Said::Text(text.to_string())).into_iter().chain(tokens.map(Said::Tokens));
            for said in said {
                if events.send(said).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A refusal in the server's words alone: a person who talks needs no status.
fn told(failure: &Failure) -> String {
    match failure {
        Failure::Status { message, .. } => message.clone(),
        failure => failure.to_string(),
    }
}
