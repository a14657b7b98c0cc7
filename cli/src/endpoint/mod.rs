//! An endpoint that speaks OpenAI's interface, ours or another's: its address, its key, and what can go wrong on the way.
//!
//! | file | |
//! |---|---|
//! | [`connections`] | whether a request's connection was an old one |
//! | [`stream`] | the events of a streamed answer, up to an end that cannot be mistaken |
//! | [`failure`] | the ways in which a request ends badly |

mod connections;
mod failure;
mod stream;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::DefaultResolver;

use crate::error::CliError;
use crate::roots;
use connections::{Counted, Opened};
pub use failure::Failure;
pub use stream::Stream;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Of an answer that is no stream.
const BODY_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone)]
pub struct Endpoint {
    agent: ureq::Agent,
    /// With `/v1`, without a slash at its end.
    base: String,
    key: Option<String>,
}

/// How an endpoint is used.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Longest time of one request, its answer included.
    pub request: Option<Duration>,
    /// Connections that are kept open for the next request.
    pub connections: usize,
}

impl Endpoint {
    /// Fails where `SSL_CERT_FILE` names a file that is none.
    pub fn new(base: &str, key: Option<String>, limits: Limits) -> Result<Endpoint, CliError> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = std::env::var_os(roots::VARIABLE).filter(|path| !path.is_empty()) {
            let why = format!("{} ({})", roots::VARIABLE, Path::new(&path).display());
            tls = tls.root_certs(roots::of(Path::new(&path)).map_err(CliError::io(why))?);
        }
        let config = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_global(limits.request)
            .max_idle_connections(limits.connections)
            .max_idle_connections_per_host(limits.connections)
            .build();
        let agent = ureq::Agent::with_parts(config, Counted::default(), DefaultResolver::default());
        Ok(Endpoint { agent, base: base.trim_end_matches('/').to_string(), key })
    }

    /// Address of a path below `/v1`, as `/models`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Address of a path beside `/v1`, as `/tokenize`.
    pub fn root_url(&self, path: &str) -> String {
        format!("{}{path}", self.base.strip_suffix("/v1").unwrap_or(&self.base))
    }

    /// The name of the server's first model.
    pub fn first_model(&self) -> Result<String, Failure> {
        let request = self.agent.get(self.url("/models")).header("authorization", &self.bearer());
        let body = answer(request.call().map_err(Failure::of_call)?)?;
        match body["data"][0]["id"].as_str() {
            Some(name) => Ok(name.to_string()),
            None => Err(Failure::not_openai(&body, &body.to_string())),
        }
    }

    /// What a page says.
    pub fn get(&self, url: &str) -> Result<Value, Failure> {
        let request = self.agent.get(url).header("authorization", &self.bearer());
        answer(request.call().map_err(Failure::of_call)?)
    }

    /// Asks for an answer in one piece.
    pub fn post(&self, url: &str, body: &Value) -> Result<Value, Failure> {
        answer(self.send(url, body.to_string())?)
    }

    /// Asks for a streamed answer; a refusal is an error.
    pub fn stream(&self, url: &str, body: String) -> Result<Stream, Failure> {
        let mut response = self.send(url, body)?;
        match response.status().is_success() {
            true => Ok(Stream::new(response.into_body())),
            false => Err(refusal(&mut response)),
        }
    }

    /// A connection that was kept may have been closed by the server meanwhile; some do without a word, and at once. What
    /// was sent over one that is gone is sent again over the next.
    fn send(&self, url: &str, body: String) -> Result<Response, Failure> {
        loop {
            let opened = Opened::so_far();
            let request = self.agent.post(url).header("authorization", &self.bearer());
            match request.header("content-type", "application/json").send(&body) {
                Err(error) if connections::is_gone(&error) && opened == Opened::so_far() => {}
                response => return response.map_err(Failure::of_call),
            }
        }
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key.as_deref().unwrap_or("none"))
    }
}

type Response = ureq::http::Response<ureq::Body>;

fn answer(mut response: Response) -> Result<Value, Failure> {
    if !response.status().is_success() {
        return Err(refusal(&mut response));
    }
    let text = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string();
    let text = text.map_err(Failure::of_call)?;
    serde_json::from_str(&text).map_err(|_| Failure::not_openai(&Value::Null, &text))
}

fn refusal(response: &mut Response) -> Failure {
    let status = response.status().as_u16();
    let text = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string().unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    Failure::Status { status, message: failure::message(&body, &text) }
}
