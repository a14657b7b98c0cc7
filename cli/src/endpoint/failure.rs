//! How a request to an endpoint ends badly. The set is closed, so that failures can be counted by kind.

use std::io;

use serde_json::Value;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens there.
    #[error("{0}: nobody listens there; `gaterail serve` starts a server")]
    NobodyListens(String),
    /// No connection, or it broke before there was an answer.
    #[error("{0}")]
    Connection(String),
    #[error("HTTP {status}: {message}")]
    Status { status: u16, message: String },
    /// It never left: as many as may be are under way.
    #[error("not sent: {0} requests are under way")]
    NotSent(usize),
    #[error("no end within the time allowed")]
    Timeout,
    /// The stream ended without `[DONE]`.
    #[error("the answer broke off: {0}")]
    Cut(String),
    /// The server said in the stream that it failed.
    #[error("{0}")]
    Said(String),
    /// Not what OpenAI's interface has.
    #[error("{0}")]
    NotOpenAi(String),
}

impl Failure {
    /// One word for counting.
    pub fn kind(&self) -> String {
        match self {
            Failure::NobodyListens(_) | Failure::Connection(_) => "connection".to_string(),
            Failure::Status { status, .. } => format!("http_{status}"),
            Failure::NotSent(_) => "not_sent".to_string(),
            Failure::Timeout => "timeout".to_string(),
            Failure::Cut(_) => "cut".to_string(),
            Failure::Said(_) => "error_in_stream".to_string(),
            Failure::NotOpenAi(_) => "not_openai".to_string(),
        }
    }

    pub fn of_call(error: ureq::Error) -> Failure {
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => Failure::Connection("no connection".to_string()),
            ureq::Error::Timeout(_) => Failure::Timeout,
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Failure::NobodyListens(error.to_string())
            }
            ureq::Error::ConnectionFailed => Failure::NobodyListens("no connection".to_string()),
            error => {
                let why = error.to_string();
                let unknown = why.contains("UnknownIssuer");
                let hint = if unknown { "; SSL_CERT_FILE=FILE names the CA to believe" } else { "" };
                Failure::Connection(why + hint)
            }
        }
    }

    /// An error while the answer is read.
    pub fn of_read(error: io::Error) -> Failure {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Timeout(_)) => Failure::Timeout,
            _ if error.kind() == io::ErrorKind::TimedOut => Failure::Timeout,
            _ => Failure::Cut(error.to_string()),
        }
    }

    pub fn not_openai(body: &Value, text: &str) -> Failure {
        Failure::NotOpenAi(message(body, text))
    }
}

/// OpenAI's `error.message`, or the beginning of whatever came.
pub fn message(body: &Value, text: &str) -> String {
    match body["error"]["message"].as_str() {
        Some(message) => message.to_string(),
        None => format!("an answer that is not OpenAI's: {}", &text[..text.floor_char_boundary(200)]),
    }
}
